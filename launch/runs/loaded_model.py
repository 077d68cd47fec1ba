"""A checkpoint in memory that is asked: for the text of sound, and for scores."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NoReturn, overload

import jax
from jaxtyping import Float, Int32
import numpy as np

from data_pipelines.examples.interleave import asr_prompt_columns
from data_pipelines.examples.whisper_example import WhisperExampleMaker
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.prompt import asr_prompt
from data_pipelines.text.text_prompt import ChatUse
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs.model_loader import CheckpointModel
from launch.runs.recognizer import (
    check_hears,
    imported_run,
    prompt_examples,
)
from launch.runs.sounds import (
    SoundSource,
    list_sounds,
    load_sound,
    sound_name,
    sound_utterance,
)
from launch.runs.text_generator import TextGenerator
from launch.runs.transcriber import (
    Transcriber,
    TranscribesSounds,
    Transcript,
    WhisperTranscriber,
    round_up_rows,
)
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.model import ModelSpec
from melllm_jax.config.run import Run
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.errors import Mistake
from melllm_jax.inference.sampling import GREEDY, GREEDY_UNGUARDED, DecodingOptions
from melllm_jax.models.parameters import split_model
from melllm_jax.models.whisper import WhisperModel


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel(TranscribesSounds):
    """A checkpoint in memory, laid out over `mesh`. `launch.api.load` makes it.

    Each shape of a question compiles once; what was compiled is kept, and nothing else changes.
    """

    checkpoint: CheckpointModel  # the model itself, which computes under `mesh`
    mesh: jax.sharding.Mesh  # of the devices that hold its weights
    _transcribers: dict[DecodingOptions, Transcriber] = dataclasses.field(
        default_factory=dict, repr=False
    )
    _generators: dict[DecodingOptions, TextGenerator] = dataclasses.field(
        default_factory=dict, repr=False
    )

    @property
    def folder(self) -> pathlib.Path:
        """The folder that it was loaded from."""
        return self.checkpoint.folder

    @property
    def spec(self) -> ModelSpec:
        """Sizes of the model, its mel, its text and its LoRA."""
        return self.checkpoint.spec

    @property
    def step(self) -> int:
        """Updates after which it was saved; 0 for an import."""
        return self.checkpoint.step

    @functools.cached_property
    def run(self) -> Run:
        """The run that trained it. Raises Mistake for an imported checkpoint, which has none."""
        return run_folder.read_run(str(self.folder))

    @functools.cached_property
    def _speech_run(self) -> Run:
        """The run, or what stands for it in an import. Raises Mistake where it hears nothing."""
        check_hears(str(self.folder), self.spec)
        if run_folder.holds_run(str(self.folder)):
            return self.run
        return imported_run(str(self.folder), self.spec)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Its text to ids, and back. Raises Mistake where the folder has none."""
        return load_tokenizer(self.spec.text.tokenizer)

    @property
    def params(self) -> dict[str, jax.Array]:
        """The weights by name, such as "stack.blocks.attn.q", in the dtype of `load`."""
        return split_model(self.checkpoint.model)[1]

    def transcripts(
        self,
        sounds: Sequence[SoundSource],
        *,
        rate: int | None = None,
        batch: int = 1,
        decoding: DecodingOptions = GREEDY,
    ) -> list[Transcript]:
        """See `TranscribesSounds`."""
        run = self._speech_run
        rows = round_up_rows(batch, self.mesh.size)
        utterances = [sound_utterance(sound, rate, run.mel) for sound in list_sounds(sounds)]
        examples = prompt_examples(utterances, run, self.tokenizer)
        with jax.set_mesh(self.mesh):
            if decoding not in self._transcribers:
                self._transcribers.clear()  # each holds the layers once more
                model = self.checkpoint.in_dtype(run.optim.compute)
                self._transcribers[decoding] = Transcriber(model, self.tokenizer, run, decoding)
            return list(self._transcribers[decoding](examples, rows))

    @overload
    def generate(self, prompt: str, **how: Any) -> str: ...

    @overload
    def generate(self, prompt: list[str] | tuple[str, ...], **how: Any) -> list[str]: ...

    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...],
        *,
        tokens: int = 256,
        batch: int = 1,
        seed: int = 0,
        chat: ChatUse = "auto",
        system: str = "",
        decoding: DecodingOptions = GREEDY_UNGUARDED,
    ) -> str | list[str]:
        """What the model writes after a prompt as a str, or after each of a list as a list of str.

        At most `tokens` tokens each; the text is that of `melllm generate`, whose flags the other
        arguments are. Raises Mistake for a prompt that cannot be used.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        with jax.set_mesh(self.mesh):
            if decoding not in self._generators:
                self._generators.clear()  # each holds the layers once more
                self._generators[decoding] = TextGenerator(
                    self.checkpoint, self.tokenizer, decoding
                )
            answer = self._generators[decoding]
            how: dict[str, Any] = {"batch": batch, "seed": seed, "chat": chat, "system": system}
            texts = [found.text for found in answer(prompts, tokens, **how)]
        return texts[0] if isinstance(prompt, str) else texts

    def prompt(
        self, sound: SoundSource, text: str = "", *, rate: int | None = None
    ) -> Int32[np.ndarray, "t"]:
        """Ids [t] of the question what a sound says, and of the beginning of the answer, `text`.

        The placeholder stands at each position of the sound, which `logits(ids, sound)` fills.
        Raises Mistake as `transcribe` does.
        """
        frames = self.checkpoint.mels(list_sounds(sound), rate)[0]
        asked = asr_prompt(self.tokenizer, self.spec.text)
        ids = asr_prompt_columns(frames, asked, r=self.spec.mel.r)["tokens"]
        words = self.tokenizer.encode(text) if text else []
        return np.concatenate([ids, np.array(words, np.int32)])

    def logits(
        self,
        tokens: Any,
        sounds: SoundSource | Sequence[SoundSource] = (),
        *,
        rate: int | None = None,
        audio_token: int | None = None,
    ) -> Float[np.ndarray, "*b t v"]:
        """Scores of the token after each position, float32: ids [t] to [t v], [b t] to [b t v].

        Each row of ids is a prompt of its own. Sound stands where the ids have the placeholder
        (`audio_token`; by default the checkpoint's own), ceil(frames / r) times a clip, and the
        clips come in the order of their placeholders. The scores are those of `melllm logits`.
        Raises Mistake for ids beyond the vocabulary, and for clips that do not fit.
        """
        ids = np.asarray(tokens)
        rows = ids[None] if ids.ndim == 1 else ids
        with jax.set_mesh(self.mesh):
            scores = self.checkpoint.logits(rows, list_sounds(sounds), audio_token, rate)
        return scores.reshape(*ids.shape, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedWhisper(TranscribesSounds):
    """A Whisper in memory, laid out over `mesh`: it transcribes, and does nothing else."""

    folder: pathlib.Path  # that it was loaded from
    model: WhisperModel  # which computes under `mesh`
    mesh: jax.sharding.Mesh  # of the devices that hold its weights
    step: int  # updates after which it was saved; 0 for an import
    _transcribers: dict[DecodingOptions, WhisperTranscriber] = dataclasses.field(
        default_factory=dict, repr=False
    )

    @property
    def spec(self) -> WhisperSpec:
        """Sizes of the model, its mel, and the tokens around a transcript."""
        return self.model.spec

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Its text to ids, and back. Raises Mistake where the folder has none."""
        return load_tokenizer(f"{self.folder}/{run_folder.TOKENIZER}")

    @property
    def params(self) -> dict[str, jax.Array]:
        """The weights by name, such as "decoder.blocks.attn.q", in the dtype of `load`."""
        return split_model(self.model)[1]

    def transcripts(
        self,
        sounds: Sequence[SoundSource],
        *,
        rate: int | None = None,
        batch: int = 1,
        decoding: DecodingOptions = GREEDY,
    ) -> list[Transcript]:
        """See `TranscribesSounds`. Sound of over 30 s is cut into windows."""
        rows = round_up_rows(batch, self.mesh.size)
        make = WhisperExampleMaker(self.spec.mel, self.spec.window).sound_example
        examples = [make(load_sound(x, rate), sound_name(x)) for x in list_sounds(sounds)]
        with jax.set_mesh(self.mesh):
            if decoding not in self._transcribers:
                self._transcribers.clear()  # each holds the layers once more
                transcriber = WhisperTranscriber(self.model, self.tokenizer, decoding)
                self._transcribers[decoding] = transcriber
            return list(self._transcribers[decoding](examples, rows))

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        """Raises Mistake, as do `prompt` and `logits`: a Whisper is asked nothing."""
        raise Mistake(run_folder.whisper_alone(str(self.folder)))

    prompt = logits = generate
