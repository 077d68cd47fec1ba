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

from melllm_jax import config, interrupt, rundir, store
from melllm_jax.convert import blocks, dialects, phi, tensors
from melllm_jax.convert.folder import made
from melllm_jax.convert.rules import LeftOut, Piece, Tensor, expand, settle
from melllm_jax.convert.tensors import Entry
from melllm_jax.errors import Mistake
from melllm_jax.weights import outline

Adapter = Literal["keep", "merge", "drop"]
ORIGIN = "import.json"  # beside the checkpoint: where it came from, and what was not read
PEFT = "speech-lora"  # folder of the adapter beside a checkpoint in transformers' layout
# Small files that travel along: tokenizer, templates, generation, the original config.
COMPANIONS = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")


@dataclasses.dataclass(frozen=True)
class Survey:
    """What an import will read and write: nothing has been touched yet."""

    source: pathlib.Path
    adapter: Adapter
    spec: config.Spec
    tensors: Mapping[str, Tensor]  # to be read, by their names
    entries: Mapping[str, Entry]  # where they are
    blanks: Mapping[str, store.Blank]  # to be written, by our names
    added: Mapping[str, tuple[Entry, Entry]]  # matrix → LoRA's A and B that are merged into it
    scale: float  # of what is merged
    left_out: Mapping[str, list[str]]  # tensors that are not read, by reason

    @property
    def bytes(self) -> int:
        """To be written."""
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in self.blanks.values())


def survey(source: pathlib.Path, adapter: Adapter = "keep") -> Survey:
    """What importing the folder `source` would do. Raises Mistake for whatever is wrong with it."""
    entries = tensors.listed(source)
    tree = _json(source / "config.json")
    # Microsoft's repository has this folder as well: a second copy of what its main files hold.
    beside = source / PEFT
    apart = beside.exists() and tree.get("model_type") != "phi4mm"
    described = _json(beside / "adapter_config.json") if apart else None
    found = dialects.read(tree, described, f"{source}/config.json")
    spec, names = found.spec, phi.LAYOUTS[found.layout]
    rank = spec.lora.r
    if described is not None:
        entries |= _adapter(beside, entries)
    left = list(phi.LEFT_OUT)
    if spec.model.tied:
        left.append(LeftOut("lm_head.weight", "head, which is the embedding"))
    if rank and adapter == "drop":
        rows = (rule.theirs.replace("{i}", "*") for rule in names.lora())
        left += [LeftOut(row, "speech LoRA, dropped as asked") for row in rows]
        spec, rank = dataclasses.replace(spec, lora=config.Lora()), 0
    skeleton, outlined = outline(spec)
    shapes = {name: tuple(x.shape) for name, x in outlined.items()}
    rules = [*names.weights(spec.model), *(names.lora() if rank else [])]
    wanted = expand(rules, shapes)
    omitted = settle(wanted, {name: x.shape for name, x in entries.items()}, left, str(source))
    added: dict[str, tuple[Entry, Entry]] = {}
    scale = 0.0
    if rank and adapter == "merge":
        scale = spec.lora.alpha / rank
        pairs = {name: names.added(name) for name in wanted}
        added = {name: (entries[p[0]], entries[p[1]]) for name, p in pairs.items() if p}
        spec = dataclasses.replace(spec, lora=config.Lora())
        wanted = expand(names.weights(spec.model), shapes)
    if any((source / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        text = dataclasses.replace(spec.text, tokenizer=rundir.TOKENIZER)
        spec = dataclasses.replace(spec, text=text)
    dims = {name: kind.dims for name, kind in skeleton.kinds.items()}
    blanks = _blanks(wanted, entries, dims, shapes)
    return Survey(source, adapter, spec, wanted, entries, blanks, added, scale, omitted)


def bring(what: Survey, target: pathlib.Path, moved: Callable[[int], None]) -> None:
    """Make the checkpoint folder `target`; `moved` is told of the bytes as they are written.

    Raises Mistake where `target` exists already or the disk cannot hold it. Whatever happens,
    `target` is whole or not there.
    """
    with made("CKPT_DIR", target, what.bytes) as scratch:
        _fill(what, scratch, moved)
        origin = {"source": str(what.source), "lora": what.adapter, "left_out": what.left_out}
        (scratch / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
        (scratch / rundir.SPEC).write_text(config.to_json(what.spec))


def _fill(what: Survey, scratch: pathlib.Path, moved: Callable[[int], None]) -> None:
    (scratch / rundir.CHECKPOINTS).mkdir(parents=True)
    with interrupt.held_back():  # Orbax writes in threads of its own
        filling = store.Filling(scratch / rundir.CHECKPOINTS / "0", what.blanks)

    def move(piece: tuple[str, Piece]) -> int:
        name, block = piece
        rows = what.entries[name].rows(block.start, block.stop)
        if name in what.added:
            a, b = what.added[name]
            high = b.rows(block.start, block.stop)
            rows = blocks.merged(rows, a.rows(), high, what.scale, rows.dtype)
        filling.write(block.name, block.index, blocks.dense(block.read(rows)))
        return rows.nbytes

    blocks.each(move, _in_order(what), moved)
    filling.seal()
    companions = scratch / rundir.TOKENIZER
    companions.mkdir()
    for pattern in COMPANIONS:
        for path in what.source.glob(pattern):
            if not path.name.endswith(".index.json"):
                shutil.copyfile(path, companions / path.name)


def _in_order(what: Survey) -> Iterator[tuple[str, Piece]]:
    """Every piece, as they lie in the files."""
    entries = what.entries
    for name in sorted(what.tensors, key=lambda name: (entries[name].file, entries[name].start)):
        for piece in what.tensors[name].pieces(blocks.MOST):
            yield name, piece


def _blanks(
    wanted: Mapping[str, Tensor],
    entries: Mapping[str, Entry],
    dims: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, store.Blank]:
    blanks: dict[str, store.Blank] = {}
    for name, tensor in wanted.items():
        for piece in tensor.pieces(blocks.MOST):
            if piece.name not in blanks:
                layers = len(shapes[piece.name]) - len(piece.shape)
                block = (*[1] * layers, *piece.shape)
                shape, letters = shapes[piece.name], dims[piece.name]
                blanks[piece.name] = store.blank(shape, entries[name].dtype, block, letters)
            elif blanks[piece.name].dtype != entries[name].dtype:
                raise Mistake(
                    f"{entries[name].file}: {name} is {entries[name].kind}: the same weight of "
                    f"another layer is {blanks[piece.name].dtype}"
                )
    return blanks


def _adapter(beside: pathlib.Path, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    file = beside / "adapter_model.safetensors"
    if not file.exists():
        raise Mistake(f"{beside}: holds no {file.name}")
    found = tensors.header(file)
    for name in found.keys() & entries.keys():
        raise Mistake(f"{file}: {name} is in {entries[name].file.name} too")
    return found


def _json(path: pathlib.Path) -> Any:
    with contextlib.suppress(FileNotFoundError):
        try:
            tree = json.loads(path.read_text())
        except ValueError as error:
            raise Mistake(f"{path}: is no JSON: {error}") from error
        if not isinstance(tree, dict):
            raise Mistake(f"{path}: must be an object of fields")
        return tree
    raise Mistake(f"{path.parent}: holds no {path.name}")
