"""`melllm convert`: checkpoints from and to Hugging Face's layout, and whether both agree."""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import time
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from data_pipelines.text.load_tokenizer import load_tokenizer
from launch.evaluation import checkpoint_parity
from launch.runs import sound_token
from launch.runtime import malloc
from launch.terminal.flags import parse
from launch.terminal.number_format import format_bytes
from launch.terminal.progress_bar import byte_progress
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.model import FrontSpec, ModelSpec
from melllm_jax.config.vocoder import VocoderSpec
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.convert import adapter_tensors, from_hf, to_hf, vocoder_to_hf, whisper_to_hf
from melllm_jax.errors import Mistake

HF = Annotated[str, Positional, arg(metavar="HF_DIR")]
CKPT = Annotated[pathlib.Path, Positional, arg(metavar="CKPT_DIR")]


@dataclasses.dataclass(frozen=True)
class ImportCheckpointArguments:
    """Turn a checkpoint of safetensors into a checkpoint of ours, block by block.

    Llama 2 and 3, SmolLM2, Mistral, Qwen2, 2.5 and 3, Phi-3 to Phi-4-mini, Phi-4-multimodal in
    Microsoft's layout or transformers', and Whisper; vocoders: HiFi-GAN as SpeechT5HifiGan and
    Vocos. Tokenizer files travel along.
    """

    source: HF  # folder with config.json and *.safetensors, or a name on the hub
    target: CKPT  # folder to be made
    lora: Literal["keep", "merge", "drop"] = "keep"  # Phi-4-MM's speech adapter, or PEFT's beside
    front: Literal["conv", "conformer"] = "conv"  # of its encoder the conv stem, or all of it
    json: bool = False  # print one JSON object on standard output and nothing else


@dataclasses.dataclass(frozen=True)
class ExportCheckpointArguments:
    """Write a checkpoint, of training or imported, as safetensors that transformers loads.

    With the conformer front end it is a Phi4MultimodalForCausalLM, with the conv front end one
    without Conformer blocks (num_blocks 0); without front end the class that it came from; a
    HiFi-GAN is a SpeechT5HifiGan. Vision is left out.
    """

    source: CKPT  # folder of a run, or of an import
    target: Annotated[pathlib.Path, Positional, arg(metavar="HF_DIR")]  # folder to be made
    lora: Literal["keep", "merge", "drop"] = "keep"  # keep: as a PEFT adapter in speech-lora/
    front: Literal["keep", "drop"] = "keep"  # drop: the LLM alone
    dtype: to_hf.DtypeChoice = "stored"  # of the numbers; stored: as they are in the checkpoint
    json: bool = False  # print one JSON object on standard output and nothing else


@dataclasses.dataclass(frozen=True)
class CheckCheckpointArguments:
    """Run the original in torch and the import in JAX, and say how far they are apart.

    In float32, on one row of random tokens or of TEXT, and sound if given (of a Whisper noise, if
    not); theirs runs first, each takes four bytes a weight. Fails where the mean KL divergence of a
    token exceeds the bound.
    """

    source: HF  # what was imported: a folder, or a name on the hub
    target: CKPT  # what came of it
    audio: tuple[str, ...] = ()  # sound files that are put at the placeholders
    text: str = ""  # by default 48 random tokens
    bound: float = 1e-6  # nats: mean KL divergence a token above which the check fails
    json: bool = False  # print one JSON object on standard output and nothing else


def import_command(argv: Sequence[str]) -> int:
    """`melllm convert import HF_DIR CKPT_DIR`."""
    return _run(ImportCheckpointArguments, import_checkpoint, "import", argv)


def export_command(argv: Sequence[str]) -> int:
    """`melllm convert export CKPT_DIR HF_DIR`."""
    return _run(ExportCheckpointArguments, export_checkpoint, "export", argv)


def check_command(argv: Sequence[str]) -> int:
    """`melllm convert check HF_DIR CKPT_DIR`."""
    return _run(CheckCheckpointArguments, check_checkpoint, "check", argv)


def _run(
    kind: type[Any], action: Callable[[Any], dict[str, Any]], name: str, argv: Sequence[str]
) -> int:
    """Run an action and print its answer, in words or as JSON: the exit status."""
    arguments = parse(kind, argv, prog=f"melllm convert {name}")
    answer = action(arguments)
    text, status = answer.pop("text"), answer.pop("status", 0)
    print(json.dumps(answer) if arguments.json else text)
    return int(status)


def import_checkpoint(arguments: ImportCheckpointArguments) -> dict[str, Any]:
    """Import a checkpoint: the figures of what was read, written and left out."""
    malloc.keep_freed_memory()  # blocks come and go: their pages need not be cleared each time
    began = time.perf_counter()
    plan = from_hf.plan_import(local_folder(arguments.source), arguments.lora, arguments.front)
    _check_vocabulary(plan)
    with byte_progress(plan.bytes) as moved:
        from_hf.import_checkpoint(plan, arguments.target, moved)
    seconds = time.perf_counter() - began
    left = {why: len(names) for why, names in plan.left_out.items()}
    lines = [
        f"{len(plan.tensors)} tensors, {format_bytes(plan.bytes)}, in {seconds:.1f} s: "
        f"{arguments.target}",
        *(f"left out, {why}: {count} tensors" for why, count in left.items()),
    ]
    return {
        "checkpoint": str(arguments.target),
        "tensors": len(plan.tensors),
        "merged": len(plan.merged),
        "bytes": plan.bytes,
        "seconds": seconds,
        "left_out": dict(plan.left_out),
        "text": "\n".join(lines),
    }


def _check_vocabulary(plan: from_hf.ImportPlan) -> None:
    """Raises Mistake where the tokenizer has ids for which the model has no row.

    A tokenizer that we cannot read travels along all the same: what needs it says why not.
    """
    spec = plan.spec
    if (
        isinstance(spec, FrontSpec | VocoderSpec)
        or isinstance(spec, ModelSpec)
        and spec.text.tokenizer == "bytes"
    ):
        return
    try:
        size = load_tokenizer(plan.source).size
    except Mistake:
        return
    v = spec.decoder.v if isinstance(spec, WhisperSpec) else spec.model.v
    if size > v:
        raise Mistake(f"{plan.source}: vocab_size={v}: its tokenizer has {size} ids")


def export_checkpoint(arguments: ExportCheckpointArguments) -> dict[str, Any]:
    """Export a checkpoint: the figures of what was written."""
    malloc.keep_freed_memory()
    folder = str(arguments.source)
    whole = run_folder.read_whisper(folder) or run_folder.read_vocoder(folder)
    if whole is not None:
        return _export_whole(arguments, whole)
    began = time.perf_counter()
    plan = to_hf.plan_export(
        arguments.source,
        arguments.lora,
        arguments.front,
        arguments.dtype,
        _sound_token(arguments.source),
    )
    with byte_progress(plan.bytes) as moved:
        to_hf.export_checkpoint(plan, arguments.target, moved)
    seconds = time.perf_counter() - began
    count = len(plan.main) + len(plan.adapter)
    lines = [f"{count} tensors, {format_bytes(plan.bytes)}, in {seconds:.1f} s: {arguments.target}"]
    if plan.adapter and plan.spec.lora.at == "speech":
        lines.append(
            f"{adapter_tensors.FOLDER}: switch it on at positions of speech alone, as it was "
            "trained (lora.at=speech); PEFT by itself adds it at all"
        )
    return {
        "checkpoint": str(arguments.target),
        "tensors": len(plan.main),
        "adapter": len(plan.adapter),
        "adapter_at": plan.spec.lora.at if plan.adapter else None,
        "merged": len(plan.merged),
        "bytes": plan.bytes,
        "seconds": seconds,
        "text": "\n".join(lines),
    }


def _export_whole(
    arguments: ExportCheckpointArguments, spec: WhisperSpec | VocoderSpec
) -> dict[str, Any]:
    """`export_checkpoint` of a Whisper or a vocoder."""
    what = "Whisper" if isinstance(spec, WhisperSpec) else "vocoder"
    for name in ("lora", "front"):
        if (value := getattr(arguments, name)) != "keep":
            raise Mistake(f"{name}={value}: a {what} goes out whole, and has no LoRA")
    began = time.perf_counter()
    plan: whisper_to_hf.WhisperExportPlan | vocoder_to_hf.VocoderExportPlan
    if isinstance(spec, WhisperSpec):
        plan = whisper_to_hf.plan_export(arguments.source, spec, arguments.dtype)
        with byte_progress(plan.bytes) as moved:
            whisper_to_hf.export_whisper(plan, arguments.target, moved)
    else:
        plan = vocoder_to_hf.plan_export(arguments.source, spec, arguments.dtype)
        with byte_progress(plan.bytes) as moved:
            vocoder_to_hf.export_vocoder(plan, arguments.target, moved)
    seconds, count = time.perf_counter() - began, len(plan.tensors)
    return {
        "checkpoint": str(arguments.target),
        "tensors": count,
        "adapter": 0,
        "merged": 0,
        "bytes": plan.bytes,
        "seconds": seconds,
        "text": f"{count} tensors, {format_bytes(plan.bytes)}, in {seconds:.1f} s: "
        f"{arguments.target}",
    }


def _sound_token(folder: pathlib.Path) -> int | None:
    """Id at the positions of speech; None for a model whose vocabulary has none yet."""
    spec = run_folder.read_spec(str(folder))
    try:
        return sound_token.stored_id(str(folder), spec)
    except Mistake:
        return None


def check_checkpoint(arguments: CheckCheckpointArguments) -> dict[str, Any]:
    """Compare a checkpoint with its original: the differences."""
    found = checkpoint_parity.compare(
        local_folder(arguments.source), arguments.target, arguments.audio, arguments.text
    )
    agrees = found.kl <= arguments.bound
    worst = max(range(len(found.layers)), key=lambda i: found.layers[i])
    text = (
        f"{'same' if agrees else 'NOT the same'}: KL {found.kl:.2e} nats a token "
        f"(bound {arguments.bound:g}), top-1 {found.top1:.1%} of {found.positions} positions, "
        f"logits within {found.logits:.1e}, layers within {found.layers[worst]:.1e} (layer {worst})"
    )
    figures = dataclasses.asdict(found) | {"bound": arguments.bound, "agrees": agrees}
    return figures | {"text": text, "status": 0 if agrees else 1}


def local_folder(source: str) -> pathlib.Path:
    """The folder of a checkpoint: `source`, or the hub's snapshot of that name."""
    path = pathlib.Path(source)
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        return path
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 an extra of the user's
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415
    except ImportError as error:
        raise Mistake(
            f"HF_DIR={source}: is no folder, and names on the hub need huggingface_hub installed"
        ) from error
    try:
        return pathlib.Path(snapshot_download(source))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Mistake(f"HF_DIR={source}: is no folder, and the hub says: {reason}") from error
