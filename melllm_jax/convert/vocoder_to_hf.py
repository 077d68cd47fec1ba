"""Exports a HiFi-GAN, imported or trained, to the layout of transformers' `SpeechT5HifiGan`."""

from collections.abc import Callable, Mapping
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from melllm_jax.checkpoints import weight_store
from melllm_jax.config.vocoder import VocoderSpec
from melllm_jax.convert import block_copy, safetensors_files, to_hf
from melllm_jax.convert.hf_config.vocoder_config import hifi_gan_config
from melllm_jax.convert.tensor_names.hifi_gan import hifi_gan_rules
from melllm_jax.convert.to_hf import DtypeChoice
from melllm_jax.convert.weight_map import ForeignTensor, Piece, expand_rules
from melllm_jax.files import new_folder
from melllm_jax.vocoders.stored_vocoder import abstract_vocoder, open_weights


@dataclasses.dataclass(frozen=True)
class VocoderExportPlan:
    """What an export will read and write: nothing has been touched yet."""

    config: Mapping[str, Any]  # config.json
    stored: weight_store.WeightReader
    tensors: Mapping[str, ForeignTensor]  # by their names
    dtypes: Mapping[str, np.dtype]  # of every tensor that is written

    @property
    def bytes(self) -> int:
        """Bytes that will be written."""
        sizes = ((math.prod(x.shape), self.dtypes[name]) for name, x in self.tensors.items())
        return sum(count * dtype.itemsize for count, dtype in sizes)


def plan_export(
    folder: pathlib.Path, spec: VocoderSpec, dtype: DtypeChoice = "stored"
) -> VocoderExportPlan:
    """Plan the export of the vocoder in `folder`, which is `spec`.

    Raises Mistake for one that transformers' class cannot be, and without a whole checkpoint.
    """
    hifi_gan_config(spec, "float32")
    stored = open_weights(folder)
    shapes = {name: tuple(x.shape) for name, x in abstract_vocoder(spec)[1].items()}
    to_hf.check_shapes(folder, shapes, stored)
    tensors = expand_rules(hifi_gan_rules(spec.hifi_gan), shapes)
    dtypes = {name: to_hf.output_dtype(name, x, stored, dtype) for name, x in tensors.items()}
    config = hifi_gan_config(spec, dtypes["conv_pre.weight"].name)
    return VocoderExportPlan(config, stored, tensors, dtypes)


def export_vocoder(
    plan: VocoderExportPlan, target: pathlib.Path, progress: Callable[[int], None]
) -> None:
    """Write the folder `target`, as `to_hf.export_checkpoint` does."""

    def read(_: str, piece: Piece) -> np.ndarray:
        rows: np.ndarray = plan.stored.read(piece.name, piece.index)
        return block_copy.to_contiguous(piece.write(rows))

    with new_folder("HF_DIR", target, plan.bytes) as scratch:
        to_hf.write_json(scratch / "config.json", plan.config)
        file = safetensors_files.SINGLE_FILE
        to_hf.write_tensors(scratch, file, plan.tensors, plan.dtypes, read, progress)
