"""What makes sound of a mel: a vocoder that was trained or imported, or Griffin-Lim."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Protocol

from jaxtyping import Float32
import numpy as np

from melllm_jax.config.features import Mel
from melllm_jax.vocoders.griffin_lim import griffin_lim
from melllm_jax.vocoders.stored_vocoder import check_same_mel, load_vocoder

GRIFFIN_LIM = "Griffin-Lim, without a vocoder"


class SoundMaker(Protocol):
    """Mel in, sound out."""

    @property
    def name(self) -> str:
        """What users are told that made it."""

    @property
    def rate(self) -> int:
        """Hz of the sound."""

    def __call__(self, mel: Float32[np.ndarray, "frames m"]) -> Float32[np.ndarray, " w"]:
        """The sound of a mel in the extractor's own log units."""
        ...


@dataclasses.dataclass(frozen=True)
class NamedSoundMaker:
    """A function from mel to sound, and what it is called."""

    name: str
    rate: int
    make: Callable[[Float32[np.ndarray, "frames m"]], Float32[np.ndarray, " w"]]

    def __call__(self, mel: Float32[np.ndarray, "frames m"]) -> Float32[np.ndarray, " w"]:
        return self.make(mel)


def open_vocoder(path: str, mel: Mel) -> SoundMaker:
    """The vocoder in a folder, an import's or a run's, or Griffin-Lim where `path` is empty.

    Raises Mistake for a folder without one, and for one that reads another mel.
    """
    if not path:
        return NamedSoundMaker(GRIFFIN_LIM, mel.rate, functools.partial(griffin_lim, mel=mel))
    spec, make = load_vocoder(path)
    check_same_mel(spec, mel, f"vocoder={path}")
    return NamedSoundMaker(path, spec.rate, make)
