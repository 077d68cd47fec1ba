"""Writes a ModelSpec as the config.json and adapter_config.json of transformers and PEFT.

The dialect is one that transformers 4 and 5 both read; the module `reader` reads them back to the
same ModelSpec.
"""

from collections.abc import Mapping, Sequence
import types
from typing import Any

from melllm_jax.config.model import Model, ModelSpec, Rope
from melllm_jax.config.overrides import fields
from melllm_jax.convert.hf_config.peft_adapter import lora_targets
from melllm_jax.errors import Mistake

NO_TOKEN_IDS: Mapping[str, Any] = types.MappingProxyType({})
TOKEN_ID_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
LLAMA_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def text_config(
    spec: ModelSpec, dtype: str, tokens: Mapping[str, Any] = NO_TOKEN_IDS
) -> dict[str, Any]:
    """The config.json of the LLM alone, in the layout of `model.family`: see `phi3_config`."""
    describe = phi3_config if spec.model.family == "phi3" else llama_config
    return describe(spec, dtype, tokens)


def llama_config(
    spec: ModelSpec, dtype: str, tokens: Mapping[str, Any] = NO_TOKEN_IDS
) -> dict[str, Any]:
    """The config.json that transformers reads as Llama, or as the kin of it that `family` names.

    Arguments are those of `phi3_config`. Raises Mistake for what that class cannot be.
    """
    m = spec.model
    required = {
        "qkv_bias": m.family == "qwen2",
        "qk_norm": m.family == "qwen3",
        "window": 0 if m.family == "llama" else m.window,
        "rope.partial": 1.0,
        "rope.short": (),
    }
    _check_family(m, required, m.family)
    if m.family == "llama" and m.d % m.n:
        raise Mistake(f"model.n={m.n}: must divide model.d={m.d} for model.family=llama")
    window: dict[str, Any] = {} if m.family == "llama" else {"sliding_window": m.window or None}
    if m.family in ("qwen2", "qwen3"):
        window |= {"use_sliding_window": m.window > 0, "max_window_layers": 0 if m.window else m.l}
    return {
        "architectures": [LLAMA_CLASSES[m.family]],
        "model_type": m.family,
        **_size_fields(m),
        **({} if m.family == "qwen2" and m.h * m.n == m.d else {"head_dim": m.h}),
        **window,
        "max_position_embeddings": m.rope.longest,
        "rope_theta": m.rope.theta,
        "rope_scaling": _rope_scaling(m.rope),
        **_token_fields(m, dtype, tokens),
    }


def phi3_config(
    spec: ModelSpec, dtype: str, tokens: Mapping[str, Any] = NO_TOKEN_IDS
) -> dict[str, Any]:
    """The config.json of the LLM alone, which transformers 4 and 5 read as Phi3ForCausalLM.

    `dtype` is the tensors', as torch calls it ("bfloat16"). `tokens` gives the ids of
    `TOKEN_ID_FIELDS`, null where left out: transformers' own pad, 32000, lies beyond a small
    vocabulary, and an embedding refuses that. Raises Mistake for what no Phi-3 config can say.
    """
    check_phi(spec.model)
    names = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    return names | _decoder_fields(spec.model, dtype, tokens)


def phi4_multimodal_config(
    spec: ModelSpec, dtype: str, tokens: Mapping[str, Any] = NO_TOKEN_IDS
) -> dict[str, Any]:
    """The config.json that transformers reads as Phi4MultimodalForCausalLM.

    Without a Conformer its num_blocks is 0. As `phi3_config`; `tokens` may also give
    audio_token_id, the placeholder of a speech position (transformers' own is 200011).
    """
    m, mel = spec.model, spec.mel
    if m.front not in ("conv", "conformer"):
        raise Mistake(
            f"model.front={m.front}: must be conv or conformer for a Phi-4-multimodal config"
        )
    check_phi(m)
    for name, value, required in (
        ("model.speech", m.speech, "causal"),
        ("mel.kind", mel.kind, "phi4"),
        ("mel.r", mel.r, 8),
        ("mel.normalize", mel.normalize, "none"),
        ("mel.floor", mel.floor, 0),
    ):
        if value != required:
            raise Mistake(f"{name}={value}: must be {required} for a Phi-4-multimodal config")
    placeholder = {name: tokens[name] for name in ("audio_token_id",) if name in tokens}
    rest = {name: value for name, value in tokens.items() if name not in placeholder}
    audio = {
        "model_type": "phi4_multimodal_audio",
        "num_blocks": m.conformer.l if m.front == "conformer" else 0,
        "hidden_size": m.c,
        "nemo_conv_channels": m.c,
        "input_size": mel.m,
        "time_reduction": mel.r,
        **_conformer_fields(m),
    }
    # We export no vision weights. transformers builds a tower all the same, here of one channel
    # and one patch, and leaves it random.
    vision = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), 1) | {
        "model_type": "phi4_multimodal_vision",
        "num_hidden_layers": 0,
        **dict.fromkeys(("image_size", "patch_size", "crop_size"), 14),
    }
    return {
        "architectures": ["Phi4MultimodalForCausalLM"],
        "model_type": "phi4_multimodal",
        **_decoder_fields(m, dtype, rest),
        "audio_config": audio | placeholder,
        "vision_config": vision,
    }


def _conformer_fields(m: Model) -> dict[str, Any]:
    """The fields of audio_config that the blocks read."""
    if m.front == "conv":
        # The bias of attention that no block reads: transformers makes it, so it is made small.
        return {"num_attention_heads": 1, "bias_max_distance": 1}
    own = m.conformer
    return {
        "num_attention_heads": own.n,
        "intermediate_size": own.f,
        "kernel_size": own.taps,
        "chunk_size": own.chunk or -1,
        "left_chunk": own.left,
        "bias_max_distance": own.distance,
        "ext_pw_out_channel": m.c,
        "depthwise_separable_out_channel": m.c,
    }


def check_phi(m: Model) -> None:
    """Raises Mistake for a decoder that no config of Phi can say."""
    plain = {"qkv_bias": False, "qk_norm": False, "rope.factor": 1.0, "rope.high": 0.0}
    _check_family(m, plain, "phi3")


def adapter_config(
    spec: ModelSpec, modules: Sequence[str], base: str | None = None
) -> dict[str, Any]:
    """PEFT's adapter_config.json for `spec.lora`, which stands beside these modules of each layer.

    `base` is the folder of the model beside it.

    Raises Mistake where there is no LoRA.
    """
    r, alpha = spec.lora.r, spec.lora.alpha
    if not r:
        raise Mistake(f"lora.r={r}: must be above 0 for an adapter")
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
        "r": r,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,  # PEFT's own is an int
        "lora_dropout": spec.lora.dropout,
        "target_modules": lora_targets(modules),
        "bias": "none",
        "inference_mode": True,
    }


def _check_family(m: Model, required: Mapping[str, Any], family: str) -> None:
    """Raises Mistake where a field of `m` is not what the layout of a family requires."""
    found = dict(fields(m))
    for name, value in required.items():
        if found[name] != value:
            raise Mistake(f"model.{name}={found[name]}: must be {value} for model.family={family}")


def _decoder_fields(m: Model, dtype: str, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both of Phi's configs share."""
    width = int(m.h * m.rope.partial)
    if width != m.rotary_dims:
        raise Mistake(f"model.rope.partial={m.rope.partial}: turns {width} of {m.h}: must be even")
    pairs = int(m.d // m.n * m.rope.partial) // 2
    if m.rope.short and pairs != len(m.rope.short):
        raise Mistake(f"model.h={m.h}: must be d / n: transformers counts LongRoPE's factors so")
    factors = {"short_factor": list(m.rope.short), "long_factor": list(m.rope.long)}
    return {
        **_size_fields(m),
        "sliding_window": m.window or None,
        "max_position_embeddings": m.rope.longest,
        "original_max_position_embeddings": m.rope.original,
        "rope_theta": m.rope.theta,
        "partial_rotary_factor": m.rope.partial,
        # transformers 4 takes these three fields and no fourth.
        "rope_scaling": {"type": "longrope", **factors} if m.rope.short else None,
        **_token_fields(m, dtype, tokens),
        **({} if m.h * m.n == m.d else {"head_dim": m.h}),
    }


def _size_fields(m: Model) -> dict[str, Any]:
    """The sizes that all configs say."""
    return {
        "vocab_size": m.v,
        "hidden_size": m.d,
        "intermediate_size": m.f,
        "num_hidden_layers": m.l,
        "num_attention_heads": m.n,
        "num_key_value_heads": m.k,
        "hidden_act": "silu",
        "rms_norm_eps": m.eps,
        "tie_word_embeddings": m.tied,
    }


def _token_fields(m: Model, dtype: str, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """The dtype of the tensors, and the ids of special tokens."""
    if tokens.keys() - set(TOKEN_ID_FIELDS):
        unknown = min(tokens.keys() - set(TOKEN_ID_FIELDS))
        raise Mistake(
            f"tokens.{unknown}={tokens[unknown]}: must be one of {', '.join(TOKEN_ID_FIELDS)}"
        )
    pad = tokens.get("pad_token_id")
    if pad is not None and not 0 <= pad < m.v:
        raise Mistake(f"tokens.pad_token_id={pad}: must lie below model.v={m.v}")
    return {"torch_dtype": dtype, **{name: tokens.get(name) for name in TOKEN_ID_FIELDS}}


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
    """Linear or Llama 3's scaling, with the names that transformers 4 and 5 both read."""
    if rope.high:
        return {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low,
            "high_freq_factor": rope.high,
            "original_max_position_embeddings": rope.original,
        }
    return {"rope_type": "linear", "factor": rope.factor} if rope.factor != 1 else None
