"""Imports a Hugging Face checkpoint as a checkpoint of ours, block by block.

The model is never in memory: rows of a tensor are read, put into our order and written, a few
blocks at a time. All is written to a scratch folder, which is renamed once it is whole.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import glob
import json
import math
import pathlib
import shutil
from typing import Any, Literal

from melllm_jax import interrupts
from melllm_jax.checkpoints import run_folder, weight_store
from melllm_jax.config.features import Text
from melllm_jax.config.model import FrontSpec, Lora, ModelSpec
from melllm_jax.config.overrides import to_json
from melllm_jax.config.vocoder import VocoderSpec
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.convert import adapter_tensors, block_copy, foreign_vocoder, safetensors_files
from melllm_jax.convert.adapter_tensors import MergedTensors
from melllm_jax.convert.hf_config import reader, whisper_config
from melllm_jax.convert.hf_config.audio_config import FrontChoice
from melllm_jax.convert.safetensors_files import TensorEntry
from melllm_jax.convert.tensor_names import whisper
from melllm_jax.convert.tensor_names.layouts import TENSOR_NAMES
from melllm_jax.convert.tensor_names.phi import CONFORMER
from melllm_jax.convert.weight_map import (
    ForeignTensor,
    IgnoredTensors,
    Piece,
    check_tensors,
    expand_rules,
)
from melllm_jax.errors import Mistake
from melllm_jax.files import is_litter, new_folder
from melllm_jax.json_text import read_object
from melllm_jax.models.parameters import (
    abstract_encoder,
    abstract_from_spec,
    abstract_whisper,
)

AdapterChoice = Literal["keep", "merge", "drop"]
ORIGIN_FILE = "import.json"  # beside the checkpoint: where it came from, and what was not read
DROPPED = "speech LoRA, dropped as asked"
# Small files that travel along: tokenizer, templates, generation, the original config.
COMPANION_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """What an import will read and write: nothing has been touched yet."""

    source: pathlib.Path
    adapter: AdapterChoice
    spec: ModelSpec | WhisperSpec | FrontSpec | VocoderSpec  # FrontSpec for an encoder alone
    tensors: Mapping[str, ForeignTensor]  # to be read, by their names
    entries: Mapping[str, TensorEntry]  # where they are
    blanks: Mapping[str, weight_store.WeightLayout]  # to be written, by our names
    merged: Mapping[str, MergedTensors]  # matrix → what is merged into it
    left_out: Mapping[str, list[str]]  # tensors that are not read, by reason
    lengths: Mapping[str, TensorEntry] = dataclasses.field(
        default_factory=dict
    )  # matrix stored as directions → the lengths of its rows: weight normalisation

    @property
    def bytes(self) -> int:
        """Bytes that will be written."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in self.blanks.values())


def plan_import(
    source: pathlib.Path, adapter: AdapterChoice = "keep", front: FrontChoice = "conv"
) -> ImportPlan:
    """Plan the import of the folder `source`. Raises Mistake for whatever is wrong with it.

    `front` says what is read of a speech encoder: its conv stem, or its Conformer as well.
    """
    if foreign_vocoder.is_vocoder(source):
        return _plan_vocoder(source, adapter)
    entries = safetensors_files.list_tensors(source)
    tree = read_object(source / "config.json")
    if tree.get("model_type") == whisper_config.MODEL_TYPE:
        if adapter != "keep":
            raise Mistake(f"lora={adapter}: a Whisper has none")
        return _plan_whisper(source, tree, entries)
    folder = adapter_tensors.adapter_folder(source, tree.get("model_type"))
    adapter_config = read_object(folder / "adapter_config.json") if folder else None
    parsed = reader.parse_config(tree, adapter_config, f"{source}/config.json", adapter, front)
    spec, names = parsed.spec, TENSOR_NAMES[parsed.layout]
    beside = adapter_tensors.adapter_entries(folder, entries) if folder else {}
    entries |= beside
    ignored = list(names.ignored)
    if front == "conformer":
        ignored = [rule for rule in ignored if rule.reason != CONFORMER]
    if spec.model.tied:
        ignored.append(IgnoredTensors("lm_head.weight", "head, which is the embedding"))
    if adapter == "drop":
        rows = [rule.foreign.replace("{i}", "*") for rule in names.lora()] if spec.lora.r else []
        ignored += [IgnoredTensors(row, DROPPED) for row in [*rows, *map(glob.escape, beside)]]
        spec = dataclasses.replace(spec, lora=Lora())
    skeleton, abstract = abstract_from_spec(spec)
    shapes = {name: tuple(x.shape) for name, x in abstract.items()}
    tensors = expand_rules(names.weights(spec.model), shapes)
    low_rank = expand_rules(names.lora(), shapes) if spec.lora.r else {}
    pairs = {name: pair for name in tensors if (pair := names.lora_pair(name))}
    rank, alpha = spec.lora.r, spec.lora.alpha
    scales = dict.fromkeys(pairs, alpha / rank) if rank else {}
    if parsed.adapter is not None and adapter == "merge":
        scales = {f"{name}.weight": x.scale for name, x in parsed.adapter.matrices.items()}
        low_rank = adapter_tensors.expected_tensors(parsed.adapter, tensors, pairs)
    copies = names.lora_copies(spec.model.l) if low_rank and adapter == "keep" else {}
    repeated = {copy: low_rank[original] for copy, original in copies.items()}
    found = {name: x.shape for name, x in entries.items()}
    omitted = check_tensors({**tensors, **low_rank, **repeated}, found, ignored, str(source))
    for copy, original in copies.items():
        adapter_tensors.check_copy(entries, copy, original)
    merged: dict[str, MergedTensors] = {}
    if adapter == "merge":
        merged = {
            name: adapter_tensors.merged_tensors(entries, pairs[name], x)
            for name, x in scales.items()
        }
        spec = dataclasses.replace(spec, lora=Lora())
    else:
        tensors |= low_rank
    spec = dataclasses.replace(spec, text=_with_tokenizer(spec.text, source))
    dims = {name: kind.dims for name, kind in skeleton.kinds.items()}
    blanks = _blanks(tensors, entries, dims, shapes)
    return ImportPlan(source, adapter, spec, tensors, entries, blanks, merged, omitted)


def _plan_whisper(
    source: pathlib.Path, tree: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> ImportPlan:
    """The plan of a Whisper checkpoint; where it has no decoder, of the encoder as a front end."""
    where = f"{source}/config.json"
    prefix = "model." if any(name.startswith("model.") for name in entries) else ""
    spec: WhisperSpec | FrontSpec
    if any(map(whisper.has_decoder, entries)):
        file = source / "generation_config.json"
        generation = read_object(file) if file.exists() else None
        spec = whisper_config.whisper_spec(tree, generation, where)
        skeleton, abstract = abstract_whisper(spec)
        kinds, rules = skeleton.kinds, whisper.whisper_rules
    else:
        spec = whisper_config.encoder_spec(tree, where)
        alone, abstract = abstract_encoder(spec)
        kinds, rules = alone.kinds, whisper.encoder_rules
    shapes = {name: tuple(x.shape) for name, x in abstract.items()}
    tensors = expand_rules(rules(prefix), shapes)
    found = {name: x.shape for name, x in entries.items()}
    omitted = check_tensors(tensors, found, [whisper.HEAD], str(source))
    dims = {name: kind.dims for name, kind in kinds.items()}
    blanks = _blanks(tensors, entries, dims, shapes)
    return ImportPlan(source, "keep", spec, tensors, entries, blanks, {}, omitted)


def _plan_vocoder(source: pathlib.Path, adapter: AdapterChoice) -> ImportPlan:
    if adapter != "keep":
        raise Mistake(f"lora={adapter}: a vocoder has none")
    x = foreign_vocoder.read_vocoder(source)
    blanks = _blanks(x.tensors, x.entries, x.dims, x.shapes)
    return ImportPlan(
        source, "keep", x.spec, x.tensors, x.entries, blanks, {}, x.left_out, x.lengths
    )


def import_checkpoint(
    plan: ImportPlan, target: pathlib.Path, progress: Callable[[int], None]
) -> None:
    """Write the checkpoint folder `target`; `progress` is called with the bytes written.

    Raises Mistake where `target` exists already or the disk cannot hold it. Whatever happens,
    `target` is whole or not there.
    """
    with new_folder("CKPT_DIR", target, plan.bytes) as scratch:
        _fill_folder(plan, scratch, progress)
        origin = {"source": str(plan.source), "lora": plan.adapter, "left_out": plan.left_out}
        (scratch / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n")
        (scratch / _spec_file(plan.spec)).write_text(to_json(plan.spec))


def _spec_file(spec: ModelSpec | WhisperSpec | FrontSpec | VocoderSpec) -> str:
    if isinstance(spec, WhisperSpec):
        return run_folder.WHISPER
    if isinstance(spec, VocoderSpec):
        return run_folder.VOCODER
    return run_folder.FRONT if isinstance(spec, FrontSpec) else run_folder.SPEC


def _fill_folder(plan: ImportPlan, scratch: pathlib.Path, progress: Callable[[int], None]) -> None:
    """Writes the weights, and the tokenizer's files beside them."""
    (scratch / run_folder.CHECKPOINTS).mkdir(parents=True)
    with interrupts.defer_interrupts():  # Orbax writes in threads of its own
        writer = weight_store.WeightWriter(scratch / run_folder.CHECKPOINTS / "0", plan.blanks)

    def move(piece: tuple[str, Piece]) -> int:
        name, block = piece
        rows = plan.entries[name].rows(block.start, block.stop)
        if name in plan.lengths:
            own = plan.lengths[name].rows(block.start, block.stop)
            rows = block_copy.with_lengths(rows, own)
        if name in plan.merged:
            x = plan.merged[name]
            lengths = None if x.lengths is None else x.lengths.rows(block.start, block.stop)
            high = x.b.rows(block.start, block.stop)
            rows = block_copy.merge_lora(rows, x.a.rows(), high, x.scale, rows.dtype, lengths)
        writer.write(block.name, block.index, block_copy.to_contiguous(block.read(rows)))
        return rows.nbytes

    block_copy.run_in_threads(move, _pieces_in_file_order(plan), progress)
    writer.seal()
    if isinstance(plan.spec, FrontSpec | VocoderSpec):
        return  # neither reads or writes text
    companions = scratch / run_folder.TOKENIZER
    companions.mkdir()
    for pattern in COMPANION_FILES:
        for path in plan.source.glob(pattern):
            if path.name.endswith(".index.json") or path.name in adapter_tensors.FILES:
                continue
            if not is_litter(path.name):
                shutil.copyfile(path, companions / path.name)


def _pieces_in_file_order(plan: ImportPlan) -> Iterator[tuple[str, Piece]]:
    """Every piece to read, in the order in which they lie in the files."""
    entries = plan.entries
    for name in sorted(plan.tensors, key=lambda name: (entries[name].file, entries[name].start)):
        for piece in plan.tensors[name].pieces(block_copy.MAX_ELEMENTS):
            yield name, piece


def _blanks(
    tensors: Mapping[str, ForeignTensor],
    entries: Mapping[str, TensorEntry],
    dims: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, weight_store.WeightLayout]:
    """Layouts of our weights. Raises Mistake where layers of one weight differ in dtype."""
    blanks: dict[str, weight_store.WeightLayout] = {}
    for name, tensor in tensors.items():
        for piece in tensor.pieces(block_copy.MAX_ELEMENTS):
            if piece.name not in blanks:
                layers = len(shapes[piece.name]) - len(piece.shape)
                block = (*[1] * layers, *piece.shape)
                shape, letters = shapes[piece.name], dims[piece.name]
                blanks[piece.name] = weight_store.weight_layout(
                    shape, entries[name].dtype, block, letters
                )
            elif blanks[piece.name].dtype != entries[name].dtype:
                raise Mistake(
                    f"{entries[name].file}: {name} is {entries[name].kind}: the same weight of "
                    f"another layer is {blanks[piece.name].dtype}"
                )
    return blanks


def _with_tokenizer(text: Text, source: pathlib.Path) -> Text:
    """`text` with the tokenizer and the chat template of the folder `source`, as far as it has."""
    if any((source / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        text = dataclasses.replace(text, tokenizer=run_folder.TOKENIZER)
        if _has_chat_template(source):
            text = dataclasses.replace(text, template="chat")
    return text


def _has_chat_template(folder: pathlib.Path) -> bool:
    """Whether the tokenizer's files say how a chat is written, as transformers looks for it."""
    files = (folder / name for name in ("tokenizer_config.json", "chat_template.json"))
    return (folder / "chat_template.jinja").exists() or any(
        read_object(file).get("chat_template") is not None for file in files if file.exists()
    )
