"""A small random Whisper checkpoint, written without torch and without our writer."""

import json

import numpy as np

from tests.support import phi_files

D, N, F, L, POSITIONS, M, V = 16, 2, 24, 2, 50, 80, 12
TREE = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "activation_function": "gelu",
    "d_model": D,
    "encoder_attention_heads": N,
    "encoder_ffn_dim": F,
    "encoder_layers": L,
    "decoder_layers": 1,
    "max_source_positions": POSITIONS,
    "max_target_positions": 8,
    "num_mel_bins": M,
    "vocab_size": V,
    "is_encoder_decoder": True,
    "torch_dtype": "float16",
    "suppress_tokens": [],
}


def tensors(number="float16", prefix="model.", seed=0):
    """Random tensors by name, some of a decoder among them."""
    rng = np.random.default_rng(seed)
    shapes = {"encoder.embed_positions.weight": (POSITIONS, D)}
    shapes |= {"encoder.conv1.weight": (D, M, 3), "encoder.conv2.weight": (D, D, 3)}
    shapes |= {f"encoder.conv{i}.bias": (D,) for i in (1, 2)}
    norms = ["encoder.layer_norm"]
    for i in range(L):
        block = f"encoder.layers.{i}."
        norms += [f"{block}self_attn_layer_norm", f"{block}final_layer_norm"]
        for name, (rows, columns) in {
            "self_attn.q_proj": (D, D),
            "self_attn.k_proj": (D, D),
            "self_attn.v_proj": (D, D),
            "self_attn.out_proj": (D, D),
            "fc1": (F, D),
            "fc2": (D, F),
        }.items():
            shapes[f"{block}{name}.weight"] = (rows, columns)
            if not name.endswith("k_proj"):
                shapes[f"{block}{name}.bias"] = (rows,)
    shapes |= {f"{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
    shapes |= {"decoder.embed_tokens.weight": (V, D), "decoder.layers.0.fc1.bias": (F,)}
    dtype = phi_files.NUMBERS[number]
    spread = lambda shape: np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
    return {
        f"{prefix}{name}": (spread(shape) * rng.standard_normal(shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def write(folder, tree=TREE, named=None):
    """The checkpoint's folder as Hugging Face has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tree))
    phi_files.save(folder / "model.safetensors", tensors() if named is None else named)
    return folder
