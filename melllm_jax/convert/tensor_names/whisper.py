"""Maps the encoder's tensors of a Whisper checkpoint to those of the front end `whisper`.

The decoder is left out by reason. Source: transformers' `modeling_whisper.py`, whose classes with a
decoder put "model." before these names.
"""

from collections.abc import Iterator

from melllm_jax.convert.weight_map import LAYER, IgnoredTensors, Rule

ENCODER, OURS = "encoder.", "front.encoder."
BLOCK, OUR_BLOCK = f"{ENCODER}layers.{LAYER}.", f"{OURS}stack.blocks."
VECTOR, HEADS, CONV = "d -> d", "(n h) d -> d n h", "d m x -> x m d"

# Theirs, ours, and the patterns of weight and bias; an empty one where there is no bias.
OUTSIDE = (
    ("conv1", "first", CONV, VECTOR),
    ("conv2", "second", CONV, VECTOR),
)
IN_BLOCK = (
    ("self_attn.q_proj", "attn.q", HEADS, "(n h) -> n h"),
    ("self_attn.k_proj", "attn.k", HEADS, ""),
    ("self_attn.v_proj", "attn.v", HEADS, "(n h) -> n h"),
    ("self_attn.out_proj", "attn.o", "d (n h) -> n h d", VECTOR),
    ("fc1", "mlp.up", "f d -> d f", VECTOR),
    ("fc2", "mlp.down", "d f -> f d", VECTOR),
)
NORMS = (
    (f"{BLOCK}self_attn_layer_norm", f"{OUR_BLOCK}attn_norm"),
    (f"{BLOCK}final_layer_norm", f"{OUR_BLOCK}mlp_norm"),
    (f"{ENCODER}layer_norm", f"{OURS}stack.norm"),
)
IGNORED_TENSORS = (
    IgnoredTensors("*decoder.*", "decoder"),
    IgnoredTensors("proj_out.weight", "decoder's head, which is its embedding"),
)


def encoder_rules(prefix: str = "model.") -> list[Rule]:
    """Rules of all of the encoder's tensors; `prefix` is what stands before their names."""
    return list(_rules(prefix))


def _rules(prefix: str) -> Iterator[Rule]:
    yield Rule(f"{prefix}{ENCODER}embed_positions.weight", (f"{OURS}positions",), ("t d -> t d",))
    matrices = [(f"{ENCODER}{theirs}", f"{OURS}{ours}", *rest) for theirs, ours, *rest in OUTSIDE]
    matrices += [
        (f"{BLOCK}{theirs}", f"{OUR_BLOCK}{ours}", *rest) for theirs, ours, *rest in IN_BLOCK
    ]
    for theirs, ours, pattern, bias in matrices:
        yield Rule(f"{prefix}{theirs}.weight", (ours,), (pattern,))
        if bias:
            yield Rule(f"{prefix}{theirs}.bias", (f"{ours}_bias",), (bias,))
    for theirs, ours in NORMS:
        yield Rule(f"{prefix}{theirs}.weight", (f"{ours}.scale",), (VECTOR,))
        yield Rule(f"{prefix}{theirs}.bias", (f"{ours}.bias",), (VECTOR,))
