"""Maps the tensors of the package vocos 0.1.0 to ours: `VocosBackbone` and `ISTFTHead`.

Windows and the mel's triangles are constants of ours.
"""

from collections.abc import Iterator

from melllm_jax.convert.weight_map import LAYER, IgnoredTensors, Rule

BACKBONE, BLOCK, OUR_BLOCK = "backbone.", f"backbone.convnext.{LAYER}.", "blocks."
VECTOR = "d -> d"
CONSTANTS = "constants that the config says"
IGNORED = (
    IgnoredTensors("feature_extractor.mel_spec.*", CONSTANTS),
    IgnoredTensors("head.istft.window", CONSTANTS),
)


def vocos_rules() -> list[Rule]:
    """Rules of all tensors."""
    return list(_rules())


def _rules() -> Iterator[Rule]:
    yield Rule(f"{BACKBONE}embed.weight", ("embed.kernel",), ("u c x -> x c u",))
    yield Rule(f"{BACKBONE}embed.bias", ("embed.bias",), ("u -> u",))
    yield from _norm(f"{BACKBONE}norm", "norm")
    yield Rule(f"{BLOCK}dwconv.weight", (f"{OUR_BLOCK}depth",), ("e 1 x -> x e",))
    yield Rule(f"{BLOCK}dwconv.bias", (f"{OUR_BLOCK}depth_bias",), ("e -> e",))
    yield from _norm(f"{BLOCK}norm", f"{OUR_BLOCK}norm")
    for theirs, ours, pattern in (
        ("pwconv1", "up", "f d -> d f"),
        ("pwconv2", "down", "d f -> f d"),
    ):
        yield Rule(f"{BLOCK}{theirs}.weight", (f"{OUR_BLOCK}{ours}",), (pattern,))
        yield Rule(f"{BLOCK}{theirs}.bias", (f"{OUR_BLOCK}{ours}_bias",), (VECTOR,))
    yield Rule(f"{BLOCK}gamma", (f"{OUR_BLOCK}gain",), (VECTOR,))
    yield from _norm(f"{BACKBONE}final_layer_norm", "last_norm")
    halves = ("magnitude", "phase")  # of the rows, in this order
    yield Rule("head.out.weight", halves, ("z d -> d z",) * 2)
    yield Rule("head.out.bias", tuple(f"{half}_bias" for half in halves), ("z -> z",) * 2)


def _norm(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (f"{ours}.scale",), (VECTOR,))
    yield Rule(f"{theirs}.bias", (f"{ours}.bias",), (VECTOR,))
