"""Imports a Hugging Face checkpoint of Phi as a checkpoint of ours, block by block.

The model is never in memory: rows of a tensor are read, put into our order and written, a few
blocks at a time. All is written to a scratch folder, which is renamed once it is whole.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import math
import pathlib
import shutil
from typing import Literal

from melllm_jax import interrupts
from melllm_jax.checkpoints import run_folder, weight_store
from melllm_jax.config.model import Lora, ModelSpec
from melllm_jax.config.overrides import to_json
from melllm_jax.convert import block_copy, hf_config, phi, safetensors_files
from melllm_jax.convert.json_files import read_object
from melllm_jax.convert.safetensors_files import TensorEntry
from melllm_jax.convert.weight_map import (
    ForeignTensor,
    IgnoredTensors,
    Piece,
    check_tensors,
    expand_rules,
)
from melllm_jax.errors import Mistake
from melllm_jax.files import new_folder
from melllm_jax.models.parameters import abstract_from_spec

AdapterChoice = Literal["keep", "merge", "drop"]
ORIGIN_FILE = "import.json"  # beside the checkpoint: where it came from, and what was not read
ADAPTER_FOLDER = "speech-lora"  # folder of the adapter beside a checkpoint in transformers' layout
# Small files that travel along: tokenizer, templates, generation, the original config.
COMPANION_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """What an import will read and write: nothing has been touched yet."""

    source: pathlib.Path
    adapter: AdapterChoice
    spec: ModelSpec
    tensors: Mapping[str, ForeignTensor]  # to be read, by their names
    entries: Mapping[str, TensorEntry]  # where they are
    blanks: Mapping[str, weight_store.WeightLayout]  # to be written, by our names
    merged: Mapping[
        str, tuple[TensorEntry, TensorEntry]
    ]  # matrix → LoRA's A and B that are merged into it
    scale: float  # of what is merged
    left_out: Mapping[str, list[str]]  # tensors that are not read, by reason

    @property
    def bytes(self) -> int:
        """Bytes that will be written."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in self.blanks.values())


def plan_import(source: pathlib.Path, adapter: AdapterChoice = "keep") -> ImportPlan:
    """Plan the import of the folder `source`. Raises Mistake for whatever is wrong with it."""
    entries = safetensors_files.list_tensors(source)
    tree = read_object(source / "config.json")
    # Microsoft's repository has this folder as well: a second copy of what its main files hold.
    folder = source / ADAPTER_FOLDER
    separate = folder.exists() and tree.get("model_type") != "phi4mm"
    adapter_config = read_object(folder / "adapter_config.json") if separate else None
    parsed = hf_config.parse_config(tree, adapter_config, f"{source}/config.json")
    spec, names = parsed.spec, phi.TENSOR_NAMES[parsed.layout]
    rank = spec.lora.r
    if adapter_config is not None:
        entries |= _adapter_entries(folder, entries)
    ignored = list(phi.IGNORED_TENSORS)
    if spec.model.tied:
        ignored.append(IgnoredTensors("lm_head.weight", "head, which is the embedding"))
    if rank and adapter == "drop":
        rows = (rule.foreign.replace("{i}", "*") for rule in names.lora())
        ignored += [IgnoredTensors(row, "speech LoRA, dropped as asked") for row in rows]
        spec, rank = dataclasses.replace(spec, lora=Lora()), 0
    skeleton, abstract = abstract_from_spec(spec)
    shapes = {name: tuple(x.shape) for name, x in abstract.items()}
    rules = [*names.weights(spec.model), *(names.lora() if rank else [])]
    tensors = expand_rules(rules, shapes)
    omitted = check_tensors(
        tensors, {name: x.shape for name, x in entries.items()}, ignored, str(source)
    )
    merged: dict[str, tuple[TensorEntry, TensorEntry]] = {}
    scale = 0.0
    if rank and adapter == "merge":
        scale = spec.lora.alpha / rank
        pairs = {name: names.lora_pair(name) for name in tensors}
        merged = {name: (entries[p[0]], entries[p[1]]) for name, p in pairs.items() if p}
        spec = dataclasses.replace(spec, lora=Lora())
        tensors = expand_rules(names.weights(spec.model), shapes)
    if any((source / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        text = dataclasses.replace(spec.text, tokenizer=run_folder.TOKENIZER)
        if _has_chat_template(source):
            text = dataclasses.replace(text, template="chat")
        spec = dataclasses.replace(spec, text=text)
    dims = {name: kind.dims for name, kind in skeleton.kinds.items()}
    blanks = _blanks(tensors, entries, dims, shapes)
    return ImportPlan(source, adapter, spec, tensors, entries, blanks, merged, scale, omitted)


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
        (scratch / run_folder.SPEC).write_text(to_json(plan.spec))


def _fill_folder(plan: ImportPlan, scratch: pathlib.Path, progress: Callable[[int], None]) -> None:
    """Writes the weights, and the tokenizer's files beside them."""
    (scratch / run_folder.CHECKPOINTS).mkdir(parents=True)
    with interrupts.defer_interrupts():  # Orbax writes in threads of its own
        writer = weight_store.WeightWriter(scratch / run_folder.CHECKPOINTS / "0", plan.blanks)

    def move(piece: tuple[str, Piece]) -> int:
        name, block = piece
        rows = plan.entries[name].rows(block.start, block.stop)
        if name in plan.merged:
            a, b = plan.merged[name]
            high = b.rows(block.start, block.stop)
            rows = block_copy.merge_lora(rows, a.rows(), high, plan.scale, rows.dtype)
        writer.write(block.name, block.index, block_copy.to_contiguous(block.read(rows)))
        return rows.nbytes

    block_copy.run_in_threads(move, _pieces_in_file_order(plan), progress)
    writer.seal()
    companions = scratch / run_folder.TOKENIZER
    companions.mkdir()
    for pattern in COMPANION_FILES:
        for path in plan.source.glob(pattern):
            if not path.name.endswith(".index.json"):
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


def _has_chat_template(folder: pathlib.Path) -> bool:
    """Whether the tokenizer's files say how a chat is written, as transformers looks for it."""
    files = (folder / name for name in ("tokenizer_config.json", "chat_template.json"))
    return (folder / "chat_template.jinja").exists() or any(
        read_object(file).get("chat_template") is not None for file in files if file.exists()
    )


def _adapter_entries(
    folder: pathlib.Path, entries: Mapping[str, TensorEntry]
) -> dict[str, TensorEntry]:
    """The tensors of the adapter in `folder`. Raises Mistake where one is in `entries` too."""
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise Mistake(f"{folder}: holds no {file.name}")
    found = safetensors_files.read_header(file)
    for name in found.keys() & entries.keys():
        raise Mistake(f"{file}: {name} is in {entries[name].file.name} too")
    return found
