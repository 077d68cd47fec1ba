"""The config of a run that starts from other checkpoints: what it takes over from them, and keeps.

Without JAX: sweeps read their cells and draw their pages with it.
"""

import dataclasses

from melllm_jax.checkpoints import run_folder
from melllm_jax.checkpoints.stored_front import FRONT_FIELDS, read_front_fields
from melllm_jax.config.distillation import SIZE_FIELDS
from melllm_jax.config.run import RANDOM, BaseRun, Run
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.errors import Mistake

HEAD_FIELDS = ("writes", "mel_head")  # of a model: whether and how it writes mel patches
COMPUTE_FIELDS = ("remat", "kept", "attention", "scan")  # of a model: how it is computed


DISCRIMINATOR_SIZES = ("periods", "period_channels", "resolutions", "resolution_channels")


def run_from(run: BaseRun, init: str, front: str, teacher: str = "") -> BaseRun:
    """`run` with what the folders that are given hold.

    These are the sizes of the model in `init`, the front end in `front`, and the encoder in
    `teacher` to learn from. A vocoder starts from a vocoder alone.
    """
    if isinstance(run, VocoderRun):
        for name, folder in (("init.front", front), ("distill.path", teacher)):
            if folder:
                raise Mistake(f"{name}={folder}: preset={run.name} trains a vocoder: give --init")
        return adopt_vocoder(run, init) if init else run
    assert isinstance(run, Run)
    run = adopt_model(run, init) if init else run
    run = adopt_front(run, front) if front not in ("", RANDOM) else run
    return adopt_teacher(run, teacher) if teacher else run


def adopt_model(run: Run, folder: str) -> Run:
    """`run` with the sizes, the mel and the tokenizer of the model in `folder`.

    What a checkpoint does not have stays the run's: the front end of a model that reads text
    alone, the head of one that writes text alone, LoRA where none was imported, and how the model
    is computed. A run with the conv front end takes a Conformer's stem, and a run with a Conformer
    says itself that it has one. Raises Mistake where `folder` holds no model.
    """
    spec = run_folder.read_spec(folder)
    own = {name: getattr(run.model, name) for name in (*COMPUTE_FIELDS, "speech")}
    mel = spec.mel
    if spec.model.front == "none":
        own |= {name: getattr(run.model, name) for name in FRONT_FIELDS}
    if spec.model.writes == "text":
        own |= {name: getattr(run.model, name) for name in HEAD_FIELDS}
        mel = run.mel if spec.model.front == "none" else mel
    if {spec.model.front, run.model.front} == {"conv", "conformer"}:
        own |= {"front": run.model.front}
        if spec.model.front == "conv":
            own |= {"conformer": run.model.conformer}
    lora = run.lora
    if spec.lora.r:
        lora = dataclasses.replace(spec.lora, dropout=run.lora.dropout)
    theirs = {x: getattr(spec.text, x) for x in ("tokenizer", "template", "placeholder")}
    text = dataclasses.replace(run.text, **theirs)
    model = dataclasses.replace(spec.model, **own)
    init = dataclasses.replace(run.init, path=folder)
    return dataclasses.replace(run, model=model, mel=mel, lora=lora, text=text, init=init)


def adopt_front(run: Run, folder: str) -> Run:
    """`run` with the front end in `folder`: its kind, its sizes and its mel.

    The token rate stays the run's where an encoder alone was imported, which has none. A run with
    the whisper_conv front end takes the convolutions of a Whisper. Raises Mistake where `folder`
    holds no front end.
    """
    fields, mel = read_front_fields(folder)
    if (fields["front"], run.model.front) == ("whisper", "whisper_conv"):
        fields["front"] = run.model.front
    if run_folder.read_front(folder) is not None:
        mel = dataclasses.replace(mel, r=run.mel.r)
    model = dataclasses.replace(run.model, **fields)
    init = dataclasses.replace(run.init, front=folder)
    return dataclasses.replace(run, model=model, mel=mel, init=init)


def adopt_teacher(run: Run, folder: str) -> Run:
    """`run` with the encoder in `folder` as its teacher, and the mel that this hears.

    The token rate stays the run's where the teacher leaves a choice. Raises Mistake where `folder`
    holds none.
    """
    fields, mel = read_front_fields(folder, "distill.path")
    kind = fields["front"]
    if kind not in SIZE_FIELDS:
        raise Mistake(
            f'distill.path={folder}: its front end "{kind}" is no teacher: '
            f"one is {' or '.join(SIZE_FIELDS)} (convert import --front conformer)"
        )
    sizes = {name: fields[name] for name in SIZE_FIELDS[kind]}
    distill = dataclasses.replace(run.distill, teacher=kind, path=folder, **sizes)
    if run.mel.r in distill.traits.rates:
        mel = dataclasses.replace(mel, r=run.mel.r)
    return dataclasses.replace(run, mel=mel, distill=distill)


def adopt_vocoder(run: VocoderRun, folder: str) -> VocoderRun:
    """`run` with the sizes and the mel of the vocoder that was trained in `folder`.

    The discriminators are those of its training. Raises Mistake where `folder` holds no such run.
    """
    imported = run_folder.read_vocoder(folder) is not None and not run_folder.holds_run(folder)
    if imported:
        raise Mistake(f"init={folder}: holds a vocoder without discriminators: give a run's folder")
    other = run_folder.read_any_run(folder)
    if not isinstance(other, VocoderRun):
        raise Mistake(f"init={folder}: holds no vocoder that was trained here")
    sizes = {name: getattr(other.adversarial, name) for name in DISCRIMINATOR_SIZES}
    return dataclasses.replace(
        run,
        vocoder=other.vocoder,
        mel=other.mel,
        adversarial=dataclasses.replace(run.adversarial, **sizes),
        init=dataclasses.replace(run.init, path=folder),
    )
