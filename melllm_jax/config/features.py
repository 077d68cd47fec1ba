"""How sound becomes mel patches and how words become token ids: plain data, no JAX."""

import dataclasses
import math
from typing import Literal

from melllm_jax.config.validation import LATER, WHERE, require

MelKind = Literal["phi4", "whisper", "plain", "speecht5", "vocos"]
# Of the extractors that vocoders read: Hz of the sound, and samples from a frame to the next.
RATES_AND_HOPS = {"speecht5": (16_000, 256), "vocos": (24_000, 256)}
BANDS = {"phi4": (80,), "whisper": (80, 128), "speecht5": (80,), "vocos": (100,)}


@dataclasses.dataclass(frozen=True)
class Mel:
    """How sound becomes mel patches."""

    kind: MelKind = "phi4"  # whose extractor, to the constant
    m: int = 80  # mel bands
    r: int = 8  # frames a position: of 10 ms each, the token rate is 100 / r Hz
    normalize: Literal["none", "utterance", "global"] = "utterance"  # mean and variance by band
    mean: tuple[float, ...] = ()  # global: m means, in the extractor's log units
    invstd: tuple[float, ...] = ()  # global: m inverse standard deviations
    telephone: Literal["resampled", "native"] = dataclasses.field(
        default="resampled", metadata=LATER
    )  # sound of 8 kHz: brought to 16 kHz, or taken as it is, as Phi-4-MM does; by phi4 alone
    floor: float = dataclasses.field(
        default=0.0, metadata=LATER
    )  # least value of a cell, in the extractor's log units; 0: the extractor's own

    def __post_init__(self) -> None:
        require("mel.r", self.r, self.r in (1, 2, 4, 8, 16), "must be 1, 2, 4, 8 or 16")
        bands = BANDS.get(self.kind, range(8, 257))
        require("mel.m", self.m, self.m in bands, f"is no band count of {self.kind}")
        for name in ("mean", "invstd"):
            count = len(getattr(self, name))
            require(
                f"mel.{name}", f"{count} values", count in (0, self.m), f"needs {self.m} values"
            )
        finite = -math.inf < self.floor <= 0
        require("mel.floor", self.floor, finite, "must be below 0, or 0 for none")

    @property
    def rate(self) -> int:
        """Hz of the sound that it is of; phi4 and mel.telephone="native" takes 8,000 as well."""
        return RATES_AND_HOPS.get(self.kind, (16_000, 160))[0]

    @property
    def hop(self) -> int:
        """Samples from one frame to the next, at `rate`."""
        return RATES_AND_HOPS.get(self.kind, (16_000, 160))[1]

    @property
    def hop_seconds(self) -> float:
        """Seconds from one frame to the next: 0.01 of what speech recognition reads."""
        return self.hop / self.rate

    @property
    def p(self) -> int:
        """Width of one flattened patch."""
        return self.r * self.m


@dataclasses.dataclass(frozen=True)
class Text:
    """How words become token ids, and what stands around the sound."""

    tokenizer: str = dataclasses.field(default="bytes", metadata=WHERE)  # "bytes", or a path
    digest: str = ""  # content hash of the tokenizer, filled in when a run starts
    template: Literal["plain", "phi3", "phi4", "chat"] = (
        "plain"  # of the ASR prompt; chat: the chat template that the tokenizer's files hold
    )
    instruction: str = "Transcribe the audio clip into text."  # unused by "plain"
    # What asks for the words that follow it to be spoken; unused by "plain".
    request: str = dataclasses.field(default="Say this text.", metadata=LATER)
    placeholder: int = dataclasses.field(
        default=-1, metadata=LATER
    )  # id at the positions of a clip; -1: that of the tokenizer's token for it, or a free row
    missing: Literal["refused", "added"] = dataclasses.field(
        default="refused", metadata=LATER
    )  # special tokens of plain, phi3 and phi4 that the tokenizer lacks: added as rows of their own

    def __post_init__(self) -> None:
        require("text.placeholder", self.placeholder, self.placeholder >= -1, "is no id")
