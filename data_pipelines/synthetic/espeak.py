"""Synthesizes a spoken corpus: generated sentences in espeak-ng's English voices.

What must hold: an utterance is a pure function of (seed, split, index), whatever was spoken before
it; and test is new on every side: its sentences are in no other split and its voices have an accent
or a variant that no other split hears. dev has new sentences in the voices of train.
"""

from collections.abc import Iterator, Mapping
import contextlib
import ctypes
import dataclasses
import json
import pathlib
import threading
import typing

from jaxtyping import Float32, Int16
import numpy as np

from data_pipelines.audio.file_io import to_flac
from data_pipelines.audio.sound import resample
from data_pipelines.synthetic.grammar import Split, sentence
from melllm_jax.errors import Fault, Mistake
from melllm_jax.features.mel_filters import SAMPLE_RATE

SPLITS: tuple[Split, ...] = typing.get_args(Split)
# Left out: whispers, robots, and the variants of "klatt 6", whose hiss comes from C's own rand().
VARIANTS, NEW_VARIANTS, ACCENTS, NEW_ACCENTS = (
    tuple(names.split())
    for names in (
        """m1 m2 m3 m5 m6 m8 f1 f3 f4 Alex Alicia Andy Annie Denis Diogo Gene Henrique Hugo Lee Mike
        aunty boris edward grandma grandpa gustave john linda marcelo michel miguel pablo paul
        quincy rob shelby steph travis zac""",
        "m4 m7 f2 f5 belinda max norbert victor",  # heard in test only
        "en-us en en-029 en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-us-nyc",  # en is British
        "en-gb-scotland",  # heard in test only
    )
)

# Of espeak-ng's speak_lib.h.
SYNCHRONOUS, DO_NOT_EXIT = 2, 1 << 15  # output mode and option of espeak_Initialize
CHUNK = 2000  # milliseconds of sound for each callback: long, as each is a call into Python
SPEED, PITCH = 1, 3  # espeak_PARAMETER
UTF8 = 1  # espeakCHARS_UTF8
CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
LOCK = threading.Lock()  # espeak-ng keeps all its state in globals


@dataclasses.dataclass(frozen=True)
class SpokenUtterance:
    """One example of the corpus."""

    id: str  # "test-000007"
    text: str
    speaker: str  # the voice: accent+variant, or the name of a natural one
    wave: Float32[np.ndarray, " w"]  # in [-1, 1] at 16 kHz


def voices(split: Split) -> tuple[str, ...]:
    """The voices of a split, as accent+variant."""
    if split != "test":
        return tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS)
    old = tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in NEW_VARIANTS)
    all_variants = VARIANTS + NEW_VARIANTS
    return old + tuple(f"{new}+{variant}" for new in NEW_ACCENTS for variant in all_variants)


def speak(text: str, voice: str, rate_wpm: int, pitch: int) -> Float32[np.ndarray, " w"]:
    """Speaks `text`: float32 in [-1, 1] at 16 kHz, bit-equal whatever was spoken before.

    voice is an accent or accent+variant, such as "en-us+f3"; rate_wpm runs from 80 to 450 words a
    minute; pitch from 0 to 99, where 50 is the voice's own. Any thread may call it; one speaks at a
    time. Raises Mistake for a voice that espeak-ng lacks, a number out of range or a text
    without a letter, and Fault where espeak-ng does not start.
    """
    for name, value, low, high in (("rate_wpm", rate_wpm, 80, 450), ("pitch", pitch, 0, 99)):
        if not low <= value <= high:
            raise Mistake(f"{name}={value}: must lie in [{low}, {high}]")
    if not any(letter.isalnum() for letter in text):
        raise Mistake(f"text={text!r}: has no letter or digit to say")
    samples, hertz = _synthesize(text, voice, rate_wpm, pitch)
    return np.clip(resample(samples.astype(np.float32) / 32768, hertz), -1, 1)


def draw_voice(split: Split, rng: np.random.Generator) -> tuple[str, int, int]:
    """A voice of the split, its rate in words a minute and its pitch, as `speak` takes them."""
    choice = voices(split)
    voice = choice[rng.integers(len(choice))]
    return voice, int(rng.integers(150, 211)), int(rng.integers(35, 66))


def speak_utterance(split: Split, index: int, seed: int = 0) -> SpokenUtterance:
    """Utterance number `index` of a split: its own sentence, voice, rate, pitch, level and noise.

    Raises Mistake where the extra `demo` is not installed.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    text = sentence(split, rng)
    voice, rate_wpm, pitch = draw_voice(split, rng)
    wave = set_level_and_noise(speak(text, voice, rate_wpm, pitch), rng)
    return SpokenUtterance(f"{split}-{index:06d}", text, voice, wave)


def speak_corpus(split: Split, count: int, seed: int = 0) -> Iterator[SpokenUtterance]:
    """The first `count` utterances of a split; a shorter corpus is the start of a longer one."""
    return (speak_utterance(split, index, seed) for index in range(count))


def write_spoken_corpus(folder: pathlib.Path, counts: Mapping[Split, int], seed: int = 0) -> None:
    """Writes the corpus as FLAC files in `folder`/audio, with SPLIT.jsonl for each split.

    Durations are in seconds, file names relative to the manifest. Splits not in `counts` are
    left unchanged.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as manifest:
            for one in speak_corpus(split, count, seed):
                name = f"audio/{one.id}.flac"
                (folder / name).write_bytes(to_flac(one.wave))
                line = {
                    "audio_filepath": name,
                    "text": one.text,
                    "duration": one.wave.size / SAMPLE_RATE,
                    "speaker": one.speaker,
                    "id": one.id,
                }
                manifest.write(json.dumps(line) + "\n")


def set_level_and_noise(
    wave_w: Float32[np.ndarray, " w"], rng: np.random.Generator
) -> Float32[np.ndarray, " w"]:
    """Speech peaking 1 to 20 dB below full scale, over white noise 20 to 45 dB below the speech."""
    level, ratio = -rng.uniform(1, 20), rng.uniform(20, 45)
    wave_w = wave_w * np.float32(10 ** (level / 20) / np.abs(wave_w).max())
    loudness = np.sqrt(np.mean(np.square(wave_w)))
    noise_w = rng.standard_normal(wave_w.size, dtype=np.float32)
    return np.clip(wave_w + noise_w * np.float32(loudness * 10 ** (-ratio / 20)), -1, 1)


def find_files() -> tuple[str, pathlib.Path]:
    """The shared library of espeak-ng and its data. Raises Mistake without the extra `demo`."""
    try:
        import espeakng_loader  # noqa: PLC0415
    except ImportError as error:
        install = 'pip install "melllm_jax[demo]"'
        raise Mistake(f"synthetic speech needs the extra demo ({error}): {install}") from error
    return espeakng_loader.get_library_path(), pathlib.Path(espeakng_loader.get_data_path())


def _synthesize(
    text: str, voice: str, rate_wpm: int, pitch: int
) -> tuple[Int16[np.ndarray, " w"], int]:
    """The 16-bit samples of a newly started espeak-ng, and their rate in Hz."""
    library, data = find_files()
    _, plus, variant = voice.partition("+")
    if plus and not (data / "voices/!v" / variant).is_file():  # espeak-ng would silently drop it
        raise Mistake(f"voice={voice!r}: espeak-ng has no variant {variant!r}")
    chunks: list[Int16[np.ndarray, " w"]] = []

    def keep(samples: typing.Any, count: int, events: typing.Any) -> int:
        if samples and count:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = CALLBACK(keep)  # must outlive the engine's use of it
    with LOCK, _engine(library, data) as (engine, hertz):
        engine.espeak_SetSynthCallback(callback)
        if engine.espeak_SetVoiceByName(voice.encode()):
            raise Mistake(f"voice={voice!r}: espeak-ng has no such voice")
        engine.espeak_SetParameter(SPEED, rate_wpm, 0)
        engine.espeak_SetParameter(PITCH, pitch, 0)
        letters = text.encode()
        engine.espeak_Synth(letters, ctypes.c_size_t(len(letters) + 1), 0, 1, 0, UTF8, None, None)
        engine.espeak_Synchronize()
    return np.concatenate(chunks), hertz


@contextlib.contextmanager
def _engine(library: str, data: pathlib.Path) -> Iterator[tuple[ctypes.CDLL, int]]:
    """espeak-ng, loaded for one text, and its sampling rate in Hz.

    The slow wobble that it gives to the pitch continues from one text to the next, even after
    espeak_Terminate: only unloading the library resets it (0.2 ms). The noise of breath would be
    seeded by the clock without espeak_ng_SetRandSeed.
    """
    engine = ctypes.CDLL(library)
    try:
        hertz = engine.espeak_Initialize(SYNCHRONOUS, CHUNK, bytes(data), DO_NOT_EXIT)
        if hertz <= 0:
            raise Fault(f"espeak-ng does not start: error {hertz} with the data in {data}")
        engine.espeak_ng_SetRandSeed(ctypes.c_long(1))
        try:
            yield engine, hertz
        finally:
            engine.espeak_Terminate()
    finally:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(engine._handle))
