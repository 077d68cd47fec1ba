"""A checkpoint that speaks: texts in, mel out, several at once; or questions in, answers out."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import time
import zlib

import jax
from jaxtyping import Float, Float32
import numpy as np

from data_pipelines.examples.interleave import Clip, Words, fill_turns, interleave
from data_pipelines.examples.tts_example import tts_prompt_columns
from data_pipelines.reject import Unusable
from data_pipelines.text.prompt import end_id, placeholder_id
from data_pipelines.text.tokenizer import Tokenizer
from data_pipelines.text.turn_prompt import turn_ids
from data_pipelines.text.turns import CLIP, Turn
from launch.runs.model_loader import CheckpointModel
from launch.runs.sounds import SoundSource, load_mel
from launch.runs.transcriber import ANSWER_TOKENS, round_up_rows
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.features.mel_filters import EPS, above_floor
from melllm_jax.inference.generate import Decoder, prompt_batch
from melllm_jax.inference.synthesize import Speaker, SpeakingOptions
from melllm_jax.models.speaking_lm import SpeakingLM

_SHOWN = 40  # characters of a text that a message shows


@dataclasses.dataclass(frozen=True)
class Voice:
    """A sound to be gone on from, and what is said in it."""

    sound: SoundSource
    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise Mistake("voice_text='': a voice needs what is said in it")


@dataclasses.dataclass(frozen=True)
class Question:
    """What a model is asked: a sound that it hears, words, or the one before the other."""

    sound: SoundSource | None = None
    words: str = ""

    def __post_init__(self) -> None:
        if self.sound is None and not self.words.strip():
            raise Mistake("question: is empty: give a sound, words or both")


@dataclasses.dataclass(frozen=True)
class Reply:
    """The words of an answer, and the columns from which they are spoken: all that came before."""

    text: str
    columns: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SpokenMel:
    """What a model made of one text."""

    text: str
    mel: Float32[np.ndarray, "frames m"]  # in the extractor's own log units
    stops: Float32[np.ndarray, "patches"]  # probability that each patch is the last
    stopped: bool  # the model ended it; otherwise the limit did
    broken: bool  # it ended at a patch that was not finite
    seconds: float  # to write it: of a batch, each row's share
    hop_seconds: float  # from one frame to the next

    @property
    def flags(self) -> dict[str, bool]:
        """What is to be known of it besides its sound."""
        return {"stopped": self.stopped, "broken": self.broken}


class SpeakingModel:
    """Speaks texts with a checkpoint; each shape of a batch compiles once.

    The mesh in force must be the model's wherever it is used. Raises Mistake for a model that
    writes text alone, and for one whose mel cannot be brought back to the extractor's units.
    """

    def __init__(
        self,
        checkpoint: CheckpointModel,
        tokenizer: Tokenizer,
        options: SpeakingOptions,
        voice: Voice | None = None,
    ) -> None:
        spec = checkpoint.spec
        if not isinstance(checkpoint.model, SpeakingLM):
            rule = 'has no head that speaks: it was trained with model.writes="text"'
            raise Mistake(f"run={checkpoint.folder}: {rule}")
        self._spec, self._tokenizer, self._options = spec, tokenizer, options
        self._model, self._room = checkpoint.model, _positions(checkpoint)
        self._speaker = Speaker(checkpoint.model, options)
        self._voice, self._statistics = None, _statistics(spec.mel)
        if voice is not None:
            raw = load_mel(voice.sound, None, dataclasses.replace(spec.mel, normalize="none"))
            if spec.mel.normalize == "utterance":
                self._statistics = raw.mean(axis=0), 1 / np.sqrt(raw.var(axis=0) + EPS)
            mean, invstd = self._statistics or (0.0, 1.0)
            self._voice = voice.text, ((raw - mean) * invstd).astype(np.float32)
        elif spec.mel.normalize == "utterance":
            rule = "each clip had its own mean: give --voice, whose own is taken"
            raise Mistake(f'mel.normalize="utterance": {rule}')

    @property
    def mel(self) -> Mel:
        """The mel that it writes, in the extractor's own units."""
        return dataclasses.replace(self._spec.mel, normalize="none", mean=(), invstd=())

    @property
    def patch_seconds(self) -> float:
        """Seconds of a patch."""
        return self._spec.mel.r * self._spec.mel.hop_seconds

    def check(self, text: str) -> None:
        """Raises Mistake for a text that the model cannot be asked to say."""
        self._columns(text)

    def reply(self, question: Question) -> Reply:
        """The likeliest words of the model's answer, which `say` and `stream` speak after them.

        Raises Mistake for a question that its template has no room for, that the vocabulary lacks
        or that is too long, and for a sound where the model has no front end.
        """
        asked = self._asked(question)
        mel, audio = self._spec.mel, placeholder_id(self._tokenizer, self._spec.text)
        columns = interleave(asked, r=mel.r, m=mel.m, audio=audio)
        self._check_room("question", columns)
        rows = round_up_rows(1, jax.sharding.get_mesh().size)
        limits = np.zeros(rows, np.int32)
        limits[0] = min(ANSWER_TOKENS, self._room[0] - len(columns["tokens"]))
        out = jax.device_get(self._decoder(prompt_batch([columns], rows), limits))
        ids = out.tokens[0, : out.lengths[0]].tolist()
        said = Words((*ids, audio), 1.0)  # the placeholder begins speech, as in training
        columns = interleave([*asked, said], r=mel.r, m=mel.m, audio=audio)
        return Reply(self._tokenizer.decode(ids), columns)

    @functools.cached_property
    def _decoder(self) -> Decoder:
        """Writes an answer until the model ends it, or begins to speak."""
        own = self._tokenizer, self._spec.text
        return Decoder(self._model, (end_id(*own), placeholder_id(*own)))

    def _asked(self, question: Question) -> list[Clip | Words]:
        """All that comes before the answer."""
        mels = list[Float32[np.ndarray, "_ m"]]()
        if question.sound is not None:
            if self._spec.model.front == "none":
                raise Mistake('model.front="none": the model hears nothing: ask it in words')
            mels.append(load_mel(question.sound, None, self._spec.mel))
        words = [question.words] if question.words.strip() else []
        turns = (Turn("user", (*[CLIP] * len(mels), *words)), Turn("assistant", ("",)))
        try:
            ids = turn_ids(self._tokenizer, self._spec.text, turns, answered=False)
        except Unusable as error:
            raise Mistake(f"question: {error}") from error
        return fill_turns(ids, mels)

    def say(
        self, texts: Sequence[str | Reply], *, batch: int = 1, seed: int = 0
    ) -> Iterator[SpokenMel]:
        """What the model makes of each text, in their order, `batch` at once.

        What it draws depends on `seed` and on the text, not on what is said beside it. Raises
        Mistake for a text that is empty, that the vocabulary lacks, or that is too long.
        """
        rows = round_up_rows(batch, jax.sharding.get_mesh().size)
        for start in range(0, len(texts), rows):
            part = texts[start : start + rows]
            columns = [self._columns(text) for text in part]
            limits, seeds = np.zeros((2, rows), np.int32)
            for i, text in enumerate(map(_words, part)):
                limits[i] = self._limit(text, len(columns[i]["tokens"]))
                seeds[i] = _seed(seed, text)
            began, compiled = time.perf_counter(), self._speaker.functions.seconds
            out = jax.device_get(self._speaker(prompt_batch(columns, rows), limits, seeds))
            patches = self._speaker.refine(out)
            spent = time.perf_counter() - began - (self._speaker.functions.seconds - compiled)
            for i, text in enumerate(map(_words, part)):
                length = int(out.lengths[i])
                yield SpokenMel(
                    text,
                    self._raw(patches[i, :length].reshape(-1, self._spec.mel.m)),
                    out.stops[i, :length],
                    bool(out.stopped[i]),
                    bool(out.broken[i]),
                    spent / len(part),
                    self.mel.hop_seconds,
                )

    def stream(
        self, text: str | Reply, *, seconds: float, seed: int = 0
    ) -> Iterator[tuple[SpokenMel, Float32[np.ndarray, "frames m"]]]:
        """What the model has made of a text so far, and its new frames, every so many seconds.

        Together the frames are those of `say`. Raises Mistake as that does, for no seconds, and for
        a model whose post-net reads later frames.
        """
        if not seconds > 0:
            raise Mistake(f"stream={seconds:g}: must be above 0 seconds")
        every = max(1, round(seconds / self.patch_seconds))
        columns = self._columns(text)
        text = _words(text)
        limit = self._limit(text, len(columns["tokens"]))
        prompt, began = prompt_batch([columns], 1), time.perf_counter()
        frames = np.zeros((0, self._spec.mel.m), np.float32)
        for patches, out in self._speaker.stream_row(prompt, limit, _seed(seed, text), every):
            new = self._raw(patches.reshape(-1, self._spec.mel.m))
            frames = np.concatenate([frames, new])
            stops = np.asarray(out.stops)[0, : int(out.lengths[0])]
            flags = bool(out.stopped[0]), bool(out.broken[0])
            spent = time.perf_counter() - began
            yield SpokenMel(text, frames, stops, *flags, spent, self.mel.hop_seconds), new

    def _columns(self, text: str | Reply) -> Mapping[str, np.ndarray]:
        shown = _words(text)
        shown = repr(shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…")
        if isinstance(text, Reply):
            self._check_room(f"answer={shown}", text.columns)
            return text.columns
        if not text.strip():
            raise Mistake(f"text={shown}: is empty: must hold words")
        try:
            own = self._spec.text, self._spec.mel
            columns = tts_prompt_columns(self._tokenizer, *own, text, self._voice)
        except Unusable as error:
            raise Mistake(f"text={shown}: {error}") from error
        self._check_room(f"text={shown}", columns)
        return columns

    def _check_room(self, name: str, columns: Mapping[str, np.ndarray]) -> None:
        taken, (longest, field) = len(columns["tokens"]), self._room
        if taken >= longest:
            rule = f"the model has {longest} ({field}), and needs room for what it says"
            raise Mistake(f"{name}: takes {taken} positions: {rule}")

    def _limit(self, text: str, taken: int) -> int:
        most = self._options.limit(text, self.patch_seconds)
        return min(most, self._room[0] - taken)

    def _raw(self, mel: Float[np.ndarray, "frames m"]) -> Float32[np.ndarray, "frames m"]:
        mean, invstd = self._statistics or (np.float32(0.0), np.float32(1.0))
        return above_floor((mel / invstd + mean).astype(np.float32), self._spec.mel)


def _positions(checkpoint: CheckpointModel) -> tuple[int, str]:
    """Positions that the model knows, and the field that says so: a run's are those of its rows."""
    folder = str(checkpoint.folder)
    if run_folder.holds_run(folder):
        return run_folder.read_run(folder).data.t, "data.t"
    return checkpoint.spec.model.rope.longest, "model.rope.longest"


def _words(text: str | Reply) -> str:
    return text.text if isinstance(text, Reply) else text


def _seed(seed: int, text: str) -> int:
    """The seed of a text's own draws, whatever is said beside it."""
    return zlib.crc32(f"{seed} {text}".encode()) >> 1


def _statistics(mel: Mel) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and inverse deviation of each band, where the mel was normalised by a corpus's."""
    if mel.normalize != "global":
        return None
    return np.array(mel.mean, np.float32), np.array(mel.invstd, np.float32)
