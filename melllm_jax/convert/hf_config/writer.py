"""Writes a ModelSpec as the config.json and adapter_config.json of transformers and PEFT.

The dialect is one that transformers 4 and 5 both read; the module `reader` reads them back to the
same ModelSpec.
"""

from collections.abc import Mapping
import types
from typing import Any

from melllm_jax.config.model import Model, ModelSpec
from melllm_jax.convert.hf_config.peft_adapter import LORA_TARGETS
from melllm_jax.errors import Mistake

NO_TOKEN_IDS: Mapping[str, Any] = types.MappingProxyType({})
TOKEN_ID_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def phi3_config(
    spec: ModelSpec, dtype: str, tokens: Mapping[str, Any] = NO_TOKEN_IDS
) -> dict[str, Any]:
    """The config.json of the LLM alone, which transformers 4 and 5 read as Phi3ForCausalLM.

    `dtype` is the tensors', as torch calls it ("bfloat16"). `tokens` gives the ids of
    `TOKEN_ID_FIELDS`, null where left out: transformers' own pad, 32000, lies beyond a small
    vocabulary, and an embedding refuses that. Raises Mistake for what no Phi-3 config can say.
    """
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
    for name, value, required in (
        ("model.speech", m.speech, "causal"),
        ("mel.kind", mel.kind, "phi4"),
        ("mel.r", mel.r, 8),
        ("mel.normalize", mel.normalize, "none"),
    ):
        if value != required:
            raise Mistake(f"{name}={value}: must be {required} for a Phi-4-multimodal config")
    placeholder = {name: tokens[name] for name in ("audio_token_id",) if name in tokens}
    rest = {name: value for name, value in tokens.items() if name not in placeholder}
    audio = {
        "model_type": "phi4_multimodal_audio",
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
        return {"num_blocks": 0, "num_attention_heads": 1, "bias_max_distance": 1}
    own = m.conformer
    return {
        "num_blocks": own.l,
        "num_attention_heads": own.n,
        "intermediate_size": own.f,
        "kernel_size": own.taps,
        "chunk_size": own.chunk or -1,
        "left_chunk": own.left,
        "bias_max_distance": own.distance,
        "ext_pw_out_channel": m.c,
        "depthwise_separable_out_channel": m.c,
    }


def adapter_config(spec: ModelSpec, base: str | None = None) -> dict[str, Any]:
    """PEFT's adapter_config.json for `spec.lora`; `base` is the folder of the model beside it.

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
        "target_modules": LORA_TARGETS,
        "bias": "none",
        "inference_mode": True,
    }


def _decoder_fields(m: Model, dtype: str, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both written configs share."""
    if tokens.keys() - set(TOKEN_ID_FIELDS):
        unknown = min(tokens.keys() - set(TOKEN_ID_FIELDS))
        raise Mistake(
            f"tokens.{unknown}={tokens[unknown]}: must be one of {', '.join(TOKEN_ID_FIELDS)}"
        )
    pad = tokens.get("pad_token_id")
    if pad is not None and not 0 <= pad < m.v:
        raise Mistake(f"tokens.pad_token_id={pad}: must lie below model.v={m.v}")
    width = int(m.h * m.rope.partial)
    if width != m.rotary_dims:
        raise Mistake(f"model.rope.partial={m.rope.partial}: turns {width} of {m.h}: must be even")
    pairs = int(m.d // m.n * m.rope.partial) // 2
    if m.rope.short and pairs != len(m.rope.short):
        raise Mistake(f"model.h={m.h}: must be d / n: transformers counts LongRoPE's factors so")
    factors = {"short_factor": list(m.rope.short), "long_factor": list(m.rope.long)}
    fields = {
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
        "rope_theta": m.rope.theta,
        "partial_rotary_factor": m.rope.partial,
        # transformers 4 takes these three fields and no fourth.
        "rope_scaling": {"type": "longrope", **factors} if m.rope.short else None,
        "torch_dtype": dtype,
        **{name: tokens.get(name) for name in TOKEN_ID_FIELDS},
    }
    return fields if m.h * m.n == m.d else fields | {"head_dim": m.h}
