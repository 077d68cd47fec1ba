"""The tensors of a LoRA adapter that lies beside a model, or inside its folder."""

from collections.abc import Mapping
import dataclasses
import pathlib

import numpy as np

from melllm_jax.convert import safetensors_files
from melllm_jax.convert.hf_config import peft_adapter
from melllm_jax.convert.safetensors_files import TensorEntry
from melllm_jax.convert.weight_map import ForeignTensor
from melllm_jax.errors import Mistake

FOLDER = "speech-lora"  # folder of the adapter beside a checkpoint in transformers' layout
FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclasses.dataclass(frozen=True)
class MergedTensors:
    """LoRA's tensors that are merged into one matrix."""

    a: TensorEntry
    b: TensorEntry
    scale: float
    lengths: TensorEntry | None = None  # DoRA's, of each row


def adapter_folder(source: pathlib.Path, kind: object) -> pathlib.Path | None:
    """The folder of the adapter of the model in `source`: a folder in it, or itself.

    Raises Mistake where there are two.
    """
    within = source / FOLDER
    # Microsoft's repository has this folder as well: a second copy of what its main files hold.
    places = [within] if within.exists() and kind != "phi4mm" else []
    if any((source / name).exists() for name in FILES):
        places.append(source)
    if len(places) == 2:
        raise Mistake(f"{source}: holds an adapter, and {within.name} another: take one away")
    return places[0] if places else None


def check_copy(entries: Mapping[str, TensorEntry], copy: str, original: str) -> None:
    """Raises Mistake where two of LoRA's A differ that are one of ours."""
    one, other = (entries[name].rows() for name in (copy, original))
    if one.dtype != other.dtype or not np.array_equal(one, other):
        raise Mistake(
            f"{entries[copy].file}: {copy} differs from {original}: "
            "our LoRA has one A for both: --lora merge follows any"
        )


def expected_tensors(
    adapter: peft_adapter.PeftAdapter,
    tensors: Mapping[str, ForeignTensor],
    pairs: Mapping[str, tuple[str, str]],
) -> dict[str, ForeignTensor]:
    """The tensors that an adapter must have, of which only the shapes are of use."""
    found: dict[str, tuple[int, ...]] = {}
    for module, matrix in adapter.matrices.items():
        (a, b), (rows, columns) = pairs[f"{module}.weight"], tensors[f"{module}.weight"].shape
        found |= {a: (matrix.r, columns), b: (rows, matrix.r)}
        if matrix.dora:
            found[_lengths_name(a)] = (rows,)
    return {name: ForeignTensor(shape, ()) for name, shape in found.items()}


def merged_tensors(
    entries: Mapping[str, TensorEntry], pair: tuple[str, str], scale: float
) -> MergedTensors:
    """A and B of the names in `pair`, and DoRA's lengths where there are any."""
    a, b = pair
    return MergedTensors(entries[a], entries[b], scale, entries.get(_lengths_name(a)))


def _lengths_name(a: str) -> str:
    """The name of DoRA's lengths beside LoRA's A."""
    return a.removesuffix("lora_A.weight") + "lora_magnitude_vector"


def adapter_entries(
    folder: pathlib.Path, entries: Mapping[str, TensorEntry]
) -> dict[str, TensorEntry]:
    """The tensors of the adapter in `folder`. Raises Mistake where one is in `entries` too."""
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        torch = (folder / "adapter_model.bin").exists()
        how = (
            ": its adapter_model.bin is a program: save it with safe_serialization" if torch else ""
        )
        raise Mistake(f"{folder}: holds no {file.name}{how}")
    found = safetensors_files.read_header(file)
    for name in found.keys() & entries.keys():
        raise Mistake(f"{file}: {name} is in {entries[name].file.name} too")
    return found
