"""What a whole Whisper is: sizes of its decoder, the tokens around a transcript. Plain data."""

import dataclasses

from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.model import FrontSpec
from melllm_jax.config.validation import require


@dataclasses.dataclass(frozen=True)
class WhisperDecoder:
    """Sizes of the decoder, whose width is the encoder's."""

    n: int  # decoder_attention_heads
    f: int  # decoder_ffn_dim
    l: int  # decoder_layers
    v: int  # vocab_size
    positions: int  # max_target_positions: of the prompt and the transcript

    def __post_init__(self) -> None:
        for name in ("n", "f", "l", "v", "positions"):
            size = getattr(self, name)
            require(f"decoder.{name}", size, size > 0, "must be positive")


@dataclasses.dataclass(frozen=True)
class TranscriptRules:
    """Which ids stand before a transcript, end it, and never come in it."""

    prompt: tuple[int, ...]  # before every transcript; the language detected comes after the first
    ends: tuple[int, ...]  # any of which ends a transcript
    languages: tuple[int, ...] = ()  # ids that the language is detected among; () detects none
    suppressed: tuple[int, ...] = ()  # never taken
    suppressed_first: tuple[int, ...] = ()  # not taken as the first token
    longest: int = 448  # tokens of prompt and transcript

    def __post_init__(self) -> None:
        require("rules.prompt", self.prompt, bool(self.prompt), "needs an id at least")
        require("rules.ends", self.ends, bool(self.ends), "needs an id at least")

    @property
    def prompt_length(self) -> int:
        """Tokens before a transcript, its language included."""
        return len(self.prompt) + bool(self.languages)


@dataclasses.dataclass(frozen=True)
class WhisperSpec:
    """What a Whisper is without its weights: `whisper.json` beside an imported checkpoint."""

    mel: Mel  # that the encoder hears; r is no part of it
    encoder: Whisper
    decoder: WhisperDecoder
    rules: TranscriptRules

    def __post_init__(self) -> None:
        d, n, v = self.encoder.d, self.decoder.n, self.decoder.v
        require("decoder.n", n, d % n == 0, f"heads cannot share d={d} evenly")
        rules, most = self.rules, self.decoder.positions
        for name in ("prompt", "ends", "languages", "suppressed", "suppressed_first"):
            outside = [i for i in getattr(rules, name) if not 0 <= i < v]
            require(f"rules.{name}", outside[:1], not outside, f"ids must lie in 0…{v - 1}")
        fits = rules.prompt_length < rules.longest <= most
        rule = f"must be above the prompt's {rules.prompt_length} tokens, and at most {most}"
        require("rules.longest", rules.longest, fits, rule)

    @property
    def front(self) -> FrontSpec:
        """Its encoder as a front end alone."""
        return FrontSpec("whisper", self.mel, self.encoder)

    @property
    def h(self) -> int:
        """Width of a head of the decoder."""
        return self.encoder.d // self.decoder.n

    @property
    def window(self) -> int:
        """Mel frames that are heard at once: two a position of the encoder."""
        return 2 * self.encoder.positions
