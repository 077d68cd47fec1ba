"""A checkpoint of ours in Hugging Face's layout: what transformers loads, block by block.

Reads what training or an import wrote, in one process and on no mesh. A model that reads speech by
the conv front end becomes a Phi-4-multimodal without Conformer; one that reads text, a Phi-3.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import math
import pathlib
import shutil
from typing import Any, Literal

import ml_dtypes
import numpy as np

from melllm_jax import checkpoint, config, rundir, store
from melllm_jax.convert import blocks, described, phi, tensors
from melllm_jax.convert.folder import made
from melllm_jax.convert.importer import PEFT, Adapter
from melllm_jax.convert.rules import Piece, Tensor, expand
from melllm_jax.errors import Mistake
from melllm_jax.weights import outline

Number = Literal["stored", "float32", "float16", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What an export will read and write: nothing has been touched yet."""

    folder: pathlib.Path
    spec: config.Spec
    stored: store.Stored
    main: Mapping[str, Tensor]  # the model's tensors by their names
    apart: Mapping[str, Tensor]  # LoRA's tensors, written as an adapter of their own
    added: Mapping[str, tuple[Tensor, Tensor]]  # matrix → LoRA's A and B that are merged into it
    dtypes: Mapping[str, np.dtype]  # of every tensor that is written

    @property
    def bytes(self) -> int:
        """To be written."""
        both = {**self.main, **self.apart}
        return sum(math.prod(x.shape) * self.dtypes[name].itemsize for name, x in both.items())


def survey(
    folder: pathlib.Path,
    adapter: Adapter = "keep",
    front: Literal["keep", "drop"] = "keep",
    dtype: Number = "stored",
) -> Survey:
    """What exporting the newest checkpoint in `folder` would do.

    Raises Mistake for a folder without a whole checkpoint, and for a front end that no class of
    transformers has.
    """
    spec = rundir.spec(str(folder))
    stored = store.Stored(checkpoint.newest(folder / rundir.CHECKPOINTS))
    outlined = outline(spec)[1]
    shapes = {name: tuple(x.shape) for name, x in outlined.items()}
    found = {name: shape for name, (_, shape) in stored.shapes.items()}
    for name in shapes.keys() | found.keys():
        if shapes.get(name) != found.get(name):
            raise Mistake(
                f"{folder}: {name} is {found.get(name)}, its config says {shapes.get(name)}"
            )
    if front == "drop":
        spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, front="none"))
    if spec.model.front == "linear":
        raise Mistake(
            'model.front="linear": no class of transformers reads mel patches; '
            "--front drop exports the LLM alone"
        )
    if spec.model.speech == "bidirectional" and spec.model.front != "none":
        raise Mistake(
            'model.speech="bidirectional": transformers attends causally within a clip; '
            "--front drop exports the LLM alone"
        )
    names = phi.LAYOUTS["phi3" if spec.model.front == "none" else "transformers"]
    main, lora = expand(names.weights(spec.model), shapes), {}
    added: dict[str, tuple[Tensor, Tensor]] = {}
    if spec.lora.r and adapter != "drop":
        lora = expand(names.lora(), shapes)
    if lora and adapter == "merge":
        pairs = {name: names.added(name) for name in main}
        added = {name: (lora[p[0]], lora[p[1]]) for name, p in pairs.items() if p}
        lora = {}
    dtypes = {name: _dtype(name, x, stored, dtype) for name, x in {**main, **lora}.items()}
    return Survey(folder, spec, stored, main, lora, added, dtypes)


def send(what: Survey, target: pathlib.Path, moved: Callable[[int], None]) -> None:
    """Make the folder `target`; `moved` is told of the bytes as they are written.

    Raises Mistake where `target` exists already or the disk cannot hold it. Whatever happens,
    `target` is whole or not there.
    """
    with made("HF_DIR", target, what.bytes) as scratch:
        _fill(what, scratch, moved)


def _fill(what: Survey, scratch: pathlib.Path, moved: Callable[[int], None]) -> None:
    companions = what.folder / rundir.TOKENIZER
    original: dict[str, Any] = {}
    if companions.exists():
        for path in sorted(companions.iterdir()):
            shutil.copyfile(path, scratch / path.name)
        if (companions / "config.json").exists():
            original = json.loads((companions / "config.json").read_text())
    tokens = {name: original[name] for name in described.TOKENS if name in original}
    number = what.dtypes["model.embed_tokens.weight"].name
    describe = described.phi3
    if what.spec.model.front == "conv":
        describe = described.phi4_multimodal
        if placeholder := (original.get("audio_config") or {}).get("audio_token_id"):
            tokens["audio_token_id"] = placeholder
    _write_json(scratch / "config.json", describe(what.spec, number, tokens))
    _write(what, scratch, what.main, tensors.SINGLE, moved)
    if what.apart:
        beside = scratch / PEFT
        beside.mkdir()
        _write_json(beside / "adapter_config.json", described.adapter(what.spec))
        _write(what, beside, what.apart, "adapter_model.safetensors", moved)


def _write(
    what: Survey,
    folder: pathlib.Path,
    which: Mapping[str, Tensor],
    file: str,
    moved: Callable[[int], None],
) -> None:
    sizes = {name: (what.dtypes[name], tensor.shape) for name, tensor in which.items()}
    with tensors.Writer(folder, sizes, single=file) as writer:

        def move(item: tuple[str, Piece]) -> int:
            name, piece = item
            rows = blocks.dense(piece.write(what.stored.read(piece.name, piece.index)))
            if name in what.added:
                a, b = what.added[name]
                rows = blocks.merged(
                    rows,
                    _whole(what.stored, a),
                    _whole(what.stored, b)[piece.start : piece.stop],
                    what.spec.lora.alpha / what.spec.lora.r,
                    what.dtypes[name],
                )
            rows = rows.astype(what.dtypes[name], copy=False)
            writer.write(name, piece.start, rows)
            return rows.nbytes

        blocks.each(move, _pieces(which), moved)


def _pieces(which: Mapping[str, Tensor]) -> Iterator[tuple[str, Piece]]:
    """Every piece; the layers of a weight follow one another, as a training checkpoint has them."""
    for name, tensor in which.items():
        for piece in tensor.pieces(blocks.MOST):
            yield name, piece


def _whole(stored: store.Stored, tensor: Tensor) -> np.ndarray:
    """A tensor put together from its parts."""
    pieces = sorted(tensor.pieces(math.prod(tensor.shape)), key=lambda piece: piece.start)
    return np.concatenate([piece.write(stored.read(piece.name, piece.index)) for piece in pieces])


def _dtype(name: str, tensor: Tensor, stored: store.Stored, asked: Number) -> np.dtype:
    if asked != "stored":
        return np.dtype(ml_dtypes.bfloat16 if asked == "bfloat16" else asked)
    found = {stored.shapes[part.name][0] for part in tensor.parts}
    if len(found) != 1:
        kinds = ", ".join(sorted(kind.name for kind in found))
        raise Mistake(f"{name}: its parts are {kinds}: say one with --dtype")
    return found.pop()


def _write_json(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n")
