"""Speech and text on one time axis: parts in, the columns of one example out.

Pure functions. The columns are those of `melllm_jax.batch.Batch` for one example, less the ones
that say where it came from and where the packer put it.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float32
import numpy as np

from data_pipelines.prompt import Prompt
from melllm_jax.errors import Mistake


@dataclasses.dataclass(frozen=True)
class Clip:
    """A stretch of speech."""

    mel: Float32[np.ndarray, "frames m"]  # one frame each 10 ms


@dataclasses.dataclass(frozen=True)
class Words:
    """A stretch of text."""

    ids: tuple[int, ...]
    weight: float  # of each id as a target: 0 is read but never learnt


def interleave(parts: Sequence[Clip | Words], *, r: int, audio: int) -> dict[str, np.ndarray]:
    """`parts` one after another, r frames a position of speech and one id a position of text.

    tokens       int32 [t]      ids; `audio` at speech
    patches      float32 [t p]  p = r·m, frame-major; zero at text and after a clip's last frame
    frames       int32 [t]      real frames in the patch: r, fewer in a clip's last one, 0 at text
    clips        int32 [t]      0 at text; 1, 2, … by clip
    loss_weight  float32 [t]    weight of this token as a target; 0 at speech

    Raises Mistake for a clip without frames, and where no part is a clip.
    """
    clips = [part.mel for part in parts if isinstance(part, Clip)]
    if not clips:
        raise Mistake(f"parts={len(parts)}: one at least must be a clip")
    p = r * clips[0].shape[1]
    number = 0
    columns = []
    for part in parts:
        if isinstance(part, Clip):
            number += 1
            columns.append(_speech(part.mel, r, audio, number))
        else:
            columns.append(_text(part, p))
    return {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}


def asr_example(
    mel: Float32[np.ndarray, "frames m"], transcript: Sequence[int], prompt: Prompt, *, r: int
) -> dict[str, np.ndarray]:
    """A clip in its prompt, then what is learnt: the transcript and the token that ends it."""
    answer = Words((*transcript, prompt.end), 1.0)
    return interleave([*_asked(mel, prompt), answer], r=r, audio=prompt.audio)


def asr_prompt_example(
    mel: Float32[np.ndarray, "frames m"], prompt: Prompt, *, r: int
) -> dict[str, np.ndarray]:
    """A clip in its prompt: what decoding starts from."""
    return interleave(_asked(mel, prompt), r=r, audio=prompt.audio)


def _asked(mel: np.ndarray, prompt: Prompt) -> list[Clip | Words]:
    return [Words(prompt.before, 0.0), Clip(mel), Words(prompt.after, 0.0)]


def _speech(mel: np.ndarray, r: int, audio: int, number: int) -> dict[str, np.ndarray]:
    count, m = mel.shape
    if count == 0:
        raise Mistake(f"clip {number} has 0 frames: it must have one at least")
    t = -(-count // r)
    patches = np.zeros((t * r, m), np.float32)
    patches[:count] = mel
    return {
        "tokens": np.full(t, audio, np.int32),
        "patches": patches.reshape(t, r * m),
        "frames": np.minimum(r, count - r * np.arange(t)).astype(np.int32),
        "clips": np.full(t, number, np.int32),
        "loss_weight": np.zeros(t, np.float32),
    }


def _text(words: Words, p: int) -> dict[str, np.ndarray]:
    t = len(words.ids)
    return {
        "tokens": np.array(words.ids, np.int32),
        "patches": np.zeros((t, p), np.float32),
        "frames": np.zeros(t, np.int32),
        "clips": np.zeros(t, np.int32),
        "loss_weight": np.full(t, words.weight, np.float32),
    }
