"""Long texts as windows of tokens, each token scored once, to compute a perplexity on."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools

from jaxtyping import Float32, Int32
import numpy as np

from melllm_jax.batch import Batch
from melllm_jax.errors import Mistake

MAX_POSITIONS = 8192  # of a batch: its scores of a chunk of tokens are the most that is in memory
TILE = 128  # positions: kernels of attention want whole tiles


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a text is cut: windows of `length` tokens, each `stride` after the one before.

    A token is a target in the first window that has it, told from all before it there; the first
    of a text is none. So each later window scores its last `stride` tokens, with length - stride
    before them at least. That is the rule of transformers' page on the perplexity of models of
    fixed length. Raises Mistake for lengths that cannot be.
    """

    length: int
    stride: int

    def __post_init__(self) -> None:
        if self.length < 2:
            raise Mistake(f"window={self.length}: must be 2 tokens or more")
        if not 0 < self.stride < self.length:
            raise Mistake(f"stride={self.stride}: must lie in 1…{self.length - 1} (window - 1)")

    def cut(
        self, ids: Sequence[int]
    ) -> Iterator[tuple[Int32[np.ndarray, "t"], Float32[np.ndarray, "t"]]]:
        """The tokens of each window of a text, and their weights as targets: 1 or 0."""
        scored = 1
        for start in itertools.count(0, self.stride):
            tokens = np.array(ids[start : start + self.length], np.int32)
            stop = start + len(tokens)
            weights = (np.arange(start, stop) >= scored).astype(np.float32)
            if weights.any():
                yield tokens, weights
            scored = stop
            if stop == len(ids):
                return


def window_batches(
    texts: Iterable[Sequence[int]], windows: Windows, patch_width: int, multiple: int = 1
) -> Iterator[Batch]:
    """The windows of texts, one a row, as NumPy batches of a multiple of `multiple` rows."""
    rows = [row for ids in texts for row in windows.cut(ids)]
    longest = max((len(tokens) for tokens, _ in rows), default=1)
    t = -(-longest // TILE) * TILE
    most = max(MAX_POSITIONS // t, 1)
    b = -(-min(most, len(rows)) // multiple) * multiple
    for start in range(0, len(rows), b):
        yield _stack(rows[start : start + b], b, t, patch_width)


def _stack(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], b: int, t: int, patch_width: int
) -> Batch:
    columns = {name: np.zeros((b, t), np.int32) for name in Batch._fields}
    columns["loss_weight"] = np.zeros((b, t), np.float32)
    columns["patches"] = np.zeros((b, t, patch_width), np.float32)
    columns["positions"][:] = np.arange(t)
    for i, (tokens, weights) in enumerate(rows):
        columns["tokens"][i, : len(tokens)] = tokens
        columns["segments"][i, : len(tokens)] = 1
        columns["loss_weight"][i, : len(tokens)] = weights
    return Batch(**columns)
