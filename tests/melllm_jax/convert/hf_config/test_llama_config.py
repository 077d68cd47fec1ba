"""config.json of Llama and its kin to our spec, and our spec back to them; what is refused."""

import dataclasses
import json

import pytest

from melllm_jax.config.features import Text
from melllm_jax.config.model import Model, ModelSpec, Rope
from melllm_jax.convert.hf_config import reader, writer
from melllm_jax.errors import Mistake

# Sizes and fields are those of the published files.
LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA_3_2_1B = LLAMA_2 | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": SCALING,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
SMOLLM2 = LLAMA_2 | {
    "attention_bias": False,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "vocab_size": 49152,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
MISTRAL_NEMO = MISTRAL_7B | {
    "head_dim": 128,
    "hidden_size": 5120,
    "max_position_embeddings": 131072,
    "num_hidden_layers": 40,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 131072,
}
QWEN2_5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def rope(longest, **more):
    return Rope(**{"original": longest, "longest": longest} | more)


SEVEN_B = Model(
    d=4096,
    n=32,
    k=32,
    h=128,
    f=11008,
    l=32,
    v=32000,
    front="none",
    tied=False,
    family="llama",
    rope=rope(4096),
)
MISTRAL = dataclasses.replace(
    SEVEN_B, k=8, f=14336, window=4096, family="mistral", rope=rope(32768)
)
QWEN_ROPE = {"theta": 1e6}
READ = {
    "Llama 2": (LLAMA_2, SEVEN_B),
    "Llama 3.2": (
        LLAMA_3_2_1B,
        Model(
            d=2048,
            n=32,
            k=8,
            h=64,
            f=8192,
            l=16,
            v=128256,
            front="none",
            family="llama",
            rope=Rope(5e5, original=8192, longest=131072, factor=32.0, low=1.0, high=4.0),
        ),
    ),
    "SmolLM2": (
        SMOLLM2,
        Model(
            d=576,
            n=9,
            k=3,
            h=64,
            f=1536,
            l=30,
            v=49152,
            front="none",
            family="llama",
            rope=rope(8192, theta=1e5),
        ),
    ),
    "Mistral 7B": (MISTRAL_7B, MISTRAL),
    "Mistral Nemo": (
        MISTRAL_NEMO,
        dataclasses.replace(
            MISTRAL, d=5120, l=40, v=131072, window=0, rope=rope(131072, theta=1e6)
        ),
    ),
    "Qwen 2.5": (
        QWEN2_5,
        Model(
            d=896,
            n=14,
            k=2,
            h=64,
            f=4864,
            l=24,
            v=151936,
            eps=1e-6,
            front="none",
            family="qwen2",
            qkv_bias=True,
            rope=rope(32768, **QWEN_ROPE),
        ),
    ),
    "Qwen 3": (
        QWEN3,
        Model(
            d=1024,
            n=16,
            k=8,
            h=128,
            f=3072,
            l=28,
            v=151936,
            eps=1e-6,
            front="none",
            family="qwen3",
            qk_norm=True,
            rope=rope(40960, **QWEN_ROPE),
        ),
    ),
}
EVERY = pytest.mark.parametrize("name", READ)


@EVERY
def test_a_published_config_is_read_to_its_sizes(name):
    tree, model = READ[name]
    assert reader.parse_config(tree) == reader.HfConfig(
        ModelSpec(model, text=Text(template="plain")), model.family
    )


@EVERY
def test_a_written_config_is_read_back_equal(name):
    model = READ[name][1]
    tree = json.loads(json.dumps(writer.text_config(ModelSpec(model), "bfloat16")))
    assert reader.parse_config(tree).spec.model == model


def test_transformers_5_says_rotary_in_one_field():
    tree = {k: x for k, x in LLAMA_3_2_1B.items() if k not in ("rope_scaling", "rope_theta")}
    new = tree | {"rope_parameters": SCALING | {"rope_theta": 500000.0}}
    assert reader.parse_config(new) == reader.parse_config(LLAMA_3_2_1B)


@pytest.mark.parametrize(
    ("more", "window"),
    [
        ({"use_sliding_window": False, "max_window_layers": 0}, 0),
        ({"use_sliding_window": True, "max_window_layers": 0}, 32768),
        ({"use_sliding_window": True, "max_window_layers": 24}, 0),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}, 0),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 24}, 32768),
        ({"use_sliding_window": True, "layer_types": ["full_attention"] * 24}, 0),
    ],
)
def test_qwens_window_is_of_every_layer_or_of_none(more, window):
    assert reader.parse_config(QWEN2_5 | more).spec.model.window == window


HALF = ["full_attention"] * 12 + ["sliding_attention"] * 12
REFUSALS = [
    (LLAMA_2, {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.type=yarn: must be"),
    (
        QWEN2_5,
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_scaling.rope_type=dynamic: must be linear or llama3 (or absent)",
    ),
    (LLAMA_2, {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor=null: must be a number"),
    (LLAMA_2, {"rope_scaling": {"factor": 2.0}}, "must be absent without type=linear or llama3"),
    (
        LLAMA_2,
        {"rope_scaling": {"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}},
        "rope_scaling.low_freq_factor=1.0: must be absent without type=llama3",
    ),
    (
        LLAMA_3_2_1B,
        {"rope_scaling": SCALING | {"high_freq_factor": 1.0}},
        "rope_scaling.high_freq_factor=1.0: must be above low_freq_factor=1.0",
    ),
    (LLAMA_2, {"attention_bias": True}, "attention_bias=true: must be false"),
    (QWEN3, {"attention_bias": True}, "attention_bias=true: must be false"),
    (LLAMA_2, {"mlp_bias": True}, "mlp_bias=true: must be false"),
    (LLAMA_2, {"hidden_act": "gelu"}, "hidden_act=gelu: must be silu"),
    (LLAMA_2, {"sliding_window": 4096}, "sliding_window=4096: must be absent"),
    (LLAMA_2, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: must be absent"),
    (LLAMA_2, {"num_local_experts": 8}, "num_local_experts=8: no rule knows this field"),
    (LLAMA_2, {"quantization_config": {"bits": 4}}, "as it was before it was quantised"),
    (QWEN2_5, {"use_mrope": True}, "use_mrope=true: must be false"),
    (
        QWEN2_5,
        {"use_sliding_window": True},
        "max_window_layers=21: must give all layers the window, or none",
    ),
    (
        QWEN2_5,
        {"use_sliding_window": True, "layer_types": HALF},
        "must give all layers the window, or none",
    ),
    (QWEN2_5, {"layer_types": HALF}, "must be full_attention without use_sliding_window"),
    (QWEN2_5, {"layer_types": ["full_attention"]}, "must name num_hidden_layers=24 layers"),
    (QWEN2_5, {"layer_types": ["linear_attention"]}, "a list of full_attention or sliding"),
    (MISTRAL_7B, {"model_type": "mixtral"}, "=mixtral: routes tokens to experts: must be one of"),
]


@pytest.mark.parametrize(("tree", "change", "says"), REFUSALS)
def test_what_we_cannot_follow_is_refused_by_name(tree, change, says):
    with pytest.raises(Mistake) as caught:
        reader.parse_config(tree | change, where="theirs/config.json")
    message = str(caught.value)
    assert message.startswith("theirs/config.json: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"qkv_bias": True}, "model.qkv_bias=True: must be False for model.family=llama"),
        ({"window": 8}, "model.window=8: must be 0 for model.family=llama"),
        ({"family": "qwen3"}, "model.qk_norm=False: must be True for model.family=qwen3"),
        ({"rope": Rope(partial=0.5)}, "model.rope.partial=0.5: must be 1.0 for model.family=llama"),
        ({"n": 3, "k": 3}, "model.n=3: must divide model.d=4096 for model.family=llama"),
        (
            {"family": "phi3", "rope": Rope(factor=2.0)},
            "model.rope.factor=2.0: must be 1.0 for model.family=phi3",
        ),
    ],
)
def test_what_a_family_cannot_be_is_refused_when_it_is_written(change, says):
    with pytest.raises(Mistake) as caught:
        writer.text_config(ModelSpec(dataclasses.replace(SEVEN_B, **change)), "float32")
    assert str(caught.value) == says


@pytest.mark.parametrize("name", ["LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config"])
def test_our_defaults_are_those_of_the_installed_transformers(name):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    whole = json.loads(json.dumps(getattr(transformers, name)().to_dict()))
    assert reader.parse_config({"model_type": whole["model_type"]}) == reader.parse_config(whole)
