"""Reads a WavLM from a folder in Hugging Face's layout: its sizes, and the network itself.

Defaults are those of transformers 5.24's WavLMConfig. What is of training or of a head leaves the
hidden states alone.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from melllm_jax.config.encoders import WavLM
from melllm_jax.convert import block_copy, safetensors_files
from melllm_jax.convert.hf_config.fields import (
    COMMON,
    FLAG,
    ignored_fields,
    only_field,
    read_fields,
    refuse_field,
    size_field,
    sizes_field,
)
from melllm_jax.convert.safetensors_files import TensorEntry
from melllm_jax.convert.tensor_names import wavlm
from melllm_jax.convert.tensor_names.hifi_gan import folded
from melllm_jax.convert.weight_map import (
    LAYER,
    IgnoredTensors,
    check_tensors,
    expand_rules,
    read_weights,
)
from melllm_jax.encoders.wavlm import WavLMEncoder
from melllm_jax.errors import Mistake
from melllm_jax.json_text import read_object
from melllm_jax.models.parameters import abstract_model

MODEL_TYPE, PREFIX = "wavlm", "wavlm."
TORCH_CONVERSION = (
    'python -c "from transformers import WavLMModel as M; '
    "M.from_pretrained('{0}').save_pretrained('{0}-safetensors')\""
)
DEEPER = "layer beyond those asked for"


FIELDS = {
    **COMMON,
    "model_type": only_field(MODEL_TYPE),
    "hidden_size": size_field(768),
    "num_hidden_layers": size_field(12),
    "num_attention_heads": size_field(12),
    "intermediate_size": size_field(3072),
    "hidden_act": only_field("gelu"),
    "feat_extract_activation": only_field("gelu"),
    "feat_extract_norm": only_field("group", "layer"),
    "layer_norm_eps": only_field(1e-5),
    "conv_dim": sizes_field(*[512] * 7),
    "conv_stride": sizes_field(5, 2, 2, 2, 2, 2, 2),
    "conv_kernel": sizes_field(10, 3, 3, 3, 3, 2, 2),
    "conv_bias": FLAG,
    "num_conv_pos_embeddings": size_field(128),
    "num_conv_pos_embedding_groups": size_field(16),
    "num_buckets": size_field(320),
    "max_bucket_distance": size_field(800),
    "do_stable_layer_norm": FLAG,
    "add_adapter": only_field(False),
    **ignored_fields(
        """vocab_size num_feat_extract_layers hidden_dropout activation_dropout feat_proj_dropout
        feat_quantizer_dropout final_dropout layerdrop apply_spec_augment mask_time_prob
        mask_time_length mask_time_min_masks mask_feature_prob mask_feature_length
        mask_feature_min_masks mask_channel_length mask_channel_min_space mask_channel_other
        mask_channel_prob mask_channel_selection mask_time_min_space mask_time_other
        mask_time_selection no_mask_channel_overlap no_mask_time_overlap num_codevectors_per_group
        num_codevector_groups contrastive_logits_temperature num_negatives codevector_dim
        proj_codevector_dim diversity_loss_weight ctc_loss_reduction ctc_zero_infinity
        use_weighted_layer_sum classifier_proj_size tdnn_dim tdnn_kernel tdnn_dilation
        xvector_output_dim num_ctc_classes adapter_kernel_size adapter_stride num_adapter_layers
        output_hidden_size replace_prob freeze_feat_extract_train"""
    ),
}


def wavlm_sizes(tree: Mapping[str, Any], where: str) -> WavLM:
    """The sizes that a config.json says; `where` names it. Raises Mistake for what we lack."""
    top = read_fields(tree, FIELDS, where)
    for name, value in top.items():
        if name in ("conv_stride", "conv_kernel") and len(value) != len(top["conv_dim"]):
            refuse_field(where, name, value, f"must be {len(top['conv_dim'])}, as conv_dim has")
    try:
        return WavLM(
            d=top["hidden_size"],
            n=top["num_attention_heads"],
            f=top["intermediate_size"],
            l=top["num_hidden_layers"],
            channels=tuple(top["conv_dim"]),
            kernels=tuple(top["conv_kernel"]),
            strides=tuple(top["conv_stride"]),
            bias=top["conv_bias"],
            norm=top["feat_extract_norm"],
            taps=top["num_conv_pos_embeddings"],
            groups=top["num_conv_pos_embedding_groups"],
            buckets=top["num_buckets"],
            distance=top["max_bucket_distance"],
            stable=top["do_stable_layer_norm"],
        )
    except Mistake as error:
        raise Mistake(f"{where}: {error}") from error


def read_wavlm(folder: pathlib.Path, layers: int | None = None, **form: Any) -> WavLMEncoder:
    """The WavLM in a folder, in float32, on the mesh in force.

    `layers` keeps the first so many; `form` are fields of the causal form, which has the same
    weights. Raises Mistake for what we lack, and for a tensor that is missing, of another shape or
    known to no rule.
    """
    cfg = wavlm_sizes(read_object(folder / "config.json"), f"{folder}/config.json")
    kept = cfg.l if layers is None else layers
    if not 0 < kept <= cfg.l:
        raise Mistake(f"layers={layers}: {folder} has {cfg.l}")
    deeper = [f"*{wavlm.BLOCK.replace(LAYER, str(i))}*" for i in range(kept, cfg.l)]
    cfg = dataclasses.replace(cfg, l=kept, **form)
    entries = safetensors_files.list_tensors(folder, TORCH_CONVERSION)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in entries) else ""
    skeleton, shapes = abstract_model(lambda rngs: WavLMEncoder(rngs, cfg))
    tensors = expand_rules(
        wavlm.wavlm_rules(cfg, prefix), {name: x.shape for name, x in shapes.items()}
    )
    name = f"{prefix}{wavlm.POSITIONS}"
    kernel = _position_kernel(name, entries, str(folder))
    if not cfg.last_norm:
        deeper.append(f"*{wavlm.LAST_NORM}.*")
    ignored = [*wavlm.IGNORED, *(IgnoredTensors(pattern, DEEPER) for pattern in deeper)]
    found = {other: x.shape for other, x in entries.items()} | {name: kernel.shape}
    check_tensors(tensors, found, ignored, str(folder))
    rows = lambda other: kernel if other == name else entries[other].rows()
    weights = read_weights(tensors, rows, {ours: x.shape for ours, x in shapes.items()})
    on_mesh = {ours: jnp.asarray(x, device=shapes[ours].sharding) for ours, x in weights.items()}
    return skeleton.model(on_mesh)


def _position_kernel(name: str, entries: dict[str, TensorEntry], where: str) -> np.ndarray:
    """The kernel of the convolution of positions [d c x], each tap of the length that it is given.

    Takes its tensors, of either spelling, out of `entries`.
    """
    pair = folded(name, entries)
    if pair is None:
        raise Mistake(f"{where}: has no tensor {name} as directions and lengths")
    if pair[1] not in entries:
        raise Mistake(f"{where}: has {pair[0]} without its lengths {pair[1]}")
    directions, lengths = (entries.pop(part).rows() for part in pair)
    if directions.ndim != 3 or lengths.shape != (1, 1, directions.shape[2]):
        shapes = f"{list(directions.shape)} and {list(lengths.shape)}"
        raise Mistake(f"{where}: {name} is {shapes}: lengths must be of each tap, [1, 1, taps]")
    taps_first = (x.astype(np.float32).transpose(2, 0, 1) for x in (directions, lengths))
    return block_copy.with_lengths(*taps_first).transpose(1, 2, 0)
