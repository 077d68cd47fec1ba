"""Exports a Whisper that was imported to Hugging Face's layout again, block by block.

The tensors have the names that transformers' class has for them, and the small files beside them
are those that came with the import.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
import pathlib
import shutil

import numpy as np

from melllm_jax.checkpoints import integrity, run_folder, weight_store
from melllm_jax.config.whisper import WhisperSpec
from melllm_jax.convert import block_copy, safetensors_files, to_hf
from melllm_jax.convert.tensor_names import whisper
from melllm_jax.convert.to_hf import DtypeChoice
from melllm_jax.convert.weight_map import ForeignTensor, Piece, expand_rules
from melllm_jax.errors import Mistake
from melllm_jax.files import new_folder
from melllm_jax.json_text import read_object
from melllm_jax.models.parameters import abstract_whisper

NO_HEAD = ["WhisperModel"]  # the class of transformers whose tensors have no prefix


@dataclasses.dataclass(frozen=True)
class WhisperExportPlan:
    """What an export will read and write: nothing has been touched yet."""

    companions: pathlib.Path  # the folder of the small files beside the weights
    stored: weight_store.WeightReader
    tensors: Mapping[str, ForeignTensor]  # by their names
    dtypes: Mapping[str, np.dtype]  # of every tensor that is written
    dtype: DtypeChoice

    @property
    def bytes(self) -> int:
        """Bytes that will be written."""
        sizes = ((math.prod(x.shape), self.dtypes[name]) for name, x in self.tensors.items())
        return sum(count * dtype.itemsize for count, dtype in sizes)


def plan_export(
    folder: pathlib.Path, spec: WhisperSpec, dtype: DtypeChoice = "stored"
) -> WhisperExportPlan:
    """Plan the export of the Whisper in `folder`, which is `spec`.

    Raises Mistake for a folder without a whole checkpoint, or without its config.json.
    """
    stored = weight_store.WeightReader(integrity.newest_checkpoint(folder / run_folder.CHECKPOINTS))
    shapes = {name: tuple(x.shape) for name, x in abstract_whisper(spec)[1].items()}
    to_hf.check_shapes(folder, shapes, stored)
    companions = folder / run_folder.TOKENIZER
    if not (companions / "config.json").exists():
        raise Mistake(f"{companions}: lacks the config.json that came with the import")
    classes = read_object(companions / "config.json").get("architectures")
    tensors = expand_rules(whisper.whisper_rules("" if classes == NO_HEAD else "model."), shapes)
    dtypes = {name: to_hf.output_dtype(name, x, stored, dtype) for name, x in tensors.items()}
    return WhisperExportPlan(companions, stored, tensors, dtypes, dtype)


def export_whisper(
    plan: WhisperExportPlan, target: pathlib.Path, progress: Callable[[int], None]
) -> None:
    """Write the folder `target`, as `to_hf.export_checkpoint` does."""

    def read(_: str, piece: Piece) -> np.ndarray:
        rows: np.ndarray = plan.stored.read(piece.name, piece.index)
        return block_copy.to_contiguous(piece.write(rows))

    with new_folder("HF_DIR", target, plan.bytes) as scratch:
        for path in sorted(plan.companions.iterdir()):
            shutil.copyfile(path, scratch / path.name)
        if plan.dtype != "stored":
            tree = read_object(scratch / "config.json")
            name = "dtype" if "dtype" in tree else "torch_dtype"
            to_hf.write_json(scratch / "config.json", {**tree, name: plan.dtype})
        file = safetensors_files.SINGLE_FILE
        to_hf.write_tensors(scratch, file, plan.tensors, plan.dtypes, read, progress)
