"""Reads the sizes and rotary positions of a decoder from the top-level fields of a config.json."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from melllm_jax.config.model import Model, Rope
from melllm_jax.convert.hf_config.fields import read_fields, refuse_field
from melllm_jax.convert.hf_config.phi_fields import LONGROPE, ROPE


def decoder_model(top: Mapping[str, Any], where: str) -> Model:
    """The decoder that the top-level fields describe, without a front end."""
    d, n = top["hidden_size"], top["num_attention_heads"]
    k = top["num_key_value_heads"] or n
    if n % k:
        refuse_field(where, "num_key_value_heads", k, f"must divide num_attention_heads={n}")
    if d % n and not top["head_dim"]:
        refuse_field(where, "hidden_size", d, f"must be a multiple of num_attention_heads={n}")
    h = top["head_dim"] or d // n
    return Model(
        d=d,
        n=n,
        k=k,
        h=h,
        f=top["intermediate_size"],
        l=top["num_hidden_layers"],
        v=top["vocab_size"],
        eps=float(top["rms_norm_eps"]),
        rope=_rope(top, h, where),
        tied=top["tie_word_embeddings"],
        window=top["sliding_window"] or 0,
        front="none",
    )


def _rope(top: Mapping[str, Any], h: int, where: str) -> Rope:
    """Rotary positions of heads of width h, as transformers 4 or 5 says them."""
    path = "rope_parameters" if top["rope_parameters"] else "rope_scaling"
    if top["rope_parameters"] and top["rope_scaling"]:
        refuse_field(where, path, top[path], "must be absent beside rope_scaling")
    inside = read_fields(top[path] or {}, ROPE, where, path)

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
    rope = Rope(
        theta=float(agreed("rope_theta", 10_000.0)),
        partial=float(partial),
        original=agreed("original_max_position_embeddings"),
        longest=top["max_position_embeddings"],
    )
    return _with_longrope(rope, inside, width // 2, where, path)


def _with_longrope(
    rope: Rope, inside: Mapping[str, Any], pairs: int, where: str, path: str
) -> Rope:
    """`rope` with LongRoPE's factors, one a rotated pair, where `inside` has them."""
    kinds = {inside[name] in LONGROPE for name in ("type", "rope_type") if inside[name]}
    if len(kinds) == 2:
        refuse_field(
            where, f"{path}.type", inside["type"], f"must equal rope_type={inside['rope_type']}"
        )
    if True not in kinds:
        for name in ("short_factor", "long_factor", "factor", "attention_factor"):
            if inside[name] is not None:
                refuse_field(
                    where, f"{path}.{name}", inside[name], "must be absent without type=longrope"
                )
        return rope
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
