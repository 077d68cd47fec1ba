"""Policies of rematerialisation: what the backward pass computes again.

A layer's activations that may be kept have names: `qkv` (queries, keys and values, turned),
`attended` (what attention gives, and the sums its backward pass needs), `out` (what attention adds
to the stream), `gate_up` (both halves of the MLP before they are multiplied). With all four, only
norms and element-wise work is done twice.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from melllm_jax.config.model import Model

Layer = Callable[..., Any]
NAMES = ("qkv", "attended", "out", "gate_up")
CUDNN = "dot_product_attention_fwd"  # its sums have no name that could be given from outside


def name_activation(x: Array, name: str) -> Array:
    """Name `x` for remat, which may keep it under `name`."""
    return checkpoint_name(x, name)


def wrap_layer(layer: Layer, cfg: Model) -> Layer:
    """`layer` with its backward pass under the policy `cfg.remat`."""
    if cfg.remat == "none":
        return layer
    return jax.checkpoint(layer, policy=_policy(cfg), prevent_cse=False)


def _policy(cfg: Model) -> Callable[..., Any] | None:
    """What JAX's checkpoint may save; None saves nothing."""
    policies = jax.checkpoint_policies
    if cfg.remat == "full":
        return None
    if cfg.remat == "dots":
        return policies.dots_with_no_batch_dims_saveable
    if cfg.remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(cfg.kept),
            offload_src="device",
            offload_dst="pinned_host",
        )
    keeps = policies.save_only_these_names(*cfg.kept)
    if "attended" not in cfg.kept:
        return keeps
    return lambda prim, *args, **params: keeps(prim, *args, **params) or CUDNN in prim.name
