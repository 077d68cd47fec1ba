"""A small random Whisper checkpoint, written without torch and without our writer.

It hears windows of one second, spells by bytes, and detects one of two languages.
"""

import json

import numpy as np
import tokenizers

from tests.support import phi_files

D, N, F, L, POSITIONS, M, V = 16, 2, 24, 2, 50, 80, 264
DN, DF, DL, TARGETS = 4, 40, 3, 24  # the decoder's own sizes
END, START, EN, DE, TRANSCRIBE, SILENT = range(256, 262)
SPECIALS = {
    "<|endoftext|>": END,
    "<|startoftranscript|>": START,
    "<|en|>": EN,
    "<|de|>": DE,
    "<|transcribe|>": TRANSCRIBE,
    "<|notimestamps|>": SILENT,
}
TREE = {
    "architectures": ["WhisperForConditionalGeneration"],
    "model_type": "whisper",
    "activation_function": "gelu",
    "d_model": D,
    "encoder_attention_heads": N,
    "encoder_ffn_dim": F,
    "encoder_layers": L,
    "decoder_attention_heads": DN,
    "decoder_ffn_dim": DF,
    "decoder_layers": DL,
    "max_source_positions": POSITIONS,
    "max_target_positions": TARGETS,
    "num_mel_bins": M,
    "vocab_size": V,
    "is_encoder_decoder": True,
    "torch_dtype": "float16",
    "suppress_tokens": [],
    "decoder_start_token_id": START,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
}
GENERATION = {
    "decoder_start_token_id": START,
    "eos_token_id": END,
    "pad_token_id": END,
    "bos_token_id": END,
    "suppress_tokens": [5, 7, *range(START, SILENT + 1)],
    "begin_suppress_tokens": [ord(" "), END],
    "forced_decoder_ids": [[1, None], [2, TRANSCRIBE]],
    "lang_to_id": {"<|en|>": EN, "<|de|>": DE},
    "task_to_id": {"transcribe": TRANSCRIBE},
    "is_multilingual": True,
    "no_timestamps_token_id": SILENT,
    "return_timestamps": False,
    "max_length": TARGETS,
}
ENCODER_SHAPES = {
    "embed_positions.weight": (POSITIONS, D),
    "conv1.weight": (D, M, 3),
    "conv1.bias": (D,),
    "conv2.weight": (D, D, 3),
    "conv2.bias": (D,),
}
DECODER_SHAPES = {"embed_tokens.weight": (V, D), "embed_positions.weight": (TARGETS, D)}


def tensors(number="float16", prefix="model.", seed=0):
    """Random tensors by name, of encoder and decoder."""
    rng = np.random.default_rng(seed)
    shapes = {f"encoder.{name}": shape for name, shape in ENCODER_SHAPES.items()}
    shapes |= {f"decoder.{name}": shape for name, shape in DECODER_SHAPES.items()}
    norms = ["encoder.layer_norm", "decoder.layer_norm"]
    for side, layers, width in (("encoder", L, F), ("decoder", DL, DF)):
        attentions = ["self_attn", *["encoder_attn"] * (side == "decoder")]
        for i in range(layers):
            block = f"{side}.layers.{i}."
            norms += [f"{block}{name}_layer_norm" for name in (*attentions, "final")]
            shapes |= {f"{block}fc1.weight": (width, D), f"{block}fc1.bias": (width,)}
            shapes |= {f"{block}fc2.weight": (D, width), f"{block}fc2.bias": (D,)}
            for name in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes[f"{block}{name}.{part}.weight"] = (D, D)
                    if part != "k_proj":
                        shapes[f"{block}{name}.{part}.bias"] = (D,)
    shapes |= {f"{norm}.{part}": (D,) for norm in norms for part in ("weight", "bias")}
    dtype = phi_files.NUMBERS[number]
    return {f"{prefix}{name}": _random(rng, name, shape, dtype) for name, shape in shapes.items()}


def write(folder, tree=TREE, named=None, generation=GENERATION):
    """The checkpoint's folder as Hugging Face has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tree))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "tokenizer.json").write_text(_tokenizer())
    phi_files.save(folder / "model.safetensors", tensors() if named is None else named)
    return folder


def _tokenizer():
    """Bytes as tokens, and the special ones after them."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    codes = sorted(letters)
    model = tokenizers.models.BPE({letter: i for i, letter in enumerate(codes)}, [])
    table = tokenizers.Tokenizer(model)
    table.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = tokenizers.decoders.ByteLevel()
    table.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=False, special=True) for name in SPECIALS]
    )
    assert {name: table.token_to_id(name) for name in SPECIALS} == SPECIALS
    return table.to_str()


def _random(rng, name, shape, dtype):
    """Norms about 1, biases about 0, matrices that keep the size of what they multiply."""
    rest = 1.0 if "norm.weight" in name else 0.0
    spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
    return (rest + spread * rng.standard_normal(shape)).astype(dtype)
