"""Maps the tensors of a Whisper checkpoint to ours: the encoder's to those of a front end.

Source: transformers' `modeling_whisper.py`, whose class with a head puts "model." before these
names. The head is the embedding.
"""

from collections.abc import Iterator

from melllm_jax.convert.weight_map import LAYER, IgnoredTensors, Rule

ENCODER, OUR_ENCODER = "encoder.", "front.encoder."
DECODER = "decoder."  # ours as well
ENCODER_BLOCK, OUR_ENCODER_BLOCK = f"{ENCODER}layers.{LAYER}.", f"{OUR_ENCODER}stack.blocks."
DECODER_BLOCK, OUR_DECODER_BLOCK = f"{DECODER}layers.{LAYER}.", f"{DECODER}blocks."
VECTOR, HEADS, CONV = "d -> d", "(n h) d -> d n h", "d m x -> x m d"

# Theirs, ours, and the patterns of weight and bias; an empty one where there is no bias.
CONVOLUTIONS = (
    ("conv1", "first", CONV, VECTOR),
    ("conv2", "second", CONV, VECTOR),
)
ATTENTION = (
    ("q_proj", "q", HEADS, "(n h) -> n h"),
    ("k_proj", "k", HEADS, ""),
    ("v_proj", "v", HEADS, "(n h) -> n h"),
    ("out_proj", "o", "d (n h) -> n h d", VECTOR),
)
MLP = (
    ("fc1", "mlp.up", "f d -> d f", VECTOR),
    ("fc2", "mlp.down", "d f -> f d", VECTOR),
)
NORMS = (("self_attn_layer_norm", "attn_norm"), ("final_layer_norm", "mlp_norm"))
CROSS_NORM = ("encoder_attn_layer_norm", "cross_norm")
HEAD = IgnoredTensors("proj_out.weight", "decoder's head, which is its embedding")


def encoder_rules(prefix: str = "model.") -> list[Rule]:
    """Rules of all of the encoder's tensors; `prefix` is what stands before their names."""
    return list(_encoder_rules(prefix))


def whisper_rules(prefix: str = "model.") -> list[Rule]:
    """Rules of all tensors, as `encoder_rules`."""
    return [*_encoder_rules(prefix), *_decoder_rules(prefix)]


def has_decoder(name: str) -> bool:
    """Whether a tensor is a decoder's."""
    return name.removeprefix("model.").startswith(DECODER)


def _encoder_rules(prefix: str) -> Iterator[Rule]:
    theirs, ours = f"{prefix}{ENCODER}", OUR_ENCODER
    yield Rule(f"{theirs}embed_positions.weight", (f"{ours}positions",), ("t d -> t d",))
    for name, our_name, pattern, bias in CONVOLUTIONS:
        yield from _matrix(f"{theirs}{name}", f"{ours}{our_name}", pattern, bias)
    yield from _block(f"{prefix}{ENCODER_BLOCK}", OUR_ENCODER_BLOCK)
    yield from _norm(f"{theirs}layer_norm", f"{ours}stack.norm")


def _decoder_rules(prefix: str) -> Iterator[Rule]:
    theirs, block = f"{prefix}{DECODER}", f"{prefix}{DECODER_BLOCK}"
    yield Rule(f"{theirs}embed_tokens.weight", (f"{DECODER}embed",), ("v d -> v d",))
    yield Rule(f"{theirs}embed_positions.weight", (f"{DECODER}positions",), ("t d -> t d",))
    yield from _block(block, OUR_DECODER_BLOCK)
    yield from _attention(f"{block}encoder_attn.", f"{OUR_DECODER_BLOCK}cross.")
    yield from _norm(f"{block}{CROSS_NORM[0]}", f"{OUR_DECODER_BLOCK}{CROSS_NORM[1]}")
    yield from _norm(f"{theirs}layer_norm", f"{DECODER}norm")


def _block(theirs: str, ours: str) -> Iterator[Rule]:
    """What a block of either has."""
    yield from _attention(f"{theirs}self_attn.", f"{ours}attn.")
    for name, our_name, pattern, bias in MLP:
        yield from _matrix(f"{theirs}{name}", f"{ours}{our_name}", pattern, bias)
    for name, our_name in NORMS:
        yield from _norm(f"{theirs}{name}", f"{ours}{our_name}")


def _attention(theirs: str, ours: str) -> Iterator[Rule]:
    for name, our_name, pattern, bias in ATTENTION:
        yield from _matrix(f"{theirs}{name}", f"{ours}{our_name}", pattern, bias)


def _matrix(theirs: str, ours: str, pattern: str, bias: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (ours,), (pattern,))
    if bias:
        yield Rule(f"{theirs}.bias", (f"{ours}_bias",), (bias,))


def _norm(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (f"{ours}.scale",), (VECTOR,))
    yield Rule(f"{theirs}.bias", (f"{ours}.bias",), (VECTOR,))
