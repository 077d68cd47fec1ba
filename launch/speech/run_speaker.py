"""A run that speaks, with what makes sound of its mel."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import pathlib
from typing import Any, Literal

import jax

from data_pipelines.text.load_tokenizer import load_tokenizer
from launch.runs.model_loader import CheckpointModel, load_model, mesh_for
from launch.runs.sounds import load_sound
from launch.speech.speaking_model import Reply, SpeakingModel, Voice
from launch.speech.spoken_files import SpokenSound, speak
from launch.speech.vocoder_choice import SoundMaker, open_vocoder
from melllm_jax.checkpoints import integrity, run_folder
from melllm_jax.inference.synthesize import SpeakingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakerChoice:
    """Which run speaks, and how."""

    run: str  # its folder
    vocoder: str = ""  # folder of a vocoder; "" is Griffin-Lim
    voice: Voice | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and products
    options: SpeakingOptions = SpeakingOptions()
    seed: int = 0
    batch: int = 1  # texts at once


@dataclasses.dataclass(frozen=True)
class RunSpeaker:
    """Texts to sound; the mesh in force is the model's."""

    model: SpeakingModel
    vocoder: SoundMaker
    settings: Mapping[str, Any]  # all that decides what is heard, as JSON
    choice: SpeakerChoice

    def __call__(self, texts: Sequence[str | Reply]) -> Iterator[SpokenSound]:
        """Each text as sound, in their order."""
        how = {"batch": self.choice.batch, "seed": self.choice.seed}
        return speak(self.model, self.vocoder, texts, **how)


@contextlib.contextmanager
def open_speaker(choice: SpeakerChoice) -> Iterator[RunSpeaker]:
    """The speaker of a run, whose mesh is in force within `with`.

    Raises Mistake for a folder without a model that speaks, and for a vocoder that is none or reads
    another mel.
    """
    spec = run_folder.read_spec(choice.run)
    with jax.set_mesh(mesh_for(spec)):
        checkpoint, model = load_speaking_model(choice)
        vocoder = open_vocoder(choice.vocoder, model.mel)
        voice = choice.voice
        settings = {
            "run": choice.run,
            "checkpoint": checkpoint.step,
            "weights": _weights_digest(choice.run),
            "vocoder": vocoder.name,
            "vocoder_weights": _weights_digest(choice.vocoder) if choice.vocoder else "",
            "voice": "" if voice is None else str(voice.sound),
            "voice_digest": "" if voice is None else _sound_digest(voice),
            "voice_text": "" if voice is None else voice.text,
            "seed": choice.seed,
            "dtype": choice.dtype,
            **dataclasses.asdict(choice.options),
        }
        yield RunSpeaker(model, vocoder, settings, choice)


def load_speaking_model(choice: SpeakerChoice) -> tuple[CheckpointModel, SpeakingModel]:
    """The checkpoint of a run, and what speaks with it, on the mesh in force."""
    checkpoint = load_model(pathlib.Path(choice.run), choice.dtype)
    tokenizer = load_tokenizer(checkpoint.spec.text.tokenizer)
    return checkpoint, SpeakingModel(checkpoint, tokenizer, choice.options, choice.voice)


def _weights_digest(folder: str) -> str:
    """Hash of the newest checkpoint in a folder."""
    checkpoints = pathlib.Path(folder) / run_folder.CHECKPOINTS
    return integrity.checkpoint_digest(integrity.newest_checkpoint(checkpoints))


def _sound_digest(voice: Voice) -> str:
    return hashlib.sha256(load_sound(voice.sound).wave.tobytes()).hexdigest()[:16]
