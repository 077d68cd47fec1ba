"""A Hugging Face checkpoint of Phi as a checkpoint of ours, block by block.

The model is never held: rows of a tensor are read, put into our order and written, a few blocks at
a time. All is made beside the place where it belongs and renamed into it once it is whole.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
from typing import Any, Literal

from melllm_jax import interrupts
from melllm_jax.checkpoints import run_folder, weight_store
from melllm_jax.config.model import Lora, ModelSpec
from melllm_jax.config.overrides import to_json
from melllm_jax.convert import block_copy, hf_config, phi, safetensors_files
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
    added: Mapping[
        str, tuple[TensorEntry, TensorEntry]
    ]  # matrix → LoRA's A and B that are merged into it
    scale: float  # of what is merged
    left_out: Mapping[str, list[str]]  # tensors that are not read, by reason

    @property
    def bytes(self) -> int:
        """To be written."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in self.blanks.values())


def plan_import(source: pathlib.Path, adapter: AdapterChoice = "keep") -> ImportPlan:
    """What importing the folder `source` would do. Raises Mistake for whatever is wrong with it."""
    entries = safetensors_files.list_tensors(source)
    tree = _read_json(source / "config.json")
    # Microsoft's repository has this folder as well: a second copy of what its main files hold.
    beside = source / ADAPTER_FOLDER
    apart = beside.exists() and tree.get("model_type") != "phi4mm"
    described = _read_json(beside / "adapter_config.json") if apart else None
    found = hf_config.parse_config(tree, described, f"{source}/config.json")
    spec, names = found.spec, phi.TENSOR_NAMES[found.layout]
    rank = spec.lora.r
    if described is not None:
        entries |= _adapter_entries(beside, entries)
    left = list(phi.IGNORED_TENSORS)
    if spec.model.tied:
        left.append(IgnoredTensors("lm_head.weight", "head, which is the embedding"))
    if rank and adapter == "drop":
        rows = (rule.theirs.replace("{i}", "*") for rule in names.lora())
        left += [IgnoredTensors(row, "speech LoRA, dropped as asked") for row in rows]
        spec, rank = dataclasses.replace(spec, lora=Lora()), 0
    skeleton, outlined = abstract_from_spec(spec)
    shapes = {name: tuple(x.shape) for name, x in outlined.items()}
    rules = [*names.weights(spec.model), *(names.lora() if rank else [])]
    wanted = expand_rules(rules, shapes)
    omitted = check_tensors(
        wanted, {name: x.shape for name, x in entries.items()}, left, str(source)
    )
    added: dict[str, tuple[TensorEntry, TensorEntry]] = {}
    scale = 0.0
    if rank and adapter == "merge":
        scale = spec.lora.alpha / rank
        pairs = {name: names.added(name) for name in wanted}
        added = {name: (entries[p[0]], entries[p[1]]) for name, p in pairs.items() if p}
        spec = dataclasses.replace(spec, lora=Lora())
        wanted = expand_rules(names.weights(spec.model), shapes)
    if any((source / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        text = dataclasses.replace(spec.text, tokenizer=run_folder.TOKENIZER)
        spec = dataclasses.replace(spec, text=text)
    dims = {name: kind.dims for name, kind in skeleton.kinds.items()}
    blanks = _blanks(wanted, entries, dims, shapes)
    return ImportPlan(source, adapter, spec, wanted, entries, blanks, added, scale, omitted)


def import_checkpoint(what: ImportPlan, target: pathlib.Path, moved: Callable[[int], None]) -> None:
    """Make the checkpoint folder `target`; `moved` is told of the bytes as they are written.

    Raises Mistake where `target` exists already or the disk cannot hold it. Whatever happens,
    `target` is whole or not there.
    """
    with new_folder("CKPT_DIR", target, what.bytes) as scratch:
        _fill_folder(what, scratch, moved)
        origin = {"source": str(what.source), "lora": what.adapter, "left_out": what.left_out}
        (scratch / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n")
        (scratch / run_folder.SPEC).write_text(to_json(what.spec))


def _fill_folder(what: ImportPlan, scratch: pathlib.Path, moved: Callable[[int], None]) -> None:
    (scratch / run_folder.CHECKPOINTS).mkdir(parents=True)
    with interrupts.defer_interrupts():  # Orbax writes in threads of its own
        filling = weight_store.WeightWriter(scratch / run_folder.CHECKPOINTS / "0", what.blanks)

    def move(piece: tuple[str, Piece]) -> int:
        name, block = piece
        rows = what.entries[name].rows(block.start, block.stop)
        if name in what.added:
            a, b = what.added[name]
            high = b.rows(block.start, block.stop)
            rows = block_copy.merge_lora(rows, a.rows(), high, what.scale, rows.dtype)
        filling.write(block.name, block.index, block_copy.to_contiguous(block.read(rows)))
        return rows.nbytes

    block_copy.run_in_threads(move, _pieces_in_file_order(what), moved)
    filling.seal()
    companions = scratch / run_folder.TOKENIZER
    companions.mkdir()
    for pattern in COMPANION_FILES:
        for path in what.source.glob(pattern):
            if not path.name.endswith(".index.json"):
                shutil.copyfile(path, companions / path.name)


def _pieces_in_file_order(what: ImportPlan) -> Iterator[tuple[str, Piece]]:
    """Every piece, as they lie in the files."""
    entries = what.entries
    for name in sorted(what.tensors, key=lambda name: (entries[name].file, entries[name].start)):
        for piece in what.tensors[name].pieces(block_copy.MAX_ELEMENTS):
            yield name, piece


def _blanks(
    wanted: Mapping[str, ForeignTensor],
    entries: Mapping[str, TensorEntry],
    dims: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, weight_store.WeightLayout]:
    blanks: dict[str, weight_store.WeightLayout] = {}
    for name, tensor in wanted.items():
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


def _adapter_entries(
    beside: pathlib.Path, entries: Mapping[str, TensorEntry]
) -> dict[str, TensorEntry]:
    file = beside / "adapter_model.safetensors"
    if not file.exists():
        raise Mistake(f"{beside}: holds no {file.name}")
    found = safetensors_files.read_header(file)
    for name in found.keys() & entries.keys():
        raise Mistake(f"{file}: {name} is in {entries[name].file.name} too")
    return found


def _read_json(path: pathlib.Path) -> Any:
    with contextlib.suppress(FileNotFoundError):
        try:
            tree = json.loads(path.read_text())
        except ValueError as error:
            raise Mistake(f"{path}: is no JSON: {error}") from error
        if not isinstance(tree, dict):
            raise Mistake(f"{path}: must be an object of fields")
        return tree
    raise Mistake(f"{path.parent}: holds no {path.name}")
