"""Lanes side by side: what they give in turn, as the rows of one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import grain

from data_pipelines.ahead import Readers
from data_pipelines.mixture import Mixture
from data_pipelines.packed import fill
from data_pipelines.screen import Count, judge
from data_pipelines.sheet import blank
from melllm_jax.batch import Batch
from melllm_jax.config import Run


class Side(grain.DatasetIterator):
    """Batches of the rows of some lanes, in their order.

    The end is that of the lane that ends first. What others gave then is in no batch; the place
    that was taken after the last one, by what makes batches ahead, has it still.
    """

    def __init__(
        self,
        run: Run,
        lanes: Mapping[int, grain.DatasetIterator],
        mixture: Mixture,
        readers: Readers,
        counts: Sequence[Count],
    ) -> None:
        super().__init__(list(lanes.values()))
        self.numbers, self.mixture = tuple(lanes), mixture
        self._run, self._lanes, self._readers, self._counts = run, lanes, readers, counts

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return len(self._lanes) * self._run.data.b // self._run.data.streams

    def __next__(self) -> Batch:
        batch = blank(self._run, self.rows)
        self.fill(batch, range(len(self._lanes)))
        judge(self._run.data, self._counts)
        return batch

    def fill(self, batch: Batch, places: Sequence[int]) -> None:
        """Write the next rows of each lane to its place in a batch, whose other rows stay.

        Raises StopIteration where a lane has ended.
        """
        parts = [next(lane) for lane in self._lanes.values()]
        for place, rows in zip(places, parts, strict=True):
            fill(batch, place * len(rows), rows)

    def get_state(self) -> dict[str, Any]:
        lanes = {str(number): lane.get_state() for number, lane in self._lanes.items()}
        return {"lanes": lanes, "phases": self.mixture.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.mixture.go_on(state["phases"], state.get("names", ()))
        for number, lane in self._lanes.items():
            lane.set_state(state["lanes"][str(number)])

    def close(self) -> None:
        """Let the readers end."""
        self._readers.close()
