"""Exports a checkpoint to Hugging Face's layout, which transformers loads, block by block.

Reads what training or an import wrote, in one process and on no mesh. A model that reads speech by
the conv front end becomes a Phi-4-multimodal without Conformer, one that reads it by the conformer
front end a Phi-4-multimodal; one that reads text becomes what `model.family` says: a Phi-3, a
Llama, or one of its kin.
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

from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.model import ModelSpec
from melllm_jax.convert import adapter_tensors, block_copy, safetensors_files
from melllm_jax.convert.from_hf import AdapterChoice
from melllm_jax.convert.hf_config import writer
from melllm_jax.convert.tensor_names.layouts import TENSOR_NAMES
from melllm_jax.convert.weight_map import ForeignTensor, Piece, Shape, expand_rules
from melllm_jax.errors import Mistake
from melllm_jax.files import new_folder
from melllm_jax.json_text import read_object
from melllm_jax.models.parameters import abstract_from_spec

DtypeChoice = Literal["stored", "float32", "float16", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """What an export will read and write: nothing has been touched yet."""

    folder: pathlib.Path
    spec: ModelSpec
    stored: weight_store.WeightReader
    main: Mapping[str, ForeignTensor]  # the model's tensors by their names
    adapter: Mapping[str, ForeignTensor]  # LoRA's tensors, written as an adapter of their own
    modules: tuple[str, ...]  # of each layer, that LoRA stands beside
    merged: Mapping[
        str, tuple[ForeignTensor, ForeignTensor]
    ]  # matrix → LoRA's A and B that are merged into it
    dtypes: Mapping[str, np.dtype]  # of every tensor that is written
    sound_token: int | None  # id at the positions of speech, for the config

    @property
    def bytes(self) -> int:
        """Bytes that will be written."""
        both = {**self.main, **self.adapter}
        return sum(math.prod(x.shape) * self.dtypes[name].itemsize for name, x in both.items())


def plan_export(
    folder: pathlib.Path,
    adapter: AdapterChoice = "keep",
    front: Literal["keep", "drop"] = "keep",
    dtype: DtypeChoice = "stored",
    sound_token: int | None = None,
) -> ExportPlan:
    """Plan the export of the newest checkpoint in `folder`.

    `sound_token` is the id at the positions of speech; transformers has one of its own without.
    Raises Mistake for a folder without a whole checkpoint, for a front end or a mel head that no
    class of transformers has, and where LoRA that adds at speech alone is to be merged.
    """
    spec = run_folder.read_spec(str(folder))
    stored = weight_store.WeightReader(integrity.newest_checkpoint(folder / run_folder.CHECKPOINTS))
    abstract = abstract_from_spec(spec)[1]
    shapes = {name: tuple(x.shape) for name, x in abstract.items()}
    check_shapes(folder, shapes, stored)
    if front == "drop":
        alone = dataclasses.replace(spec.model, front="none", writes="text")
        spec = dataclasses.replace(spec, model=alone)
    if spec.model.writes == "speech":
        raise Mistake(
            'model.writes="speech": no class of transformers writes mel patches; '
            "--front drop exports the LLM alone"
        )
    foreign = {
        "linear": "reads mel patches",
        "whisper": "joins a Whisper encoder and this LLM",
        "whisper_conv": "joins a Whisper's convolutions and this LLM",
    }
    if spec.model.front in foreign:
        what = foreign[spec.model.front]
        raise Mistake(
            f'model.front="{spec.model.front}": no class of transformers {what}; '
            "--front drop exports the LLM alone"
        )
    if spec.model.speech == "bidirectional" and spec.model.front != "none":
        raise Mistake(
            'model.speech="bidirectional": transformers attends causally within a clip; '
            "--front drop exports the LLM alone"
        )
    layout = spec.model.family if spec.model.front == "none" else "transformers"
    _check_layout(spec)
    names = TENSOR_NAMES[layout]
    main, lora = expand_rules(names.weights(spec.model), shapes), {}
    merged: dict[str, tuple[ForeignTensor, ForeignTensor]] = {}
    if spec.lora.r and adapter != "drop":
        lora = expand_rules(names.lora(), shapes)
        lora |= {copy: lora[name] for copy, name in names.lora_copies(spec.model.l).items()}
    if lora and adapter == "merge":
        if spec.lora.at == "speech":
            raise Mistake(
                'lora.at="speech": merged, LoRA would add at text as well: --lora keep writes it '
                "beside the LLM, --lora drop leaves it out"
            )
        pairs = {name: names.lora_pair(name) for name in main}
        merged = {name: (lora[p[0]], lora[p[1]]) for name, p in pairs.items() if p}
        lora = {}
    dtypes = {name: output_dtype(name, x, stored, dtype) for name, x in {**main, **lora}.items()}
    modules = tuple(names.projections)
    return ExportPlan(folder, spec, stored, main, lora, modules, merged, dtypes, sound_token)


def check_shapes(
    folder: pathlib.Path, shapes: Mapping[str, Shape], stored: weight_store.WeightReader
) -> None:
    """Raises Mistake where what is stored in `folder` is not what its config says."""
    found = {name: shape for name, (_, shape) in stored.shapes.items()}
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            raise Mistake(
                f"{folder}: {name} is {found.get(name)}, its config says {shapes.get(name)}"
            )


def _check_layout(spec: ModelSpec) -> None:
    """Raises Mistake where the class of transformers that an export is cannot be this model."""
    if spec.model.front == "none":
        writer.text_config(spec, "float32")
        return
    try:
        writer.check_phi(spec.model)
    except Mistake as error:
        raise Mistake(
            f'model.front="{spec.model.front}": transformers has it with Phi alone, and '
            f"{error}; --front drop exports the LLM alone"
        ) from error


def export_checkpoint(
    plan: ExportPlan, target: pathlib.Path, progress: Callable[[int], None]
) -> None:
    """Write the folder `target`; `progress` is called with the bytes written.

    Raises Mistake where `target` exists already or the disk cannot hold it. Whatever happens,
    `target` is whole or not there.
    """
    with new_folder("HF_DIR", target, plan.bytes) as scratch:
        _fill_folder(plan, scratch, progress, target)


def _fill_folder(
    plan: ExportPlan,
    scratch: pathlib.Path,
    progress: Callable[[int], None],
    target: pathlib.Path,
) -> None:
    """Writes what will be the folder `target`: config, tensors, adapter, and the files beside."""
    companions = plan.folder / run_folder.TOKENIZER
    original: dict[str, Any] = {}
    if companions.exists():
        for path in sorted(companions.iterdir()):
            if path.name not in adapter_tensors.FILES:  # transformers would look for its tensors
                shutil.copyfile(path, scratch / path.name)
        if (companions / "config.json").exists():
            original = read_object(companions / "config.json")
    tokens = {name: original[name] for name in writer.TOKEN_ID_FIELDS if name in original}
    number = plan.dtypes["model.embed_tokens.weight"].name
    describe = writer.text_config
    if plan.spec.model.front != "none":
        describe = writer.phi4_multimodal_config
        if plan.sound_token is not None:
            tokens["audio_token_id"] = plan.sound_token
    write_json(scratch / "config.json", describe(plan.spec, number, tokens))
    _write_tensors(plan, scratch, plan.main, safetensors_files.SINGLE_FILE, progress)
    if plan.adapter:
        folder = scratch / adapter_tensors.FOLDER
        folder.mkdir()
        described = writer.adapter_config(plan.spec, plan.modules, str(target.absolute()))
        write_json(folder / "adapter_config.json", described)
        _write_tensors(plan, folder, plan.adapter, "adapter_model.safetensors", progress)


def _write_tensors(
    plan: ExportPlan,
    folder: pathlib.Path,
    tensors: Mapping[str, ForeignTensor],
    file: str,
    progress: Callable[[int], None],
) -> None:
    """Writes these tensors of the plan to `folder`, as `file` or in several of its name."""

    def read(name: str, piece: Piece) -> np.ndarray:
        rows = block_copy.to_contiguous(piece.write(plan.stored.read(piece.name, piece.index)))
        if name not in plan.merged:
            return rows
        a, b = plan.merged[name]
        return block_copy.merge_lora(
            rows,
            _read_tensor(plan.stored, a),
            _read_tensor(plan.stored, b)[piece.start : piece.stop],
            plan.spec.lora.alpha / plan.spec.lora.r,
            plan.dtypes[name],
        )

    write_tensors(folder, file, tensors, plan.dtypes, read, progress)


def write_tensors(
    folder: pathlib.Path,
    file: str,
    tensors: Mapping[str, ForeignTensor],
    dtypes: Mapping[str, np.dtype],
    read: Callable[[str, Piece], np.ndarray],
    progress: Callable[[int], None],
) -> None:
    """Writes tensors to `folder`, as `file` or in several of its name; `read` gives their rows."""
    sizes = {name: (dtypes[name], tensor.shape) for name, tensor in tensors.items()}
    with safetensors_files.SafetensorsWriter(folder, sizes, single=file) as writer:

        def move(item: tuple[str, Piece]) -> int:
            name, piece = item
            rows = read(name, piece).astype(dtypes[name], copy=False)
            writer.write(name, piece.start, rows)
            return rows.nbytes

        block_copy.run_in_threads(move, _pieces(tensors), progress)


def _pieces(tensors: Mapping[str, ForeignTensor]) -> Iterator[tuple[str, Piece]]:
    """Every piece to write, by tensor, in the order in which a training checkpoint has them."""
    for name, tensor in tensors.items():
        for piece in tensor.pieces(block_copy.MAX_ELEMENTS):
            yield name, piece


def _read_tensor(stored: weight_store.WeightReader, tensor: ForeignTensor) -> np.ndarray:
    """Reads a whole tensor, put together from its parts."""
    pieces = sorted(tensor.pieces(math.prod(tensor.shape)), key=lambda piece: piece.start)
    return np.concatenate([piece.write(stored.read(piece.name, piece.index)) for piece in pieces])


def output_dtype(
    name: str, tensor: ForeignTensor, stored: weight_store.WeightReader, choice: DtypeChoice
) -> np.dtype:
    """The dtype in which a tensor is written. Raises Mistake where its parts differ in theirs."""
    if choice != "stored":
        return np.dtype(ml_dtypes.bfloat16 if choice == "bfloat16" else choice)
    dtypes = {stored.shapes[part.name][0] for part in tensor.parts}
    if len(dtypes) != 1:
        kinds = ", ".join(sorted(kind.name for kind in dtypes))
        raise Mistake(f"{name}: its parts are {kinds}: say one with --dtype")
    return dtypes.pop()


def write_json(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Writes a tree as transformers writes its configs."""
    path.write_text(json.dumps(tree, indent=2) + "\n")
