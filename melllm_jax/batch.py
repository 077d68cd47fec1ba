"""The one contract between data and model: packed rows of speech and text, and what yields them."""

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Batch(NamedTuple):
    """Packed rows: NumPy arrays from the pipeline, JAX arrays in the model.

    A row holds several segments (examples) one after another; nothing of one segment reaches
    another. A segment holds text positions and clips of speech. Being a named tuple, it is a
    pytree with no registration.

    tokens       int32 [b t]     ids; at speech positions the audio placeholder of the tokenizer
    patches      float [b t p]   r mel frames of m bands a position, frame-major; zero at text
    frames       int32 [b t]     real frames in the patch: r, fewer in a clip's last one, 0 at text
    clips        int32 [b t]     0 at text; the number of the clip in its segment, from 1;
                                 negative where the clip is not heard but written by the model
    segments     int32 [b t]     number of the segment in its row, from 1; 0 is padding
    positions    int32 [b t]     place in the segment, from 0
    loss_weight  float32 [b t]   weight of this token as a target (told from the position before)
    sources      int32 [b t]     number of the corpus that the segment came from, in Data.sources
    """

    tokens: Any
    patches: Any
    frames: Any
    clips: Any
    segments: Any
    positions: Any
    loss_weight: Any
    sources: Any

    @property
    def is_speech(self) -> Any:
        """Bool [b t]: where a patch that was heard, not a token, is read."""
        return self.clips > 0

    @property
    def is_written(self) -> Any:
        """Bool [b t]: where a patch that the model wrote, or is to write, is read."""
        return self.clips < 0


@runtime_checkable
class BatchStream(Protocol):
    """What yields the batches of a run, and saves its own position with each checkpoint.

    `get_state` gives a small JSON tree; set in a new stream over the same data, it goes on as if
    nothing had happened. Orbax saves a stream with its checkpoint through `save` and `load`.
    `data_pipelines.loader.lanes` has the stream of the pipeline.
    """

    def __iter__(self) -> Iterator[Batch]:
        """The stream itself."""

    def __next__(self) -> Batch:
        """The next batch of this host's rows, in NumPy; StopIteration where the data ends."""

    def get_state(self) -> dict[str, Any]:
        """Where the stream is."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go where a stream was that gave `state`."""

    async def save(self, directory: Any) -> Awaitable[None]:
        """Take the state now; the awaitable writes it once Orbax has made `directory`."""
        ...

    async def load(self, directory: Any) -> Awaitable[None]:
        """Go to the state that was saved in `directory`."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Examples of each source; empty where nobody knows."""

    @property
    def carried(self) -> Sequence[int]:
        """The index that each source had where the stream went on from; -1 for a new source."""

    @property
    def change(self) -> Any:
        """What differs from then on, as a dataclass that prints as one line; None for nothing."""

    def counts(self) -> Mapping[str, Any]:
        """How far the batches handed out have come; `bad` counts unusable examples by reason."""

    def close(self) -> None:
        """Stop whatever reads ahead."""
