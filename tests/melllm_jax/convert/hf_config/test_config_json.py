"""config.json of real Phi checkpoints, in every dialect, to our spec; and our spec back to them."""

import copy
import dataclasses
import json

import jax.numpy as jnp
import pytest

from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Lora, Model, ModelSpec, Rope
from melllm_jax.convert.hf_config import reader, writer
from melllm_jax.convert.tensor_names import phi
from melllm_jax.errors import Mistake
from melllm_jax.nn.layers import rotary

# Sizes and fields are those of the published files; the factors only have their number of values.
SHORT_48, LONG_48 = [1.0 + 0.01 * i for i in range(48)], [1 + i for i in range(48)]

PHI_3_MINI_4K = {
    "_name_or_path": "Phi-3-mini-4k-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "model_type": "phi3",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2",
    "use_cache": True,
    "vocab_size": 32064,
}
PHI_3_5_MINI = PHI_3_MINI_4K | {
    "_name_or_path": "Phi-3.5-mini-instruct",
    "max_position_embeddings": 131072,
    "rope_scaling": {"long_factor": LONG_48, "short_factor": SHORT_48, "type": "longrope"},
    "sliding_window": 262144,
    "transformers_version": "4.43.3",
}
PHI_3_MEDIUM = PHI_3_MINI_4K | {
    "_name_or_path": "Phi-3-medium-4k-instruct",
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "transformers_version": "4.39.3",
}
PHI_4 = {
    "_name_or_path": "microsoft/phi-4",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {},
    "bos_token_id": 100257,
    "embd_pdrop": 0.0,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "model_type": "phi3",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "pad_token_id": 100257,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.47.0",
    "use_cache": True,
    "vocab_size": 100352,
}
PHI_4_MINI = {
    "_name_or_path": "Phi-4-mini-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        "AutoTokenizer": "Xenova/gpt-4o",
    },
    "bos_token_id": 199999,
    "embd_pdrop": 0.0,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "phi3",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 199999,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": LONG_48, "short_factor": SHORT_48, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
    "vocab_size": 200064,
}
MICROSOFT = PHI_4_MINI | {
    "_attn_implementation": "flash_attention_2",
    "_name_or_path": "Phi-4-multimodal-instruct",
    "architectures": ["Phi4MMForCausalLM"],
    "audio_processor": {
        "config": {
            "activation": "swish",
            "activation_checkpointing": {"interval": 1, "module": "transformer", "offload": False},
            "attention_dim": 1024,
            "attention_heads": 16,
            "batch_norm": False,
            "bias_in_glu": True,
            "causal": True,
            "chunk_size": -1,
            "cnn_layer_norm": True,
            "conv_activation": "swish",
            "conv_glu_type": "swish",
            "depthwise_multiplier": 1,
            "depthwise_seperable_out_channel": 1024,
            "dropout_rate": 0.0,
            "encoder_embedding_config": {"input_size": 80},
            "ext_pw_kernel_size": 1,
            "ext_pw_out_channel": 1024,
            "input_layer": "nemo_conv",
            "input_size": 80,
            "kernel_size": 3,
            "left_chunk": 18,
            "linear_units": 1536,
            "nemo_conv_settings": {"conv_channels": 1024},
            "num_blocks": 24,
            "relative_attention_bias_args": {"t5_bias_max_distance": 500, "type": "t5"},
            "time_reduction": 8,
        },
        "name": "cascades",
    },
    "embd_layer": {
        "audio_embd_layer": {
            "compression_rate": 8,
            "downsample_rate": 1,
            "embedding_cls": "audio",
            "enable_gradient_checkpointing": True,
            "projection_cls": "mlp",
            "use_conv_downsample": False,
            "use_qformer": False,
        },
        "embedding_cls": "image_audio",
        "image_embd_layer": {"crop_size": 448, "embedding_cls": "tune_image"},
    },
    "img_processor": None,
    "model_type": "phi4mm",
    "speech_lora": {
        "dp": 0.01,
        "layer": r"((layers.*self_attn\.(qkv|o)_proj)|(layers.*mlp\.(gate_up|down)_proj))",
        "lora_alpha": 640,
        "r": 320,
    },
    "transformers_version": "4.46.1",
    "vision_lora": {
        "dp": 0.0,
        "layer": r"layers.*((self_attn\.(qkv_proj|o_proj))|(mlp\.(gate_up|down)_proj))",
        "lora_alpha": 512,
        "r": 256,
    },
}
TRANSFORMERS = PHI_4_MINI | {
    "architectures": ["Phi4MultimodalForCausalLM"],
    "audio_config": {
        "activation": "swish",
        "audio_token_id": 200011,
        "bias_max_distance": 500,
        "bias_symmetric": False,
        "chunk_size": -1,
        "conv_activation": "swish",
        "conv_glu_type": "swish",
        "depthwise_multiplier": 1,
        "depthwise_separable_out_channel": 1024,
        "depthwise_seperable_out_channel": 1024,  # Microsoft's spelling came along
        "downsample_rate": 1,
        "dropout_rate": 0.0,
        "ext_pw_out_channel": 1024,
        "feature_layer": -2,
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "input_size": 80,
        "intermediate_size": 1536,
        "kernel_size": 3,
        "left_chunk": 18,
        "model_type": "phi4_multimodal_audio",
        "nemo_activation": "relu",
        "nemo_conv_channels": 1024,
        "nemo_final_size": 10,
        "num_attention_heads": 16,
        "num_blocks": 24,
        "tie_word_embeddings": True,  # of the base class, in a full dump of transformers 4
        "time_reduction": 8,
        "torch_dtype": "bfloat16",
    },
    "eos_token_id": [199999, 200020],
    "model_type": "phi4_multimodal",
    "transformers_version": "4.51.0",
    "vision_config": {"hidden_size": 1152, "model_type": "phi4_multimodal_vision"},
}
ADAPTER = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 640,
    "lora_bias": False,
    "lora_dropout": 0.01,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 320,
    "rank_pattern": {},
    "revision": None,
    "target_modules": r"model.layers.\d+.((self_attn.(qkv|o)_proj)|(mlp.(gate_up|down)_proj))",
    "task_type": "CAUSAL_LM",
    "use_dora": False,
    "use_rslora": False,
}

MINI = Model(d=3072, n=32, k=32, h=96, f=8192, l=32, v=32064, tied=False, window=2047, front="none")
MEDIUM = dataclasses.replace(MINI, d=5120, n=40, k=10, h=128, f=17920, l=40)
LONG = Rope(short=tuple(SHORT_48), long=tuple(map(float, LONG_48)), original=4096, longest=131072)
FOUR_MINI = Model(
    d=3072,
    n=24,
    k=8,
    h=128,
    f=8192,
    l=32,
    v=200064,
    tied=True,
    window=262144,
    front="none",
    rope=dataclasses.replace(LONG, partial=0.75),
)
MULTIMODAL = ModelSpec(
    dataclasses.replace(FOUR_MINI, front="conv", c=1024),
    Mel(kind="phi4", m=80, r=8, normalize="none", telephone="native"),
    Text(template="phi4"),
    Lora(r=320, alpha=640.0, dropout=0.01),
)
MODULES = tuple(phi.PROJECTIONS)
THREE, FOUR = Text(template="phi3"), Text(template="phi4")


@pytest.mark.parametrize(
    ("tree", "model", "text"),
    [
        (PHI_3_MINI_4K, MINI, THREE),
        (PHI_3_5_MINI, dataclasses.replace(MINI, window=262144, rope=LONG), THREE),
        (PHI_3_MEDIUM, MEDIUM, THREE),
        (
            PHI_4,
            dataclasses.replace(
                MEDIUM,
                v=100352,
                window=0,
                rope=Rope(theta=250_000.0, original=16384, longest=16384),
            ),
            FOUR,
        ),
        (PHI_4_MINI, FOUR_MINI, FOUR),
    ],
    ids=["Phi-3-mini-4k", "Phi-3.5-mini", "Phi-3-medium-4k", "Phi-4", "Phi-4-mini"],
)
def test_a_text_model_is_read_to_its_sizes(tree, model, text):
    found = reader.parse_config(tree)
    assert found == reader.HfConfig(ModelSpec(model, text=text, lora=Lora(r=0)), "phi3")


def test_phi_4_multimodal_is_read_from_microsofts_file():
    assert reader.parse_config(MICROSOFT) == reader.HfConfig(MULTIMODAL, "microsoft")


def test_phi_4_multimodal_is_read_from_transformers_files():
    assert reader.parse_config(TRANSFORMERS, ADAPTER) == reader.HfConfig(MULTIMODAL, "transformers")
    bare = dataclasses.replace(MULTIMODAL, lora=Lora(r=0))
    assert reader.parse_config(TRANSFORMERS).spec == bare


def test_target_modules_may_be_a_list_in_any_order():
    listed = ADAPTER | {"target_modules": ["o_proj", "down_proj", "qkv_proj", "gate_up_proj"]}
    assert reader.parse_config(TRANSFORMERS, listed).spec == MULTIMODAL


@pytest.mark.parametrize(
    "rope",
    [
        {"type": "su"},
        {"type": "longrope", "rope_type": "longrope"},
        {"type": "longrope", "factor": 32.0, "attention_factor": (1 + 5 / 12) ** 0.5},
    ],
    ids=["its old name", "both names", "its scales: 131072 = 4096 · 32, 2^12 · 2^5"],
)
def test_longrope_is_read_whatever_it_is_called(rope):
    tree = PHI_4_MINI | {"rope_scaling": {"short_factor": SHORT_48, "long_factor": LONG_48} | rope}
    assert reader.parse_config(tree).spec.model == FOUR_MINI


def test_the_scale_that_is_asked_for_is_the_one_that_rotary_applies():
    """At position 0 each cosine is the scale itself: float32, so 1e-6 of it."""
    at, length = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32)
    scale = float(rotary(FOUR_MINI.rope, FOUR_MINI.rotary_dims, at, length)[0][0, 0, 0])
    with pytest.raises(Mistake) as caught:
        reader.parse_config(changed(PHI_4_MINI, {"rope_scaling.attention_factor": 2.0}))
    says = "config.json: rope_scaling.attention_factor=2.0: must be 1.190238 (or absent)"
    assert str(caught.value) == says
    assert scale == pytest.approx(1.190238, rel=1e-6)


def test_transformers_5_says_rotary_in_one_field():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 4096,
        "short_factor": SHORT_48,
        "long_factor": LONG_48,
    }
    drop = ("rope_scaling", "rope_theta", "partial_rotary_factor", "torch_dtype")
    tree = {name: value for name, value in PHI_4_MINI.items() if name not in drop}
    new = tree | {"rope_parameters": rope, "dtype": "bfloat16"}
    assert reader.parse_config(new) == reader.parse_config(PHI_4_MINI)


def test_heads_may_have_a_width_of_their_own():
    tree = {"model_type": "phi3", "head_dim": 64}  # the rest by default: 3072 / 32 would be 96
    assert reader.parse_config(tree).spec.model.h == 64


GONE = object()


def changed(tree, changes):
    """A copy of `tree` with dotted fields set, or taken out where the value is GONE."""
    tree = copy.deepcopy(tree)
    for name, value in changes.items():
        *path, last = name.split(".")
        inner = tree
        for part in path:
            inner = inner[part]
        if value is GONE:
            del inner[last]
        else:
            inner[last] = value
    return tree


KNOWN = "phi3, phi4mm, phi4_multimodal, llama, mistral, qwen2, qwen3"
TARGETS = "qkv_proj, o_proj, gate_up_proj, down_proj"
ROWS = SHORT_48[:47]
FOUR_OF = r"(self_attn\.(qkv|o)|mlp\.(gate_up|down))_proj"
CASCADES = "audio_processor.config"
REFUSALS = [
    (PHI_4, "model_type", "gemma", f"=gemma: must be one of {KNOWN}"),
    (PHI_4, "model_type", "phimoe", f"=phimoe: routes tokens to experts: must be one of {KNOWN}"),
    (PHI_4, "model_type", "phi", f"=phi: must be one of {KNOWN}"),
    (PHI_4, "model_type", GONE, f"=null: must be one of {KNOWN}"),
    (PHI_4, "model_type", ["phi3"], f'=["phi3"]: must be one of {KNOWN}'),
    (
        PHI_4,
        "model_type",
        "phi3small",
        f"=phi3small: has block-sparse attention and a GEGLU with muP: must be one of {KNOWN}",
    ),
    (PHI_4, "logit_scale", 2.0, "=2.0: no rule knows this field: take it out of the file if it"),
    (PHI_4, "layer_types", ["sliding_attention"], ": must be full_attention in every layer"),
    (PHI_4, "hidden_size", "5120", '="5120": must be a whole number of 1 or more'),
    (PHI_4, "hidden_size", 5120.0, "=5120.0: must be a whole number of 1 or more"),
    (PHI_4, "num_hidden_layers", True, "=true: must be a whole number of 1 or more"),
    (PHI_4, "num_hidden_layers", 0, "=0: must be a whole number of 1 or more"),
    (PHI_4, "vocab_size", None, "=null: must be a whole number of 1 or more"),
    (PHI_4, "rms_norm_eps", "1e-5", '="1e-5": must be a number above 0'),
    (PHI_4, "rms_norm_eps", float("nan"), "=NaN: must be a number above 0"),
    (PHI_4, "rope_theta", float("inf"), "=Infinity: must be a number above 0"),
    (PHI_4, "tie_word_embeddings", "true", '="true": must be true or false'),
    (PHI_4, "tie_word_embeddings", 1, "=1: must be true or false"),
    (PHI_4, "sliding_window", 0, "=0: must be a whole number of 1 or more"),
    (PHI_4, "num_key_value_heads", 12, "=12: must divide num_attention_heads=40"),
    (PHI_4, "hidden_size", 5121, "=5121: must be a multiple of num_attention_heads=40"),
    (PHI_4, "original_max_position_embeddings", 1, "=1: must be a whole number of 2 or more"),
    (PHI_4, "hidden_act", "gelu", "=gelu: must be silu"),
    (PHI_4, "attention_bias", True, "=true: must be false"),
    (PHI_4, "mlp_bias", True, "=true: must be false"),
    (PHI_4, "lm_head_bias", True, "=true: must be false"),
    (PHI_4, "full_attn_mod", 2, "=2: must be 1"),
    (PHI_4, "full_attn_mod", True, "=true: must be 1"),
    (PHI_4, "interpolate_factor", 2, "=2: must be 1"),
    (PHI_4, "quantization_config", {"bits": 4}, '={"bits": 4}: must be absent: import the'),
    (PHI_4, "quantization", {"bits": 4}, '={"bits": 4}: must be absent'),
    (PHI_4, "rope_scaling", "longrope", "=longrope: must be an object of fields"),
    (PHI_4, "partial_rotary_factor", 1.5, "=1.5: must be a number above 0 and at most 1"),
    (PHI_4, "partial_rotary_factor", 0.4, "=0.4: must turn an even part of 128 a head"),
    (PHI_4_MINI, "rope_scaling.type", "yarn", "=yarn: must be longrope (or absent)"),
    (PHI_4_MINI, "rope_scaling.rope_type", "llama3", "=llama3: must be longrope (or absent)"),
    (PHI_4_MINI, "rope_scaling.type", GONE, "must be absent without type=longrope"),
    (PHI_4_MINI, "rope_scaling.type", "default", "must be absent without type=longrope"),
    (PHI_4_MINI, "rope_scaling.rope_type", "default", "must equal rope_type=default"),
    (PHI_4_MINI, "rope_scaling.long_factor", ROWS, "must be a list of 48 numbers"),
    (PHI_4_MINI, "rope_scaling.short_factor", GONE, "=null: must be a list of 48 numbers"),
    (PHI_4_MINI, "rope_scaling.short_factor", [0.0] * 48, "must be a list of numbers above 0"),
    (PHI_4_MINI, "rope_scaling.short_factor", ["1"] * 48, "must be a list of numbers above 0"),
    (PHI_4_MINI, "rope_scaling.factor", 16.0, "=16.0: must be 32 (or absent)"),
    (PHI_4_MINI, "rope_scaling.attention_factor", 1.19, "=1.19: must be 1.190238 (or absent)"),
    (PHI_4_MINI, "rope_scaling.short_mscale", 1.1, "=1.1: must be absent"),
    (PHI_4_MINI, "rope_scaling.long_mscale", 1.1, "=1.1: must be absent"),
    (PHI_4_MINI, "rope_scaling.beta_fast", 32, "=32: no rule knows this field"),
    (PHI_4_MINI, "rope_scaling.rope_theta", 5e5, "=500000.0: must equal rope_theta=10000.0"),
    (
        PHI_4_MINI,
        "rope_scaling.original_max_position_embeddings",
        8192,
        "=8192: must equal original_max_position_embeddings=4096",
    ),
    (PHI_4_MINI, "rope_parameters", {"rope_type": "default"}, "must be absent beside rope_scaling"),
    (MICROSOFT, "audio_config", {}, "={}: no rule knows this field"),
    (MICROSOFT, "max_position_embeddings", GONE, " is missing: must be a whole number"),
    (MICROSOFT, "speech_lora", GONE, " is missing: must be an object of fields"),
    (MICROSOFT, "speech_lora", None, "=null: must be an object of fields"),
    (MICROSOFT, "speech_lora.r", "320", '="320": must be a whole number of 1 or more'),
    (MICROSOFT, "speech_lora.dp", 1.0, "=1.0: must lie in [0, 1)"),
    (MICROSOFT, "speech_lora.layer", "(", "=(: is no regular expression"),
    (MICROSOFT, "speech_lora.layer", r"layers.*o_proj", f"must match just {TARGETS} of layer 0"),
    (MICROSOFT, "speech_lora.layer", r"layers.*", f"must match just {TARGETS} of layer 0"),
    (MICROSOFT, "speech_lora.layer", rf"layers\.\d\.{FOUR_OF}", f"just {TARGETS} of layer 10"),
    (MICROSOFT, "speech_lora.layer", rf"layers\.\d+\.{FOUR_OF[:-4]}", "of layer 0"),
    (MICROSOFT, "speech_lora.use_rslora", True, "=true: no rule knows this field"),
    (MICROSOFT, "audio_processor.name", "whisper", "=whisper: must be cascades"),
    (MICROSOFT, f"{CASCADES}.input_layer", "conv2d", "=conv2d: must be nemo_conv"),
    (MICROSOFT, f"{CASCADES}.time_reduction", 4, "=4: must be 8"),
    (MICROSOFT, f"{CASCADES}.input_size", 128, "=128: must be 80"),
    (MICROSOFT, f"{CASCADES}.encoder_embedding_config.input_size", 128, "=128: must be 80"),
    (MICROSOFT, f"{CASCADES}.attention_dim", 512, "=512: must equal conv_channels=1024"),
    (MICROSOFT, f"{CASCADES}.nemo_conv_settings.is_causal", True, "no rule knows this field"),
    (MICROSOFT, f"{CASCADES}.positional", 1, "=1: no rule knows this field"),
    (MICROSOFT, "embd_layer.embedding_cls", "image", "=image: must be image_audio"),
    (MICROSOFT, "embd_layer.audio_embd_layer.embedding_cls", "a", "=a: must be audio"),
    (MICROSOFT, "embd_layer.audio_embd_layer.projection_cls", "linear", "=linear: must be mlp"),
    (MICROSOFT, "embd_layer.audio_embd_layer.projection_cls", GONE, " is missing: must be mlp"),
    (MICROSOFT, "embd_layer.audio_embd_layer.compression_rate", 4, "=4: must be 8"),
    (MICROSOFT, "embd_layer.audio_embd_layer.downsample_rate", 2, "=2: must be 1"),
    (MICROSOFT, "embd_layer.audio_embd_layer.use_qformer", True, "=true: must be false"),
    (MICROSOFT, "embd_layer.audio_embd_layer.use_conv_downsample", True, "=true: must be false"),
    (TRANSFORMERS, "speech_lora", {}, "={}: no rule knows this field"),
    (TRANSFORMERS, "audio_config", 3, "=3: must be an object of fields"),
    (TRANSFORMERS, "audio_config.hidden_size", 512, "=512: must equal nemo_conv_channels=1024"),
    (TRANSFORMERS, "audio_config.nemo_activation", "gelu", "=gelu: must be relu"),
    (TRANSFORMERS, "audio_config.nemo_final_size", 16, "=16: must be 10"),
    (TRANSFORMERS, "audio_config.downsample_rate", 2, "=2: must be 1"),
    (TRANSFORMERS, "audio_config.time_reduction", 4, "=4: must be 8"),
    (TRANSFORMERS, "audio_config.input_size", 128, "=128: must be 80"),
    (TRANSFORMERS, "audio_config.stem", 1, "=1: no rule knows this field"),
]


@pytest.mark.parametrize(("tree", "name", "value", "says"), REFUSALS)
def test_what_we_cannot_follow_is_refused_by_name_value_and_rule(tree, name, value, says):
    with pytest.raises(Mistake) as caught:
        reader.parse_config(changed(tree, {name: value}), where="HF_DIR/config.json")
    message = str(caught.value)
    named = "rope_scaling." if says.endswith("type=longrope") else name  # the factors left behind
    named = "rope_scaling.type" if says.endswith("rope_type=default") else named
    assert message.startswith(f"HF_DIR/config.json: {named}")
    assert says in message
    assert len(message.splitlines()) == 1
    assert len(message) < 250  # long lists are cut


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("peft_type", "IA3", "=IA3: must be LORA"),
        ("r", GONE, " is missing: must be a whole number of 1 or more"),
        ("r", 0, "=0: must be a whole number of 1 or more"),
        ("lora_alpha", "640", '="640": must be a number above 0'),
        ("lora_dropout", 1, "=1: must lie in [0, 1)"),
        ("target_modules", ["qkv_proj"], f'=["qkv_proj"]: must be {TARGETS}'),
        ("target_modules", r".*", f"=.*: must match just {TARGETS} of layer 0"),
        ("target_modules", r".*o_proj", f"=.*o_proj: must match just {TARGETS} of layer 0 to be"),
        ("target_modules", ["q_proj"], f'=["q_proj"]: must name some of {TARGETS}'),
        ("target_modules", "(", "=(: is no regular expression"),
        ("target_modules", None, "=null: must be a list or a regular expression"),
        ("bias", "lora_only", "=lora_only: must be none"),
        ("init_lora_weights", "pissa", "=pissa: must be true or false or gaussian"),
        ("use_rslora", "yes", "=yes: must be true or false"),
        ("use_dora", True, "=true: must be false or absent to be kept: --lora merge follows any"),
        ("fan_in_fan_out", True, "=true: must be false or absent"),
        ("lora_bias", True, "=true: must be false or absent"),
        ("rank_pattern", {"o_proj": 8}, '={"o_proj": 8}: must leave all matrices one rank'),
        ("alpha_pattern", {"o_proj": 8}, '={"o_proj": 8}: must leave all matrices one rank'),
        ("rank_pattern", {"o_proj": 0}, '={"o_proj": 0}: must map patterns of names to whole'),
        ("modules_to_save", ["lm_head"], '=["lm_head"]: must be absent or {} or []'),
        ("layers_to_transform", [0], "=[0]: must be absent or {} or []"),
        ("layers_pattern", "layers", "=layers: must be absent or {} or []"),
        ("new_idea", 1, "=1: no rule knows this field"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(name, value, says):
    with pytest.raises(Mistake) as caught:
        reader.parse_config(TRANSFORMERS, changed(ADAPTER, {name: value}))
    assert str(caught.value).startswith(f"adapter_config.json: {name}{says}")


@pytest.mark.parametrize(
    ("more", "lora"),
    [
        ({"target_modules": "all-linear"}, Lora(320, 640.0, 0.01)),
        ({"use_rslora": True, "r": 16, "lora_alpha": 8}, Lora(16, 32.0, 0.01)),
        ({"rank_pattern": {r"self_attn\..*": 160, "mlp.*_proj": 160}}, Lora(160, 640.0, 0.01)),
    ],
)
def test_other_words_for_one_rank_and_scale_are_read(more, lora):
    assert reader.parse_config(TRANSFORMERS, ADAPTER | more).spec.lora == lora


def test_bookkeeping_fields_and_full_attention_change_nothing():
    more = {"unsloth_fixed": True, "_flash_attn_2_enabled": True, "_new": [1]}
    more |= {"layer_types": ["full_attention"] * PHI_4["num_hidden_layers"]}
    assert reader.parse_config(PHI_4 | more) == reader.parse_config(PHI_4)


def test_an_adapter_beside_microsofts_layout_is_refused():
    with pytest.raises(Mistake, match=r"takes no adapter: its LoRA is in its main files"):
        reader.parse_config(MICROSOFT, ADAPTER)


def test_a_text_model_may_have_an_adapter():
    found = reader.parse_config(PHI_4, ADAPTER)
    assert (found.layout, found.spec.lora.r) == ("phi3", ADAPTER["r"])


SMALL = Model(d=32, n=4, k=2, h=8, f=48, l=2, v=64, c=8, front="conv", tied=False)
SMALL_LONG = Rope(
    theta=5e5,
    partial=0.75,
    short=(1.0, 1.5, 2.0),
    long=(3.0, 4.0, 8.0),
    original=16,
    longest=64,
)
MODELS = {
    "plain": SMALL,
    "tied, LongRoPE": dataclasses.replace(SMALL, tied=True, rope=SMALL_LONG),
    "window": dataclasses.replace(SMALL, window=5, eps=1e-6, k=4),
    "plain partial, own width": dataclasses.replace(
        SMALL, h=16, rope=Rope(partial=0.5, original=16, longest=64)
    ),
}
KINDS = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


LORA = Lora(r=4, alpha=6.5, dropout=0.25)


def spec(model, lora=LORA):
    return ModelSpec(model, Mel(normalize="none", telephone="native"), FOUR, lora)


def as_json(tree):
    return json.loads(json.dumps(tree))


@KINDS
def test_a_written_llm_is_read_back_equal(model):
    alone = ModelSpec(dataclasses.replace(model, front="none", c=1024), text=FOUR)
    assert reader.parse_config(as_json(writer.phi3_config(alone, "float32"))).spec == alone
    found = reader.parse_config(as_json(writer.phi3_config(spec(model), "float32")))
    assert found == reader.HfConfig(alone, "phi3")


@KINDS
def test_a_written_multimodal_model_is_read_back_equal(model):
    whole = spec(model)
    tree = as_json(writer.phi4_multimodal_config(whole, "bfloat16", {"audio_token_id": 63}))
    adapter = as_json(writer.adapter_config(whole, MODULES))
    assert reader.parse_config(tree, adapter) == reader.HfConfig(whole, "transformers")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (
            lambda: writer.phi4_multimodal_config(
                spec(dataclasses.replace(SMALL, front="linear")), ""
            ),
            "model.front=linear: must be conv or conformer for a Phi-4-multimodal config",
        ),
        (
            lambda: writer.phi4_multimodal_config(
                spec(dataclasses.replace(SMALL, speech="bidirectional")), ""
            ),
            "model.speech=bidirectional: must be causal for a Phi-4-multimodal config",
        ),
        (
            lambda: writer.phi4_multimodal_config(
                dataclasses.replace(spec(SMALL), mel=Mel(normalize="utterance")), ""
            ),
            "mel.normalize=utterance: must be none for a Phi-4-multimodal config",
        ),
        (
            lambda: writer.adapter_config(spec(SMALL, Lora(r=0)), MODULES),
            "lora.r=0: must be above 0 for an adapter",
        ),
        (
            lambda: writer.phi3_config(spec(SMALL), "", {"pad_token_id": 64}),
            "tokens.pad_token_id=64: must lie below model.v=64",
        ),
        (
            lambda: writer.phi3_config(spec(SMALL), "", {"audio_token_id": 63}),
            "tokens.audio_token_id=63: must be one of bos_token_id, eos_token_id, pad_token_id",
        ),
        (
            lambda: writer.phi3_config(
                spec(dataclasses.replace(SMALL, rope=Rope(partial=0.4))), ""
            ),
            "model.rope.partial=0.4: turns 3 of 8: must be even",
        ),
        (
            lambda: writer.phi3_config(spec(dataclasses.replace(SMALL, d=48, rope=SMALL_LONG)), ""),
            "model.h=8: must be d / n: transformers counts LongRoPE's factors so",
        ),
    ],
)
def test_what_no_config_json_can_say_is_refused(write, says):
    with pytest.raises(Mistake) as caught:
        write()
    assert str(caught.value) == says


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="needs the extra `parity`")
    return pytest.importorskip("transformers", reason="needs the extra `parity`")


THEIR_SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
THEIR_LONG = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.5, 2.0],
        "long_factor": [3.0, 4.0, 8.0],
    },
}


def saved(theirs, folder):
    """A config as its class dumps it and as it saves it, which leaves some defaults out."""
    theirs.save_pretrained(folder)
    return as_json(theirs.to_dict()), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("kind", "more", "longest"), [("plain", {}, 4096), ("tied, LongRoPE", THEIR_LONG, 64)]
)
def test_phi_3_of_the_installed_transformers_is_read(transformers, tmp_path, kind, more, longest):
    model = dataclasses.replace(MODELS[kind], front="none", c=1024)
    assert model.rope.longest == longest
    for tree in saved(transformers.Phi3Config(**THEIR_SIZES, **more), tmp_path):
        assert reader.parse_config(tree).spec == ModelSpec(model, text=FOUR)


@pytest.mark.parametrize(
    ("kind", "more", "longest"), [("plain", {}, 131072), ("tied, LongRoPE", THEIR_LONG, 64)]
)
def test_phi_4_multimodal_of_the_installed_transformers_is_read(
    transformers, tmp_path, kind, more, longest
):
    rope = dataclasses.replace(MODELS[kind].rope, longest=longest)
    model = dataclasses.replace(MODELS[kind], rope=rope)
    audio = {"hidden_size": 8, "nemo_conv_channels": 8, "num_blocks": 0}
    theirs = transformers.Phi4MultimodalConfig(**THEIR_SIZES, **more, audio_config=audio)
    for tree in saved(theirs, tmp_path):
        assert reader.parse_config(tree).spec == spec(model, Lora(r=0))


@pytest.mark.parametrize("name", ["Phi3Config", "Phi4MultimodalConfig"])
def test_our_defaults_are_those_of_the_installed_transformers(transformers, name):
    whole = as_json(getattr(transformers, name)().to_dict())
    assert reader.parse_config({"model_type": whole["model_type"]}) == reader.parse_config(whole)


def loaded(transformers, tree, folder):
    """The config that transformers finds in a folder with our file."""
    (folder / "config.json").write_text(json.dumps(tree))
    return transformers.AutoConfig.from_pretrained(folder)


def assert_attributes(theirs, m):
    attributes = {
        "vocab_size": m.v,
        "hidden_size": m.d,
        "intermediate_size": m.f,
        "num_hidden_layers": m.l,
        "num_attention_heads": m.n,
        "num_key_value_heads": m.k,
        "hidden_act": "silu",
        "rms_norm_eps": m.eps,
        "tie_word_embeddings": m.tied,
        "sliding_window": m.window or None,
        "max_position_embeddings": m.rope.longest,
        "original_max_position_embeddings": m.rope.original,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    assert {name: getattr(theirs, name) for name in attributes} == attributes
    assert getattr(theirs, "head_dim", m.d // m.n) == m.h
    assert str(theirs.dtype) == "torch.float16"
    rope = theirs.rope_parameters
    assert rope["rope_theta"] == m.rope.theta
    assert rope["partial_rotary_factor"] == m.rope.partial
    assert rope["rope_type"] == ("longrope" if m.rope.short else "default")
    assert rope.get("short_factor", []) == list(m.rope.short)
    assert rope.get("long_factor", []) == list(m.rope.long)
    if m.rope.short:
        assert rope["original_max_position_embeddings"] == m.rope.original


@KINDS
def test_transformers_reads_our_llm(transformers, tmp_path, model):
    tree = writer.phi3_config(spec(model), "float16", {"bos_token_id": 1, "eos_token_id": 2})
    theirs = loaded(transformers, tree, tmp_path)
    assert type(theirs) is transformers.Phi3Config
    assert theirs.architectures == ["Phi3ForCausalLM"]
    assert_attributes(theirs, model)
    made = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager")
    assert type(made) is transformers.Phi3ForCausalLM
    shapes = {name: tuple(x.shape) for name, x in made.state_dict().items()}
    rows = (model.n + 2 * model.k) * model.h
    assert shapes["model.layers.1.self_attn.qkv_proj.weight"] == (rows, model.d)


@KINDS
def test_transformers_reads_our_multimodal_model(transformers, tmp_path, model):
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "audio_token_id": 63}
    tree = writer.phi4_multimodal_config(spec(model), "float16", tokens)
    theirs = loaded(transformers, tree, tmp_path)
    assert type(theirs) is transformers.Phi4MultimodalConfig
    assert theirs.architectures == ["Phi4MultimodalForCausalLM"]
    assert_attributes(theirs, model)
    audio = theirs.audio_config
    assert (audio.num_blocks, audio.hidden_size, audio.nemo_conv_channels) == (0, 8, 8)
    assert (audio.input_size, audio.time_reduction, audio.audio_token_id) == (80, 8, 63)
    made = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager")
    shapes = {name: tuple(x.shape) for name, x in made.state_dict().items()}
    front = "model.embed_tokens_extend.audio_embed."
    assert shapes[f"{front}encoder.embed.out.weight"] == (8, 80)
    assert shapes[f"{front}up_proj_for_speech.weight"] == (model.d, 8)
    assert not any(".encoders." in name for name in shapes)
