"""Interleaves speech and text on one time axis: parts in, the columns of one example out.

Pure functions. The columns are those of `melllm_jax.batch.Batch` for one example, less the ones
that say where it came from and where the packer put it.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float
import numpy as np
from numpy.typing import DTypeLike

from data_pipelines.text.prompt import Prompt
from data_pipelines.text.turn_prompt import Ids
from data_pipelines.text.turns import CLIP
from melllm_jax.errors import Mistake


@dataclasses.dataclass(frozen=True)
class Clip:
    """A stretch of speech."""

    mel: Float[np.ndarray, "frames m"]
    written: bool = False  # by the model, and learnt; otherwise heard


@dataclasses.dataclass(frozen=True)
class Words:
    """A stretch of text."""

    ids: tuple[int, ...]
    weight: float  # of each id as a target: 0 is read but never learnt


def interleave(
    parts: Sequence[Clip | Words],
    *,
    r: int,
    audio: int,
    m: int | None = None,
    dtype: DTypeLike = np.float32,
) -> dict[str, np.ndarray]:
    """`parts` one after another, r frames a position of speech and one id a position of text.

    tokens       int32 [t]      ids; `audio` at speech
    patches      dtype [t p]    p = r·m, frame-major; zero at text and after a clip's last frame
    frames       int32 [t]      real frames in the patch: r, fewer in a clip's last one, 0 at text
    clips        int32 [t]      0 at text; 1, 2, … by clip, negative where it is written
    loss_weight  float32 [t]    weight of this token as a target; of speech 1 where it is written

    `m` is the number of mel bands where no part is a clip, of which otherwise each says it. Raises
    Mistake for a clip without frames, and where no part is a clip and m is not given.
    """
    clips = [part.mel for part in parts if isinstance(part, Clip)]
    if clips:
        m = clips[0].shape[1]
    if m is None:
        raise Mistake(f"parts={len(parts)}: one at least must be a clip")
    lengths = [-(-len(x.mel) // r) if isinstance(x, Clip) else len(x.ids) for x in parts]
    t = sum(lengths)
    columns = {name: np.zeros(t, np.int32) for name in ("tokens", "frames", "clips")}
    columns |= {"patches": np.zeros((t, r * m), dtype), "loss_weight": np.zeros(t, np.float32)}
    clip = start = 0
    for part, length in zip(parts, lengths, strict=True):
        views = {name: column[start : start + length] for name, column in columns.items()}
        if isinstance(part, Clip):
            clip += 1
            if not length:
                raise Mistake(f"clip {clip} has 0 frames: it must have one at least")
            count = len(part.mel)
            views["tokens"][:] = audio
            views["patches"].reshape(-1, m)[:count] = part.mel
            views["frames"][:] = r
            views["frames"][-1] = count - r * (length - 1)
            views["clips"][:] = -clip if part.written else clip
            views["loss_weight"][:] = part.written
        else:
            views["tokens"][:] = part.ids
            views["loss_weight"][:] = part.weight
        start += length
    return columns


def asr_columns(
    mel: Float[np.ndarray, "frames m"],
    transcript: Sequence[int],
    prompt: Prompt,
    *,
    r: int,
    dtype: DTypeLike = np.float32,
) -> dict[str, np.ndarray]:
    """A clip in its prompt, then the targets: the transcript and the token that ends it."""
    answer = Words((*transcript, prompt.end), 1.0)
    return interleave([*_prompt_parts(mel, prompt), answer], r=r, audio=prompt.audio, dtype=dtype)


def asr_prompt_columns(
    mel: Float[np.ndarray, "frames m"], prompt: Prompt, *, r: int
) -> dict[str, np.ndarray]:
    """A clip in its prompt, from which decoding starts."""
    return interleave(_prompt_parts(mel, prompt), r=r, audio=prompt.audio)


def fill_turns(
    turns: Sequence[Ids | None], mels: Sequence[Float[np.ndarray, "_ m"]]
) -> list[Clip | Words]:
    """The parts of a conversation: its ids, 1 the weight of what is learnt, and mels as clips."""
    unheard = iter(mels)
    return [
        Clip(next(unheard)) if part is CLIP else Words(part.ids, float(part.learnt))
        for part in turns
    ]


def _prompt_parts(mel: np.ndarray, prompt: Prompt) -> list[Clip | Words]:
    return [Words(prompt.before, 0.0), Clip(mel), Words(prompt.after, 0.0)]
