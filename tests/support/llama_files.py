"""Small random checkpoints of Llama and its kin, sized as in `phi_files`, written without torch.

They are Phi's with the fused projections taken apart, and with the vectors that Qwen adds.
"""

import numpy as np

from tests.support import phi_files
from tests.support.phi_files import D, F, H, K, L, N, V

TREE = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": D,
    "intermediate_size": F,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": N,
    "num_hidden_layers": L,
    "num_key_value_heads": K,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "vocab_size": V,
}
SCALING = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
TREES = {  # by kind
    "llama": TREE,
    "llama3": TREE | {"rope_scaling": SCALING},
    "qwen2": TREE | {"model_type": "qwen2"},
    "qwen3": TREE | {"model_type": "qwen3", "head_dim": H},
}
PARTS = {  # rows of each part of a fused projection
    "qkv_proj": {"q_proj": N * H, "k_proj": K * H, "v_proj": K * H},
    "gate_up_proj": {"gate_proj": F, "up_proj": F},
}
MATRICES = {  # rows and columns of each layer's matrices
    "self_attn.q_proj": (N * H, D),
    "self_attn.k_proj": (K * H, D),
    "self_attn.v_proj": (K * H, D),
    "self_attn.o_proj": (D, N * H),
    "mlp.gate_proj": (F, D),
    "mlp.up_proj": (F, D),
    "mlp.down_proj": (D, F),
}


def tensors(kind):
    """Random tensors of a tied model of that kind, by name."""
    named, rng = {}, np.random.default_rng(1)
    for name, x in phi_files.tensors("tied").items():
        parts = next((parts for fused, parts in PARTS.items() if fused in name), {})
        if not parts:
            named[name] = x
        fused = name.split(".")[-2]
        rows = np.split(x, np.cumsum([*parts.values()])[:-1]) if parts else []
        named |= {name.replace(fused, part): r for part, r in zip(parts, rows, strict=True)}
    for i in range(L):
        layer = f"model.layers.{i}.self_attn."
        if kind == "qwen2":
            sizes = PARTS["qkv_proj"].items()
            named |= {f"{layer}{x}.bias": rng.standard_normal(n, np.float32) for x, n in sizes}
        if kind == "qwen3":
            one = lambda: 1 + np.float32(0.2) * rng.standard_normal(H, np.float32)
            named |= {f"{layer}{x}_norm.weight": one() for x in "qk"}
    return named


def make(folder, kind="llama"):
    """A folder of that kind, and its tensors."""
    named = tensors(kind)
    phi_files.write(folder, TREES[kind], named)
    return named
