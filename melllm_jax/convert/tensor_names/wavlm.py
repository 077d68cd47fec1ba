"""Maps the tensors of transformers' `WavLMModel` to ours.

A class with a head puts "wavlm." before these names. The kernel of the convolution of positions is
weight-normed over each of its taps (dim=2): see `foreign_wavlm`, which multiplies the two.
"""

from collections.abc import Iterator

from melllm_jax.config.encoders import WavLM
from melllm_jax.convert.weight_map import LAYER, IgnoredTensors, Rule

POSITIONS = "encoder.pos_conv_embed.conv.weight"
LAST_NORM = "encoder.layer_norm"
BLOCK, OUR_BLOCK = f"encoder.layers.{LAYER}.", "blocks."
VECTOR = "d -> d"
ATTENTION = (
    ("q_proj", "q", "(n h) d -> d n h", "(n h) -> n h"),
    ("k_proj", "k", "(n h) d -> d n h", "(n h) -> n h"),
    ("v_proj", "v", "(n h) d -> d n h", "(n h) -> n h"),
    ("out_proj", "o", "d (n h) -> n h d", VECTOR),
)
MLP = (
    ("intermediate_dense", "mlp.up", "f d -> d f", "f -> f"),
    ("output_dense", "mlp.down", "d f -> f d", VECTOR),
)
NORMS = (("layer_norm", "attn_norm"), ("final_layer_norm", "mlp_norm"))
TRAINING = "stands in place of masked positions: of training alone"
HEAD = "head of a task"
HEADS = (
    *("lm_head.*", "classifier.*", "projector.*", "tdnn.*", "layer_weights"),
    *("feature_extractor.weight", "feature_extractor.bias", "objective.weight"),
)
IGNORED = (
    IgnoredTensors("*masked_spec_embed", TRAINING),
    *(IgnoredTensors(name, HEAD) for name in HEADS),
)


def wavlm_rules(cfg: WavLM, prefix: str = "") -> list[Rule]:
    """Rules of all tensors of a WavLM of these sizes; `prefix` stands before their names."""
    return list(_rules(cfg, prefix))


def _rules(cfg: WavLM, prefix: str) -> Iterator[Rule]:
    for i in range(len(cfg.channels)):
        theirs, ours = f"{prefix}feature_extractor.conv_layers.{i}", f"stem.convolutions.{i}"
        yield Rule(f"{theirs}.conv.weight", (f"{ours}.kernel",), ("u c x -> x c u",))
        if cfg.bias:
            yield Rule(f"{theirs}.conv.bias", (f"{ours}.bias",), ("u -> u",))
        if cfg.norm == "layer" or i == 0:
            yield from _norm(f"{theirs}.layer_norm", f"{ours}.norm")
    yield from _norm(f"{prefix}feature_projection.layer_norm", "stem.norm")
    yield from _matrix(f"{prefix}feature_projection.projection", "stem.project", "d c -> c d")
    yield Rule(f"{prefix}{POSITIONS}", ("positions.kernel",), ("d c x -> x c d",))
    bias = f"{prefix}{POSITIONS}".replace(".weight", ".bias")
    yield Rule(bias, ("positions.bias",), (VECTOR,))
    first = f"{prefix}{BLOCK.replace(LAYER, '0')}"
    yield Rule(f"{first}attention.rel_attn_embed.weight", ("table",), ("z n -> z n",))
    yield from _block(f"{prefix}{BLOCK}")
    if cfg.last_norm:
        yield from _norm(f"{prefix}{LAST_NORM}", "norm")


def _block(theirs: str) -> Iterator[Rule]:
    attention, gate = f"{theirs}attention.", f"{OUR_BLOCK}attn.gate."
    for name, our_name, pattern, bias in ATTENTION:
        yield from _matrix(f"{attention}{name}", f"{OUR_BLOCK}attn.{our_name}", pattern, bias)
    yield Rule(f"{attention}gru_rel_pos_linear.weight", (f"{gate}kernel",), ("g h -> h g",))
    yield Rule(f"{attention}gru_rel_pos_linear.bias", (f"{gate}bias",), ("g -> g",))
    yield Rule(f"{attention}gru_rel_pos_const", (f"{gate}scale",), ("i n 1 1 -> i n",))
    for name, our_name, pattern, bias in MLP:
        yield from _matrix(f"{theirs}feed_forward.{name}", f"{OUR_BLOCK}{our_name}", pattern, bias)
    for name, our_name in NORMS:
        yield from _norm(f"{theirs}{name}", f"{OUR_BLOCK}{our_name}")


def _matrix(theirs: str, ours: str, pattern: str, bias: str = VECTOR) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (ours,), (pattern,))
    yield Rule(f"{theirs}.bias", (f"{ours}_bias",), (bias,))


def _norm(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (f"{ours}.scale",), (VECTOR,))
    yield Rule(f"{theirs}.bias", (f"{ours}.bias",), (VECTOR,))
