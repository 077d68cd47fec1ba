"""A vocoder's checkpoint in a folder: a HiFi-GAN of transformers, or one of the package vocos."""

from collections.abc import Mapping
import dataclasses
import pathlib

from melllm_jax.config.vocoder import VocoderSpec
from melllm_jax.convert import safetensors_files
from melllm_jax.convert.hf_config import vocoder_config
from melllm_jax.convert.safetensors_files import TensorEntry
from melllm_jax.convert.tensor_names import hifi_gan, vocos
from melllm_jax.convert.weight_map import ForeignTensor, Shape, check_tensors, expand_rules
from melllm_jax.errors import Mistake
from melllm_jax.json_text import read_object
from melllm_jax.vocoders.stored_vocoder import abstract_vocoder

TORCH_CONVERSION = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "x = torch.load('{0}/pytorch_model.bin', weights_only=True); "
    "save_file({{k: v.contiguous() for k, v in x.items()}}, '{0}/model.safetensors')\""
)


@dataclasses.dataclass(frozen=True)
class ForeignVocoder:
    """What is read of a vocoder's folder."""

    spec: VocoderSpec
    tensors: Mapping[str, ForeignTensor]  # to be read, by their names
    entries: Mapping[str, TensorEntry]  # where they are; of a weight-normed matrix its directions
    lengths: Mapping[str, TensorEntry]  # of a weight-normed matrix
    dims: Mapping[str, str]  # letters of our weights
    shapes: Mapping[str, Shape]  # of our weights
    left_out: Mapping[str, list[str]]  # tensors that are not read, by reason


def is_vocoder(folder: pathlib.Path) -> bool:
    """Whether a folder's config is a vocoder's."""
    if (folder / vocoder_config.VOCOS_FILE).exists():
        return True
    config = folder / "config.json"
    return config.exists() and read_object(config).get("model_type") in vocoder_config.MODEL_TYPES


def read_vocoder(folder: pathlib.Path) -> ForeignVocoder:
    """What is in a folder for which `is_vocoder` holds. Raises Mistake for whatever is wrong."""
    config = folder / vocoder_config.VOCOS_FILE
    if config.exists():
        spec = vocoder_config.vocos_spec(config.read_bytes(), str(config))
        rules, ignored = vocos.vocos_rules(spec.vocos.l), vocos.IGNORED
    else:
        tree = read_object(folder / "config.json")
        spec = vocoder_config.hifi_gan_spec(tree, f"{folder}/config.json")
        rules, ignored = hifi_gan.hifi_gan_rules(spec.hifi_gan), ()
    entries, lengths = safetensors_files.list_tensors(folder, TORCH_CONVERSION), {}
    skeleton, abstract = abstract_vocoder(spec)
    shapes = {name: tuple(x.shape) for name, x in abstract.items()}
    tensors = expand_rules(rules, shapes)
    for name in tensors:
        if (pair := hifi_gan.folded(name, entries)) is not None:
            if pair[1] not in entries:
                raise Mistake(f"{folder}: has {pair[0]} without its lengths {pair[1]}")
            entries[name], lengths[name] = (entries.pop(part) for part in pair)
    found = {name: x.shape for name, x in entries.items()}
    left_out = check_tensors(tensors, found, ignored, str(folder))
    for name, entry in lengths.items():
        expected = (tensors[name].shape[0], 1, 1)
        if entry.shape != expected:
            raise Mistake(f"{folder}: {entry.name} is {list(entry.shape)}: not {list(expected)}")
    dims = {name: kind.dims for name, kind in skeleton.kinds.items()}
    return ForeignVocoder(spec, tensors, entries, lengths, dims, shapes, left_out)
