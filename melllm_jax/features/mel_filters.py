"""Constants of the five mel extractors, for NumPy and for the device.

Every kind is the same chain with other constants: edges, pre-emphasis, window, power spectrum or
magnitudes, triangles, floor, natural log, and y = max(log, peak - span) * gain + offset. Those of
speech recognition look through 25 ms of 16 kHz sound each 10 ms, Phi-4-MM's with settings of its
own for 8 kHz sound; those that vocoders read, through 1,024 samples each 256. Nothing here imports
JAX.
"""

import dataclasses
import functools
from typing import Any, Literal, TypeVar

from jaxtyping import Float32
import numpy as np

from melllm_jax.config.features import Mel, MelKind
from melllm_jax.errors import Mistake

SAMPLE_RATE = 16_000  # Hz
TELEPHONE_RATE = 8_000  # Hz of telephone speech, which phi4 takes as it is
HOP = 160  # samples of 16 kHz between frames: 10 ms
WIDTH = 400  # samples a frame: 25 ms
VOCODED_HOP, VOCODED_WIDTH = 256, 1024  # samples, of the kinds that vocoders read
EPS = 1e-5  # added to a band's variance, in squared log units: a silent band divides by 0.003
LN10 = float(np.log(10.0))


@dataclasses.dataclass(frozen=True, eq=False)
class MelFilters:
    """Constants of one extractor for sound of one rate."""

    hop: int  # samples between frames
    points: int  # of the Fourier transform; frames are filled up with zeros
    edge: int  # samples added at either end of the sound
    mode: Literal["reflect", "constant"]  # what they are: the sound mirrored, or zeros
    drop: int  # frames left off at the end
    shortest: int  # samples of the shortest sound with a frame
    emphasis: float  # of the sample before, taken away within each frame
    window: Float32[np.ndarray, "width"]  # the sample scale is folded in
    bank: Float32[np.ndarray, "bins m"]  # triangles, up to the last bin that any of them reads
    floor: float  # least mel power
    span: float  # nothing lies further than this under the utterance's peak, in natural log
    gain: float
    offset: float
    power: Literal[1, 2] = 2  # of each bin's magnitude, which the triangles weigh

    @property
    def width(self) -> int:
        """Samples a frame."""
        return len(self.window)

    def frames(self, samples: Any) -> Any:
        """Frames of a sound of so many samples: an int, or an array of any kind.

        There must be `shortest` samples or more.
        """
        return (samples + 2 * self.edge - self.width) // self.hop + 1 - self.drop

    def kernel(self) -> Float32[np.ndarray, "width 2 bins"]:
        """Emphasis, window and Fourier transform as one matrix: real and imaginary parts."""
        emphasised = np.eye(self.width) - self.emphasis * np.eye(self.width, k=1)
        emphasised[0, 0] -= self.emphasis  # the first sample counts as its own predecessor
        bins = np.fft.rfft(emphasised * self.window, self.points)[:, : len(self.bank)]
        return np.stack([bins.real, bins.imag], axis=1).astype(np.float32)


def mel_rate(cfg: Mel, rate: int) -> int:
    """Hz at which `cfg` takes sound of `rate` Hz: its own, or 8,000 where mel.telephone says so."""
    native = cfg.kind == "phi4" and cfg.telephone == "native"
    return rate if native and rate == TELEPHONE_RATE else cfg.rate


def check_heard_rate(cfg: Mel) -> None:
    """Raises Mistake where `cfg` is of sound at another rate than what is heard is brought to."""
    if cfg.rate != SAMPLE_RATE:
        raise Mistake(
            f"mel.kind={cfg.kind}: is of sound at {cfg.rate} Hz, and what a model hears is brought "
            f"to {SAMPLE_RATE}: vocoders alone read it"
        )


def above_floor(mels: Float32[np.ndarray, "*f m"], mel: Mel) -> Float32[np.ndarray, "*f m"]:
    """Frames in the log units of `mel`, no cell below its floor: what a vocoder of it has seen."""
    return np.maximum(mels, np.float32(mel.floor)) if mel.floor else mels


@functools.lru_cache(maxsize=16)
def make_filters(kind: MelKind, m: int, rate: int = 0) -> MelFilters:
    """The extractor `kind` with m bands, which `config.features.Mel` has found to go together.

    phi4: Phi-4-MM (SpeechLib's fbank): symmetric Hamming window, 16-bit sample scale, emphasis
    0.97, 512 points, Kaldi's mel scale from 0 to 7690 Hz with triangles straight in mel, floor 1.
    At 8 kHz (Microsoft's processing_phi4mm.py, "fillzero") the same with 256 points: bins of equal
    width, of which those from 4 kHz on, 128 to 256 of the bank, are 0.
    whisper: openai/whisper `audio.py`: periodic Hann window, 400 points, mirrored edges, the last
    frame dropped, Slaney triangles, log10 within 8 of the peak, (x + 4) / 4.
    plain: librosa 0.11's melspectrogram(n_fft=512, win_length=400, hop_length=160, window="hann",
    center=True, pad_mode="constant", power=2, htk=False, norm="slaney"), floor 1e-6, natural log.
    With 512 points, some of the lowest triangles fall between two bins where m is above about
    100: those bands stand at the floor.
    speecht5, vocos: `_vocoded_filters`.
    """
    own = Mel(kind, m).rate
    rate = rate or own
    if rate != own and (kind, rate) != ("phi4", TELEPHONE_RATE):
        raise Mistake(f"rate={rate}: {kind} takes sound of {own} Hz")
    if kind in ("speecht5", "vocos"):
        return _vocoded_filters(kind, m)
    if kind == "phi4":
        part = SAMPLE_RATE // rate
        width, points = WIDTH // part, 512 // part
        window = 32768.0 * (0.54 - 0.46 * _cosine(width, width - 1))
        edges = np.linspace(0.0, _kaldi(7690.0), m + 2)
        bank = _triangles(_kaldi(_bins(512)), edges)
        return MelFilters(
            hop=HOP // part,
            points=points,
            edge=0,
            mode="constant",
            drop=0,
            shortest=width,
            emphasis=0.97,
            window=window.astype(np.float32),
            bank=_crop(bank[: points // 2]),
            floor=1.0,
            span=np.inf,
            gain=1.0,
            offset=0.0,
        )
    hann = (0.5 - 0.5 * _cosine(WIDTH, WIDTH)).astype(np.float32)
    if kind == "whisper":
        return MelFilters(
            hop=HOP,
            points=400,
            edge=200,
            mode="reflect",
            drop=1,
            shortest=201,  # 200 samples beside the first one are mirrored
            emphasis=0.0,
            window=hann,
            bank=_crop(_slaney(m, 400)),
            floor=1e-10,
            span=8.0 * LN10,
            gain=0.25 / LN10,
            offset=1.0,
        )
    return MelFilters(
        hop=HOP,
        points=512,
        edge=200,  # 256 in librosa, whose window lies 56 samples inside the 512
        mode="constant",
        drop=0,
        shortest=1,
        emphasis=0.0,
        window=hann,
        bank=_crop(_slaney(m, 512)),
        floor=1e-6,
        span=np.inf,
        gain=1.0,
        offset=0.0,
    )


def _vocoded_filters(kind: MelKind, m: int) -> MelFilters:
    """The extractors that vocoders read: magnitudes through a periodic Hann window, mirrored edges.

    speecht5: transformers' SpeechT5FeatureExtractor of `audio_target`: 16 kHz, Slaney triangles
    from 80 to 7,600 Hz, log10, floor 1e-10.
    vocos: `MelSpectrogramFeatures` of the package vocos with padding "center": 24 kHz, triangles of
    height 1 on the HTK scale (O'Shaughnessy's) from 0 to 12 kHz, natural log, floor 1e-7.
    """
    if kind == "speecht5":
        bank, floor, gain = _slaney(m, VOCODED_WIDTH, low=80.0, high=7600.0), 1e-10, 1 / LN10
    else:
        edges = 700.0 * np.expm1(np.linspace(0.0, _kaldi(12_000.0), m + 2) / 1127.0)
        bank, floor, gain = _triangles(_bins(VOCODED_WIDTH, 24_000), edges), 1e-7, 1.0
    return MelFilters(
        hop=VOCODED_HOP,
        points=VOCODED_WIDTH,
        edge=VOCODED_WIDTH // 2,
        mode="reflect",
        drop=0,
        shortest=VOCODED_WIDTH // 2 + 1,  # as many beside the first one are mirrored
        emphasis=0.0,
        window=(0.5 - 0.5 * _cosine(VOCODED_WIDTH, VOCODED_WIDTH)).astype(np.float32),
        bank=_crop(bank),
        floor=floor,
        span=np.inf,
        gain=gain,
        offset=0.0,
        power=1,
    )


def _cosine(width: int, period: int) -> np.ndarray:
    return np.cos(2 * np.pi * np.arange(width) / period)


def _bins(points: int, rate: int = SAMPLE_RATE) -> np.ndarray:
    return np.arange(points // 2 + 1) * (rate / points)


Hertz = TypeVar("Hertz", float, np.ndarray)


def _kaldi(hertz: Hertz) -> Hertz:
    """O'Shaughnessy's mel scale, with the constants of Kaldi."""
    return 1127.0 * np.log1p(hertz / 700.0)


def _slaney(m: int, points: int, low: float = 0.0, high: float = SAMPLE_RATE / 2) -> np.ndarray:
    """Triangles of equal area [bins m] in Hz, from `low` to `high`, on Slaney's scale.

    That scale, of the Auditory Toolbox, is linear, 15 mel a kHz, below 1 kHz, and has 27 mel to a
    factor of 6.4 above.
    """
    to_mel = lambda x: 15 * x if x < 1 else 15.0 + 27.0 * np.log(x) / np.log(6.4)
    mel = np.linspace(to_mel(low / 1000.0), to_mel(high / 1000.0), m + 2)
    edges = np.where(mel < 15.0, mel / 15.0, 6.4 ** ((mel - 15.0) / 27.0)) * 1000.0
    return _triangles(_bins(points), edges) * (2.0 / (edges[2:] - edges[:-2]))


def _triangles(bins: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """[bins m]: triangle i rises from edges[i] to 1 at edges[i + 1] and falls to edges[i + 2]."""
    steps = np.diff(edges)
    rise = (bins[:, None] - edges[None, :-2]) / steps[None, :-1]
    fall = (edges[None, 2:] - bins[:, None]) / steps[None, 1:]
    return np.maximum(0.0, np.minimum(rise, fall))


def _crop(bank: np.ndarray) -> np.ndarray:
    read = np.flatnonzero(bank.any(axis=1))
    return np.ascontiguousarray(bank[: read[-1] + 1], dtype=np.float32)
