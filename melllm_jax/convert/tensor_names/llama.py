"""Maps the tensors of Llama, and of Mistral, Qwen2 and Qwen3, to our names.

All four keep q, k, v, gate and up apart. Qwen2 adds biases to q, k and v, Qwen3 a norm to the heads
of q and k. Sources: transformers' `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`
and `modeling_qwen3.py`.
"""

import dataclasses

from melllm_jax.config.model import Model
from melllm_jax.convert.tensor_names.decoder import (
    HEADS,
    MATRIX,
    Projection,
    TensorNames,
    layer_rule,
)
from melllm_jax.convert.weight_map import Rule

HEADS_B, MATRIX_B, NARROW_B = ("(n h) r -> r n h",), ("f r -> r f",), ("d r -> r d",)
PROJECTIONS = {
    "self_attn.q_proj": Projection("attn", ("q",), (HEADS,), "qkv_lora", "r d -> d r", HEADS_B),
    "self_attn.k_proj": Projection("attn", ("k",), (HEADS,), "qkv_lora", "r d -> d r", HEADS_B, 1),
    "self_attn.v_proj": Projection("attn", ("v",), (HEADS,), "qkv_lora", "r d -> d r", HEADS_B, 2),
    "self_attn.o_proj": Projection(
        "attn", ("o",), ("d (n h) -> n h d",), "o_lora", "r (n h) -> n h r", NARROW_B
    ),
    "mlp.gate_proj": Projection(
        "mlp", ("gate",), (MATRIX,), "gate_up_lora", "r d -> d r", MATRIX_B
    ),
    "mlp.up_proj": Projection("mlp", ("up",), (MATRIX,), "gate_up_lora", "r d -> d r", MATRIX_B, 1),
    "mlp.down_proj": Projection(
        "mlp", ("down",), ("d f -> f d",), "down_lora", "r f -> f r", NARROW_B
    ),
}


@dataclasses.dataclass(frozen=True)
class LlamaTensorNames(TensorNames):
    """Names of a decoder of Llama's layout, with the vectors that its kin add."""

    def weights(self, model: Model) -> list[Rule]:
        """Rules of all tensors but LoRA's."""
        rules = super().weights(model)
        if model.qkv_bias:
            rules += [
                layer_rule(f"self_attn.{x}_proj.bias", f"attn.{x}_bias", "(n h) -> n h")
                for x in "qkv"
            ]
        if model.qk_norm:
            rules += [
                layer_rule(f"self_attn.{x}_norm.weight", f"attn.{x}_norm.scale", "h -> h")
                for x in "qk"
            ]
        return rules


LLAMA_NAMES = LlamaTensorNames(PROJECTIONS)
