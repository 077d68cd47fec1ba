"""Compares a checkpoint with its Hugging Face original: both run one row, in float32."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from data_pipelines.audio import file_io
from data_pipelines.audio.log_mel import normalized_log_mel
from data_pipelines.audio.sound import Sound
from data_pipelines.examples.whisper_example import WhisperExampleMaker, filled_windows
from data_pipelines.text.load_tokenizer import load_tokenizer
from launch.runs.model_loader import (
    CheckpointModel,
    load_model,
    restore_whisper,
    single_device_mesh,
)
from melllm_jax.batch import Batch
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.features import Mel
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.convert.from_hf import ORIGIN_FILE
from melllm_jax.errors import Mistake
from melllm_jax.evaluation.drift import kl_divergence
from melllm_jax.features.mel_filters import SAMPLE_RATE, mel_rate
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.models.whisper import WhisperModel, whole_windows

RANDOM_TOKENS = 48  # tokens of the row where no text is given


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """Differences between two models on one row of tokens."""

    positions: int
    kl: float  # nats a token: mean of KL(theirs ‖ ours)
    kl_max: float
    top1: float  # share of positions whose likeliest token is the same
    logits: float  # largest difference over the largest value
    layers: tuple[float, ...]  # the same after each layer


def compare(
    source: pathlib.Path, target: pathlib.Path, files: Sequence[str], words: str
) -> ParityReport:
    """Run both on the same row. Raises Mistake where torch or transformers is missing."""
    try:
        from launch.evaluation import transformers_reference  # noqa: PLC0415 torch is an extra
    except ImportError as error:
        raise Mistake(
            f"check: {error.name} is missing: the original runs in torch; "
            "install the extra `parity`"
        ) from error
    whisper = run_folder.read_whisper(str(target))
    if whisper is not None:
        return _compare_whisper(source, target, whisper, files, words)
    spec = run_folder.read_spec(str(target))
    origin = _origin(target)
    waves = [_wave_at_16_khz(file, spec.mel) for file in files]
    if files and spec.model.front == "none":
        raise Mistake(f"audio={files[0]}: the model reads text alone (model.front=none)")
    # Theirs first, and gone before ours comes: each takes four bytes a weight.
    try:
        model = transformers_reference.load_reference(source, spec, lora=origin["lora"] != "drop")
    except (OSError, RuntimeError, ValueError) as error:  # what transformers raises of a folder
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Mistake(f"HF_DIR={source}: transformers cannot load it: {reason}") from error
    with jax.set_mesh(single_device_mesh()):
        ours = load_model(target, "float32")
        placeholder = ours.placeholder() if files else -1
        tokens = _token_row(
            ours, [len(normalized_log_mel(w, spec.mel)) for w in waves], words, placeholder
        )
        theirs = transformers_reference.run_reference(model, tokens, waves, placeholder)
        del model
        batch = ours.batch(tokens[None], files, placeholder)
        layers, logits = jax.device_get(jax.jit(_layers_and_logits)(ours.model, batch))
    return parity_report(theirs.layers, theirs.logits, [x[0] for x in layers], logits[0])


def _compare_whisper(
    source: pathlib.Path, target: pathlib.Path, spec: WhisperSpec, files: Sequence[str], words: str
) -> ParityReport:
    """Run both on one window, of the file or of noise, and one row: the prompt, and words."""
    from launch.evaluation import transformers_reference  # noqa: PLC0415 torch is an extra

    if len(files) > 1:
        raise Mistake(f"audio={files[1]}: a Whisper hears one sound: give one file")
    rng = np.random.default_rng(0)
    wave = rng.normal(0, 0.1, SAMPLE_RATE).astype(np.float32)
    wave = _wave_at_16_khz(files[0], spec.mel) if files else wave
    maker = WhisperExampleMaker(spec.mel, spec.window)
    mels = filled_windows(maker.sound_example(Sound(wave, SAMPLE_RATE), "audio"), spec.window)
    ids = rng.integers(0, spec.decoder.v, RANDOM_TOKENS).tolist()
    if words:
        ids = load_tokenizer(f"{target}/{run_folder.TOKENIZER}").encode(words)
    tokens = np.array([*spec.rules.prompt, *ids][: spec.decoder.positions], np.int32)
    try:
        theirs = transformers_reference.run_whisper(source, mels[:1], tokens)
    except (OSError, RuntimeError, ValueError) as error:  # what transformers raises of a folder
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Mistake(f"HF_DIR={source}: transformers cannot load it: {reason}") from error
    with jax.set_mesh(single_device_mesh()):
        model = restore_whisper(target, spec, "float32")[1]
        given = jax.device_put(mels[:1]), jax.device_put(tokens[None])
        states, layers, logits = jax.device_get(jax.jit(_whisper_layers)(model, *given))
    ours = [*states[:, 0], *layers[:, 0]]
    return parity_report(theirs.layers, theirs.logits, ours, logits[0])


def _whisper_layers(
    model: WhisperModel, mels_bfm: jax.Array, tokens_bt: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As transformers has them: what enters and leaves the layers of both, the last normed."""
    states = model.front.encoder.hidden(mels_bfm, whole_windows(mels_bfm))
    heard = model.front.encoder.stack.norm(states[-1])
    layers = model.decoder.hidden(tokens_bt, heard)
    last = model.decoder.norm(layers[-1])
    with_last = lambda layers, last: jnp.concatenate([layers[:-1], last[None]])
    return with_last(states, heard), with_last(layers, last), model.decoder.logits(last)


def _wave_at_16_khz(file: str, mel: Mel) -> np.ndarray:
    """The samples of a file. Raises Mistake where its mel is made at another rate."""
    sound = file_io.decode_sound(file)
    if mel_rate(mel, sound.rate) != SAMPLE_RATE:
        rule = "transformers' extractor takes 16 kHz alone: give such a file"
        raise Mistake(f"audio={file}: has {sound.rate} Hz: {rule}")
    return sound.at(SAMPLE_RATE).wave


def parity_report(
    their_layers: Sequence[np.ndarray],
    their_logits: np.ndarray,
    layers: Sequence[np.ndarray],
    logits: np.ndarray,
) -> ParityReport:
    """Differences between two models' layers, each [t d], and logits [t v]."""
    log_p, log_q = (
        scipy.special.log_softmax(x.astype(np.float64), axis=-1) for x in (their_logits, logits)
    )
    kl = kl_divergence(log_p, log_q)
    same = their_logits.argmax(-1) == logits.argmax(-1)
    return ParityReport(
        positions=len(kl),
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
        top1=float(same.mean()),
        logits=_relative_difference(logits, their_logits),
        layers=tuple(
            _relative_difference(*pair) for pair in zip(layers, their_layers, strict=True)
        ),
    )


def _relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _layers_and_logits(model: SpeechLM, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The output of each layer, [l b t d], and the logits [b t v]."""
    layers = model.hidden(batch)
    return layers, model.logits(model.norm(layers[-1]))


def _token_row(
    ours: CheckpointModel, frames: Sequence[int], words: str, placeholder: int
) -> np.ndarray:
    """Ids [t]: a prompt of the clips and the words, or of words drawn at random."""
    r = ours.spec.mel.r
    speech = [np.full(-(-count // r), placeholder) for count in frames]
    if words:
        return np.concatenate([*speech, load_tokenizer(ours.spec.text.tokenizer).encode(words)])
    drawn = np.random.default_rng(0).integers(0, ours.spec.model.v, RANDOM_TOKENS)
    drawn = np.where(drawn == placeholder, (placeholder + 1) % ours.spec.model.v, drawn)
    return np.concatenate([drawn[:4], *speech, drawn[4:]])


def _origin(target: pathlib.Path) -> dict[str, Any]:
    """How the checkpoint was imported. Raises Mistake where it was not."""
    path = target / ORIGIN_FILE
    if not path.exists():
        raise Mistake(
            f"CKPT_DIR={target}: holds no {ORIGIN_FILE}: check compares what was imported"
        )
    origin: dict[str, Any] = json.loads(path.read_text())
    return origin
