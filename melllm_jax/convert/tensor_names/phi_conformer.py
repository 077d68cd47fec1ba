"""Maps the tensors of Phi-4-multimodal's Conformer to our names, in both layouts.

Sources: transformers' `modeling_phi4_multimodal.py`; Microsoft's names by copies of its code in
others' software, not yet held against its files.
"""

from collections.abc import Mapping

from melllm_jax.convert.weight_map import LAYER, Rule

# What Microsoft's layout calls transformers' modules of a block, where they differ.
MICROSOFT: Mapping[str, str] = {
    "feed_forward_in.gate_up_proj": "feed_forward_in.net.0.linear",
    "feed_forward_in.down_proj": "feed_forward_in.net.2",
    "feed_forward_out.gate_up_proj": "feed_forward_out.net.0.linear",
    "feed_forward_out.down_proj": "feed_forward_out.net.2",
    "self_attn.q_proj": "self_attn.linear_q",
    "self_attn.k_proj": "self_attn.linear_k",
    "self_attn.v_proj": "self_attn.linear_v",
    "self_attn.o_proj": "self_attn.linear_out",
}
NORMS = {
    "feed_forward_in.layer_norm": "mlp_in.norm",
    "layer_norm_att": "attn_norm",
    "conv.layer_norm": "conv.norm",
    "feed_forward_out.layer_norm": "mlp_out.norm",
    "layer_norm": "norm",
}
# Modules with a weight and a bias: ours that lie in them, and the patterns of the two.
MODULES: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "feed_forward_in.gate_up_proj": (("mlp_in.up", "mlp_in.gate"), "f d -> d f", "f -> f"),
    "feed_forward_in.down_proj": (("mlp_in.down",), "d f -> f d", "d -> d"),
    "self_attn.q_proj": (("attn.q",), "(n h) d -> d n h", "(n h) -> n h"),
    "self_attn.k_proj": (("attn.k",), "(n h) d -> d n h", "(n h) -> n h"),
    "self_attn.v_proj": (("attn.v",), "(n h) d -> d n h", "(n h) -> n h"),
    "self_attn.o_proj": (("attn.o",), "d (n h) -> n h d", "d -> d"),
    "conv.glu.ext_pw_conv_1d": (("conv.up", "conv.gate"), "f d 1 -> d f", "f -> f"),
    "conv.dw_sep_conv_1d.dw_conv": (("conv.depth",), "f 1 x -> x f", "f -> f"),
    "conv.dw_sep_conv_1d.pw_conv": (("conv.point",), "d f 1 -> f d", "d -> d"),
    "conv.ext_pw_conv_1d": (("conv.out",), "d e 1 -> e d", "d -> d"),
    "feed_forward_out.gate_up_proj": (("mlp_out.up", "mlp_out.gate"), "f d -> d f", "f -> f"),
    "feed_forward_out.down_proj": (("mlp_out.down",), "d f -> f d", "d -> d"),
}


def conformer_rules(encoder: str, names: Mapping[str, str]) -> list[Rule]:
    """The blocks and the bias of distances.

    `encoder` is what all their names begin with; `names` says what they call a module that
    transformers calls otherwise.
    """
    block, ours = f"{encoder}encoders.{LAYER}.", "front.blocks."
    table = f"{encoder}relative_attention_bias_layer.bias_values.weight"
    rules = [Rule(table, ("front.distances",), ("z n -> z n",))]
    for theirs, name in NORMS.items():
        for kind, part in (("weight", "scale"), ("bias", "bias")):
            rules.append(Rule(f"{block}{theirs}.{kind}", (f"{ours}{name}.{part}",), ("d -> d",)))
    for theirs, part in (("b1", "up_shift"), ("b2", "gate_shift")):
        rules.append(Rule(f"{block}conv.glu.{theirs}", (f"{ours}conv.{part}",), ("i f 1 -> i f",)))
    for theirs, (parts, matrix, bias) in MODULES.items():
        module = block + names.get(theirs, theirs)
        weights, biases = (tuple(f"{ours}{x}{end}" for x in parts) for end in ("", "_bias"))
        rules.append(Rule(f"{module}.weight", weights, (matrix,) * len(parts)))
        rules.append(Rule(f"{module}.bias", biases, (bias,) * len(parts)))
    return rules
