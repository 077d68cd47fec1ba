"""What makes sound of a mel: a vocoder that was trained or imported, or Griffin-Lim."""

from typing import Protocol

from jaxtyping import Float32
import numpy as np


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
