"""A batch from token ids with placeholders and the clips that fill them.

`melllm logits` and the parity check of `melllm convert` feed it to a converted model.
"""

from collections.abc import Sequence

from jaxtyping import Float32, Int
import numpy as np

from data_pipelines.examples.interleave import Clip, interleave
from melllm_jax.batch import Batch
from melllm_jax.errors import Mistake


def fill_placeholders(
    tokens: Int[np.ndarray, "b t"],
    clips: Sequence[Float32[np.ndarray, "_ m"]],
    *,
    r: int,
    m: int,
    audio: int | None,
) -> Batch:
    """Rows of ids, each a segment; the clips fill the positions of id `audio`, in their order.

    A clip takes ceil(frames / r) neighbouring positions. Raises Mistake where the numbers of
    positions and placeholders differ.
    """
    b, t = tokens.shape
    row = np.arange(t, dtype=np.int32)
    batch = Batch(
        tokens=tokens.astype(np.int32),
        patches=np.zeros((b, t, r * m), np.float32),
        frames=np.zeros((b, t), np.int32),
        clips=np.zeros((b, t), np.int32),
        segments=np.ones((b, t), np.int32),
        positions=np.broadcast_to(row, (b, t)).copy(),
        loss_weight=np.zeros((b, t), np.float32),
        sources=np.zeros((b, t), np.int32),
    )
    rows, columns = np.nonzero(tokens == audio) if clips else (np.zeros(0, int),) * 2
    taken = 0
    for clip, mel in enumerate(clips, start=1):
        speech = interleave([Clip(mel)], r=r, audio=0)
        count = len(speech["frames"])
        i, at = rows[taken : taken + count], columns[taken : taken + count]
        if len(at) < count or (i != i[0]).any() or (np.diff(at) != 1).any():
            raise Mistake(
                f"audio: clip {clip} takes {count} positions in a row: the tokens have "
                f"{len(rows) - taken} placeholders (id {audio}) left, or part them"
            )
        for name in ("patches", "frames"):
            getattr(batch, name)[i[0], at] = speech[name]
        batch.clips[i[0], at] = batch.clips[i[0]].max() + 1
        taken += count
    if taken < len(rows):
        raise Mistake(
            f"audio: the clips take {taken} positions, the tokens have {len(rows)} placeholders "
            f"(id {audio})"
        )
    return batch
