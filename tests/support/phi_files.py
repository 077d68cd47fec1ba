"""Small random Phi checkpoints in every layout, written without torch and without our writer.

A checkpoint is a config.json as a tree and its tensors by name; PEFT's lie apart when written.
"""

import contextlib
import functools
import io
import json
import struct

import ml_dtypes
import numpy as np
import pytest

from launch import cli
from melllm_jax.config.model import ModelSpec
from melllm_jax.convert import from_hf, to_hf
from melllm_jax.models import parameters

D, N, K, H, F, L, V, C, R, ALPHA = 32, 4, 2, 8, 48, 2, 64, 8, 4, 6
NUMBERS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
EXTEND = "model.embed_tokens_extend."
AUDIO = f"{EXTEND}audio_embed."
PEFT = "base_model.model."
MATRICES = {  # rows and columns of each layer's matrices
    "self_attn.qkv_proj": ((N + 2 * K) * H, D),
    "self_attn.o_proj": (D, N * H),
    "mlp.gate_up_proj": (2 * F, D),
    "mlp.down_proj": (D, F),
}
TEXT = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": D,
    "intermediate_size": F,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": N,
    "num_hidden_layers": L,
    "num_key_value_heads": K,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": V,
}
TIED = TEXT | {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.5, 2.0],
        "long_factor": [3.0, 4.0, 8.0],
    },
    "sliding_window": 48,
    "tie_word_embeddings": True,
}
MICROSOFT = TIED | {
    "architectures": ["Phi4MMForCausalLM"],
    "audio_processor": {
        "config": {
            "attention_dim": C,
            "attention_heads": 1,
            "encoder_embedding_config": {"input_size": 80},
            "input_layer": "nemo_conv",
            "input_size": 80,
            "nemo_conv_settings": {"conv_channels": C},
            "num_blocks": 1,
            "time_reduction": 8,
        },
        "name": "cascades",
    },
    "embd_layer": {
        "audio_embd_layer": {
            "compression_rate": 8,
            "downsample_rate": 1,
            "embedding_cls": "audio",
            "projection_cls": "mlp",
        },
        "embedding_cls": "image_audio",
        "image_embd_layer": {"embedding_cls": "tune_image"},
    },
    "img_processor": None,
    "model_type": "phi4mm",
    "speech_lora": {
        "dp": 0.01,
        "layer": r"((layers.*self_attn\.(qkv|o)_proj)|(layers.*mlp\.(gate_up|down)_proj))",
        "lora_alpha": ALPHA,
        "r": R,
    },
    "vision_lora": {"dp": 0.0, "layer": "layers.*_proj", "lora_alpha": 4, "r": 2},
}
TRANSFORMERS = TIED | {
    "architectures": ["Phi4MultimodalForCausalLM"],
    "audio_config": {
        "audio_token_id": 63,
        "hidden_size": C,
        "model_type": "phi4_multimodal_audio",
        "nemo_conv_channels": C,
        "num_attention_heads": 1,
        "num_blocks": 1,
    },
    "model_type": "phi4_multimodal",
    "vision_config": {"hidden_size": 16, "model_type": "phi4_multimodal_vision"},
}
ADAPTER = {
    "bias": "none",
    "inference_mode": True,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.01,
    "peft_type": "LORA",
    "r": R,
    "target_modules": r"model.layers.\d+.((self_attn.(qkv|o)_proj)|(mlp.(gate_up|down)_proj))",
    "task_type": "CAUSAL_LM",
}
TREES = {
    "text": TEXT,
    "text in files": TEXT,
    "tied": TIED,
    "microsoft": MICROSOFT,
    "transformers": TRANSFORMERS,
}
# Every kind in one number format, and the kind of the most parts in all.
KINDS_OF_NUMBERS = [(kind, "bfloat16") for kind in TREES] + [
    ("transformers", "float32"),
    ("transformers", "float16"),
]
COMPANIONS = {
    "tokenizer.json": {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
    },
    "tokenizer_config.json": {"model_max_length": 64},
    "generation_config.json": {"eos_token_id": [2, 3]},
}


def tensors(kind, number="float32", seed=0):
    """Random tensors of a kind of checkpoint by name; those that nobody reads among them."""
    shapes = _decoder(".base_layer" if kind == "microsoft" else "")
    if kind.startswith("text"):
        shapes["lm_head.weight"] = (V, D)
    if kind == "microsoft":
        projections = ("audio_projection.speech", "audio_projection.vision")
        names = [f"{whole}.{step}" for whole in projections for step in (0, 2)]
        shapes |= _front(*names) | _vision() | _lora("", ".speech", R) | _lora("", ".vision", 2)
    if kind == "transformers":
        ends = ("speech", "vision_speech")
        names = [f"{step}_proj_for_{end}" for end in ends for step in ("up", "down")]
        shapes |= _front(*names) | _vision() | _lora(PEFT, "", R)
    rng = np.random.default_rng(seed)
    made = {name: _random(rng, name, shape, NUMBERS[number]) for name, shape in shapes.items()}
    if kind == "microsoft":  # no weight of ours is of integers: it passes since nobody reads it
        made[f"{EXTEND}image_embed.img_processor.embeddings.position_ids"] = np.arange(9)
    return made


def random(shape, number, seed=7):
    """A matrix that keeps the size of what it multiplies."""
    return _random(np.random.default_rng(seed), "", shape, NUMBERS[number])


def write(folder, tree, named, files=1):
    """A checkpoint's folder as Hugging Face has it, in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in COMPANIONS.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps(tree))
    main = {name: x for name, x in named.items() if not name.startswith(PEFT)}
    if files == 1:
        save(folder / "model.safetensors", main)
    else:
        names = [f"model-{i:05}-of-{files:05}.safetensors" for i in range(1, files + 1)]
        places = {name: names[i % files] for i, name in enumerate(main)}
        for file in names:
            save(folder / file, {name: x for name, x in main.items() if places[name] == file})
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    apart = {name: x for name, x in named.items() if name.startswith(PEFT)}
    if tree.get("model_type") == "phi4mm":  # a second copy, in Microsoft's repository
        apart = {"nobody.reads.this": np.zeros(3, np.float32)}
    if apart:
        (folder / "speech-lora").mkdir(exist_ok=True)
        (folder / "speech-lora/adapter_config.json").write_text(json.dumps(ADAPTER))
        save(folder / "speech-lora/adapter_model.safetensors", apart)
    return folder


def make(folder, kind, number="float32"):
    """A folder of that kind, and its tensors."""
    named = tensors(kind, number)
    write(folder, TREES[kind], named, files=3 if kind == "text in files" else 1)
    return named


def packed(head, body):
    """Bytes of a safetensors file: a header, as a tree or as bytes, and the numbers."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


def save(path, named):
    """A safetensors file of these arrays."""
    head, body = {"__metadata__": {"format": "pt"}}, b""
    for name, x in named.items():
        ends = [len(body), len(body) + x.nbytes]
        head[name] = {"dtype": CODES[x.dtype.name], "shape": x.shape, "data_offsets": ends}
        body += np.ascontiguousarray(x).tobytes()
    path.write_bytes(packed(head, body))


def load(path):
    """Every array of a safetensors file by name."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    kinds = {code: name for name, code in CODES.items()}
    named = {}
    for name, entry in head.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            kind = np.dtype(kinds[entry["dtype"]])
            named[name] = np.frombuffer(body[start:stop], kind).reshape(entry["shape"])
    return named


def shaped_once():
    """A fixture: the shapes of one model's weights are traced once here, a third of a conversion.

    For tests that convert, and change nothing of how a model is made.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (from_hf, to_hf):
            patch.setattr(module, "abstract_from_spec", _abstract_from_spec)
        yield


def _abstract_from_spec(spec):
    skeleton, shapes = _abstract(spec.model, spec.mel, spec.lora)
    return skeleton, dict(shapes)


@functools.cache
def _abstract(model, mel, lora):
    return parameters.abstract_from_spec(ModelSpec(model, mel, lora=lora))


def told(*words):
    """What `melllm convert WORDS --json` prints, which must succeed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["convert", *map(str, words), "--json"]) == 0
    return json.loads(out.getvalue())


def expected(named, kind, lora=True):
    """Our weights from a checkpoint's tensors, by NumPy and by hand."""
    base = ".base_layer" if kind == "microsoft" else ""

    def layers(name):
        return np.stack([named[f"model.layers.{i}.{name}.weight"] for i in range(L)])

    heads = lambda rows: rows.reshape(L, -1, H, rows.shape[-1]).transpose(0, 3, 1, 2)
    turned = lambda matrix: matrix.transpose(0, 2, 1)
    qkv, both = layers(f"self_attn.qkv_proj{base}"), layers(f"mlp.gate_up_proj{base}")
    block = "stack.blocks."
    ours = {
        "embed": named["model.embed_tokens.weight"],
        "norm.scale": named["model.norm.weight"],
        f"{block}attn_norm.scale": layers("input_layernorm"),
        f"{block}mlp_norm.scale": layers("post_attention_layernorm"),
        f"{block}attn.q": heads(qkv[:, :32]),  # 4 heads of 8
        f"{block}attn.k": heads(qkv[:, 32:48]),  # 2 heads
        f"{block}attn.v": heads(qkv[:, 48:]),
        f"{block}attn.o": turned(layers(f"self_attn.o_proj{base}")).reshape(L, N, H, D),
        f"{block}mlp.gate": turned(both[:, :48]),
        f"{block}mlp.up": turned(both[:, 48:]),
        f"{block}mlp.down": turned(layers(f"mlp.down_proj{base}")),
    }
    if kind.startswith("text"):
        ours["head"] = named["lm_head.weight"].T
    if kind in ("microsoft", "transformers"):
        speech = "audio_projection.speech."
        up, down = (f"{speech}0", f"{speech}2")
        if kind == "transformers":
            up, down = "up_proj_for_speech", "down_proj_for_speech"
        ours |= _conv(lambda name: named[f"{AUDIO}{name}"], up, down)
        if lora:
            ours |= low_rank(named, kind)
    return ours


def _conv(tensor, up, down):
    conv = lambda number: tensor(f"encoder.embed.conv.{number}.weight")
    bias = lambda number: tensor(f"encoder.embed.conv.{number}.bias")
    ours = {
        "mean": tensor("encoder.encoder_embedding.global_mean"),
        "invstd": tensor("encoder.encoder_embedding.global_invstd"),
        "first": conv(0)[:, 0].transpose(1, 2, 0),
        "first_bias": bias(0),
        # Each channel's ten bands stand side by side in a row.
        "out": tensor("encoder.embed.out.weight").reshape(C, C, 10).transpose(2, 1, 0),
        "out_bias": tensor("encoder.embed.out.bias"),
        "up": tensor(f"{up}.weight").T,
        "up_bias": tensor(f"{up}.bias"),
        "down": tensor(f"{down}.weight").T,
        "down_bias": tensor(f"{down}.bias"),
    }
    for place, (depth, point) in enumerate([(2, 3), (5, 6)]):
        ours[f"depth.{place}"] = conv(depth)[:, 0].transpose(1, 2, 0)
        ours[f"depth_bias.{place}"] = bias(depth)
        ours[f"point.{place}"] = conv(point)[:, :, 0, 0].T
        ours[f"point_bias.{place}"] = bias(point)
    return {f"front.{name}": x for name, x in ours.items()}


def pair(named, kind, matrix, i):
    """LoRA's A and B of one matrix of a layer."""
    prefix, adapter = ("", ".speech") if kind == "microsoft" else (PEFT, "")
    whole = f"{prefix}model.layers.{i}.{matrix}"
    return tuple(named[f"{whole}.lora_{x}{adapter}.weight"] for x in "AB")


def low_rank(named, kind):
    """Our LoRA from a checkpoint's."""

    def both(matrix):
        a, b = zip(*(pair(named, kind, matrix, i) for i in range(L)), strict=True)
        return np.stack(a).transpose(0, 2, 1), np.stack(b)

    heads = lambda rows: rows.reshape(L, -1, H, R).transpose(0, 3, 1, 2)
    turned = lambda matrix: matrix.transpose(0, 2, 1)
    (qkv, wide), (o, narrow) = both("self_attn.qkv_proj"), both("self_attn.o_proj")
    (gate_up, two), (down, one) = both("mlp.gate_up_proj"), both("mlp.down_proj")
    ours = {
        "attn.qkv_lora.a": qkv,
        "attn.qkv_lora.b.0": heads(wide[:, :32]),
        "attn.qkv_lora.b.1": heads(wide[:, 32:48]),
        "attn.qkv_lora.b.2": heads(wide[:, 48:]),
        "attn.o_lora.a": o.reshape(L, N, H, R),
        "attn.o_lora.b.0": turned(narrow),
        "mlp.gate_up_lora.a": gate_up,
        "mlp.gate_up_lora.b.0": turned(two[:, :48]),
        "mlp.gate_up_lora.b.1": turned(two[:, 48:]),
        "mlp.down_lora.a": down,
        "mlp.down_lora.b.0": turned(one),
    }
    return {f"stack.blocks.{name}": x for name, x in ours.items()}


def _decoder(base):
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(L):
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{name}.weight"] = (D,)
        for name, shape in MATRICES.items():
            shapes[f"model.layers.{i}.{name}{base}.weight"] = shape
    return shapes


def _lora(prefix, adapter, rank):
    shapes = {}
    for i in range(L):
        for name, (rows, columns) in MATRICES.items():
            whole = f"{prefix}model.layers.{i}.{name}"
            shapes[f"{whole}.lora_A{adapter}.weight"] = (rank, columns)
            shapes[f"{whole}.lora_B{adapter}.weight"] = (rows, rank)
    return shapes


def _front(*projections):
    """The audio tower; its projections go up and down in turns."""
    embed = f"{AUDIO}encoder.embed."
    shapes = {
        f"{AUDIO}encoder.encoder_embedding.global_mean": (80,),
        f"{AUDIO}encoder.encoder_embedding.global_invstd": (80,),
        f"{AUDIO}encoder.encoders.0.layer_norm.weight": (C,),
        f"{AUDIO}encoder.relative_attention_bias_layer.bias_values.weight": (6, 1),
        f"{embed}out.weight": (C, C * 10),
        f"{embed}out.bias": (C,),
    }
    for number in (0, 2, 3, 5, 6):
        point = number in (3, 6)
        shapes[f"{embed}conv.{number}.weight"] = (C, C, 1, 1) if point else (C, 1, 3, 3)
        shapes[f"{embed}conv.{number}.bias"] = (C,)
    for name, columns in zip(projections, (C, D, C, D), strict=True):
        shapes[f"{AUDIO}{name}.weight"] = (D, columns)
        shapes[f"{AUDIO}{name}.bias"] = (D,)
    return shapes


def _vision():
    return {f"{EXTEND}image_embed.img_projection.0.weight": (D, 16)}


def _random(rng, name, shape, dtype):
    """Norms about 1, biases about 0, matrices that keep the size of what they multiply."""
    rest = 1.0 if "norm" in name or "invstd" in name else 0.0
    spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2
    return (rest + spread * rng.standard_normal(shape)).astype(dtype)
