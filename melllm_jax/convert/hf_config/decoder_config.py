"""Reads the sizes and rotary positions of a decoder from the top-level fields of a config.json."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from melllm_jax.config.model import Model, Rope
from melllm_jax.convert.hf_config import llama_fields, phi_fields
from melllm_jax.convert.hf_config.fields import Field, RopeScalings, read_fields, refuse_field
from melllm_jax.convert.hf_config.phi_fields import LONGROPE


def phi_model(top: Mapping[str, Any], where: str) -> Model:
    """The decoder that the top-level fields of a Phi describe, without a front end."""
    model = _decoder_model(top, where)
    inside, path = _rope_fields(top, phi_fields.ROPE, where)
    rope = _plain_rope(top, inside, model.h, where, path)
    if _rope_scaling(inside, phi_fields.SCALINGS, where, path) == "longrope":
        rope = _with_longrope(rope, inside, int(model.h * rope.partial) // 2, where, path)
    return dataclasses.replace(model, rope=rope, window=top["sliding_window"] or 0)


def llama_model(top: Mapping[str, Any], family: Any, where: str) -> Model:
    """The decoder that the top-level fields of Llama or of its kin describe.

    `family` is their model_type: Qwen2 has biases, and Qwen3 norms, that no field tells of.
    """
    model = _decoder_model(top, where)
    inside, path = _rope_fields(top, llama_fields.ROPE, where)
    rope = _plain_rope(top, inside, model.h, where, path)
    scaling = _rope_scaling(inside, llama_fields.SCALINGS, where, path)
    if scaling is None:
        rope = dataclasses.replace(rope, original=rope.longest)
    else:
        rope = _with_factor(rope, inside, scaling, where, path)
    return dataclasses.replace(
        model,
        rope=rope,
        window=_qwen_window(top, where)
        if "max_window_layers" in top
        else top["sliding_window"] or 0,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        family=family,
    )


def _decoder_model(top: Mapping[str, Any], where: str) -> Model:
    """The decoder's sizes."""
    d, n = top["hidden_size"], top["num_attention_heads"]
    k = top["num_key_value_heads"] or n
    if n % k:
        refuse_field(where, "num_key_value_heads", k, f"must divide num_attention_heads={n}")
    if d % n and not top["head_dim"]:
        refuse_field(where, "hidden_size", d, f"must be a multiple of num_attention_heads={n}")
    return Model(
        d=d,
        n=n,
        k=k,
        h=top["head_dim"] or d // n,
        f=top["intermediate_size"],
        l=top["num_hidden_layers"],
        v=top["vocab_size"],
        eps=float(top["rms_norm_eps"]),
        tied=top["tie_word_embeddings"],
        front="none",
    )


def _qwen_window(top: Mapping[str, Any], where: str) -> int:
    """The window of every layer, or 0. Raises Mistake where only some layers have it."""
    layers, kinds = top["num_hidden_layers"], top["layer_types"]
    window = (top["sliding_window"] or 0) if top["use_sliding_window"] else 0
    name = "max_window_layers" if kinds is None else "layer_types"
    if kinds is None:
        first = top["max_window_layers"] if window else layers
        sliding = [i >= first for i in range(layers)]
    else:
        sliding = [kind == "sliding_attention" for kind in kinds]
        if len(kinds) != layers:
            refuse_field(where, name, kinds, f"must name num_hidden_layers={layers} layers")
        if any(sliding) and not window:
            rule = "must be full_attention without use_sliding_window and a sliding_window"
            refuse_field(where, name, kinds, rule)
    if any(sliding) and not all(sliding):
        refuse_field(where, name, top[name], "must give all layers the window, or none")
    return window if any(sliding) else 0


def _rope_fields(
    top: Mapping[str, Any], known: Mapping[str, Field], where: str
) -> tuple[dict[str, Any], str]:
    """The fields of rotary positions, as transformers 4 or 5 says them, and which of the two."""
    path = "rope_parameters" if top["rope_parameters"] else "rope_scaling"
    if top["rope_parameters"] and top["rope_scaling"]:
        refuse_field(where, path, top[path], "must be absent beside rope_scaling")
    return read_fields(top[path] or {}, known, where, path), path


def _plain_rope(
    top: Mapping[str, Any], inside: Mapping[str, Any], h: int, where: str, path: str
) -> Rope:
    """Rotary positions of heads of width h, before they are scaled."""

    def agreed(name: str, default: Any = None) -> Any:
        """A field that may stand at the top, inside, or at both if equal."""
        if None not in (inside[name], top[name]) and inside[name] != top[name]:
            refuse_field(where, f"{path}.{name}", inside[name], f"must equal {name}={top[name]}")
        return inside[name] or top[name] or default

    partial = agreed("partial_rotary_factor", 1.0)
    width = int(h * partial)
    if width % 2 or not width:
        refuse_field(
            where, "partial_rotary_factor", partial, f"must turn an even part of {h} a head"
        )
    longest = top["max_position_embeddings"]
    return Rope(
        theta=float(agreed("rope_theta", 10_000.0)),
        partial=float(partial),
        original=agreed("original_max_position_embeddings", longest),
        longest=longest,
    )


def _rope_scaling(
    inside: Mapping[str, Any], scalings: RopeScalings, where: str, path: str
) -> str | None:
    """Which of `scalings` the fields name. Raises Mistake for fields that belong to another."""
    named = {
        "longrope" if inside[name] in LONGROPE else inside[name]
        for name in ("type", "rope_type")
        if inside[name]
    }
    if len(named) == 2:
        refuse_field(
            where, f"{path}.type", inside["type"], f"must equal rope_type={inside['rope_type']}"
        )
    found: str | None = named.pop() if named else None
    found = found if found in scalings else None
    for name in {name: None for names in scalings.values() for name in names}:
        if inside[name] is not None and name not in scalings.get(found or "", ()):
            owners = " or ".join(kind for kind, names in scalings.items() if name in names)
            refuse_field(
                where, f"{path}.{name}", inside[name], f"must be absent without type={owners}"
            )
    return found


def _with_factor(
    rope: Rope, inside: Mapping[str, Any], scaling: str, where: str, path: str
) -> Rope:
    """`rope` scaled by a factor: linear, or as Llama 3.1 has it."""
    values = {name: inside[name] for name in llama_fields.SCALINGS[scaling]}
    for name, value in values.items():
        if value is None:
            refuse_field(where, f"{path}.{name}", value, f"must be a number above 0 for {scaling}")
    if scaling == "linear":
        return dataclasses.replace(rope, factor=float(values["factor"]), original=rope.longest)
    factor, low, high = map(float, values.values())
    if high <= low:
        refuse_field(
            where, f"{path}.high_freq_factor", high, f"must be above low_freq_factor={low}"
        )
    return dataclasses.replace(rope, factor=factor, low=low, high=high)


def _with_longrope(
    rope: Rope, inside: Mapping[str, Any], pairs: int, where: str, path: str
) -> Rope:
    """`rope` with LongRoPE's factors, one a rotated pair."""
    for name in ("short_factor", "long_factor"):
        if len(inside[name] or ()) != pairs:
            refuse_field(
                where, f"{path}.{name}", inside[name], f"must be a list of {pairs} numbers"
            )
    stretch = rope.longest / rope.original
    scale = math.sqrt(1 + math.log(stretch) / math.log(rope.original)) if stretch > 1 else 1.0
    for name, due in {"factor": stretch, "attention_factor": scale}.items():
        if inside[name] and not math.isclose(inside[name], due, rel_tol=1e-6):
            refuse_field(where, f"{path}.{name}", inside[name], f"must be {due:.7g} (or absent)")
    short, long = (tuple(map(float, inside[name])) for name in ("short_factor", "long_factor"))
    return dataclasses.replace(rope, short=short, long=long)
