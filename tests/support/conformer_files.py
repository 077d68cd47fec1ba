"""Small random Phi-4-multimodal checkpoints with a whole Conformer, in both layouts.

As `phi_files`, written without torch and without our writer.
"""

import copy

import numpy as np

from tests.support import phi_files
from tests.support.phi_files import AUDIO, C

L, N, F, TAPS, DISTANCE = 2, 2, 12, 3, 5
TRANSFORMERS = {
    "bias_max_distance": DISTANCE,
    "chunk_size": 4,
    "depthwise_separable_out_channel": C,
    "ext_pw_out_channel": C,
    "intermediate_size": F,
    "kernel_size": TAPS,
    "left_chunk": 1,
    "num_attention_heads": N,
    "num_blocks": L,
}
MICROSOFT = {
    "activation": "swish",
    "attention_heads": N,
    "batch_norm": False,
    "bias_in_glu": True,
    "causal": True,
    "chunk_size": -1,
    "cnn_layer_norm": True,
    "conv_activation": "swish",
    "conv_glu_type": "swish",
    "depthwise_multiplier": 1,
    "depthwise_seperable_out_channel": C,
    "ext_pw_kernel_size": 1,
    "ext_pw_out_channel": C,
    "kernel_size": TAPS,
    "left_chunk": 1,
    "linear_units": F,
    "num_blocks": L,
    "relative_attention_bias_args": {"t5_bias_max_distance": DISTANCE, "type": "t5"},
}
LINEARS = {  # rows and columns of a block's matrices, as the two layouts call them
    "self_attn.q_proj": ("self_attn.linear_q", C, C),
    "self_attn.k_proj": ("self_attn.linear_k", C, C),
    "self_attn.v_proj": ("self_attn.linear_v", C, C),
    "self_attn.o_proj": ("self_attn.linear_out", C, C),
    "feed_forward_in.gate_up_proj": ("feed_forward_in.net.0.linear", 2 * F, C),
    "feed_forward_in.down_proj": ("feed_forward_in.net.2", C, F),
    "feed_forward_out.gate_up_proj": ("feed_forward_out.net.0.linear", 2 * F, C),
    "feed_forward_out.down_proj": ("feed_forward_out.net.2", C, F),
}
CONVOLUTIONS = {
    "conv.glu.ext_pw_conv_1d": (2 * C, C, 1),
    "conv.dw_sep_conv_1d.dw_conv": (C, 1, TAPS),
    "conv.dw_sep_conv_1d.pw_conv": (C, C, 1),
    "conv.ext_pw_conv_1d": (C, C, 1),
}
NORMS = (
    "feed_forward_in.layer_norm",
    "feed_forward_out.layer_norm",
    "conv.layer_norm",
    "layer_norm_att",
    "layer_norm",
)


def tree(kind, **changes):
    """The config.json of a kind, `changes` made to the encoder's fields."""
    whole = copy.deepcopy(phi_files.TREES[kind])
    if kind == "microsoft":
        whole["audio_processor"]["config"] |= MICROSOFT | changes
    else:
        whole["audio_config"] |= TRANSFORMERS | changes
    return whole


def tensors(kind):
    """Every tensor by name, those that nobody reads among them."""
    named = phi_files.tensors(kind)
    blocks = f"{AUDIO}encoder.encoders."
    kept = {name: x for name, x in named.items() if not name.startswith(blocks)}
    rng = np.random.default_rng(1)
    random = lambda shape: (rng.standard_normal(shape) * 0.3).astype(np.float32)
    table = f"{AUDIO}encoder.relative_attention_bias_layer.bias_values.weight"
    kept[table] = random((2 * DISTANCE, N))
    for i in range(L):
        for ours, (theirs, rows, columns) in LINEARS.items():
            name = f"{blocks}{i}.{theirs if kind == 'microsoft' else ours}"
            kept |= {f"{name}.weight": random((rows, columns)), f"{name}.bias": random(rows)}
        for module, shape in CONVOLUTIONS.items():
            name = f"{blocks}{i}.{module}"
            kept |= {f"{name}.weight": random(shape), f"{name}.bias": random(shape[0])}
        for module in NORMS:
            name = f"{blocks}{i}.{module}"
            kept |= {f"{name}.weight": 1 + random(C), f"{name}.bias": random(C)}
        for name in ("b1", "b2"):
            kept[f"{blocks}{i}.conv.glu.{name}"] = random((1, C, 1))
    return kept


def make(folder, kind, **changes):
    """A folder of that kind, and its tensors."""
    named = tensors(kind)
    phi_files.write(folder, tree(kind, **changes), named)
    return named
