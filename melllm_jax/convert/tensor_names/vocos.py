"""Maps the tensors of the package vocos 0.1.0 to ours: `VocosBackbone` and `ISTFTHead`.

Windows and the mel's triangles are constants of ours.
"""

from collections.abc import Iterator

from melllm_jax.convert.weight_map import IgnoredTensors, Rule

BACKBONE = "backbone."
VECTOR = "d -> d"
CONSTANTS = "constants that the config says"
IGNORED = (
    IgnoredTensors("feature_extractor.mel_spec.*", CONSTANTS),
    IgnoredTensors("head.istft.window", CONSTANTS),
)


def vocos_rules(l: int) -> list[Rule]:
    """Rules of all tensors of a network of l blocks."""
    return list(_rules(l))


def _rules(l: int) -> Iterator[Rule]:
    yield Rule(f"{BACKBONE}embed.weight", ("embed.kernel",), ("u c x -> x c u",))
    yield Rule(f"{BACKBONE}embed.bias", ("embed.bias",), ("u -> u",))
    yield from _norm(f"{BACKBONE}norm", "norm")
    for i in range(l):
        yield from _block(f"{BACKBONE}convnext.{i}.", f"blocks.{i}.")
    yield from _norm(f"{BACKBONE}final_layer_norm", "last_norm")
    halves = ("magnitude", "phase")  # of the rows, in this order
    yield Rule("head.out.weight", halves, ("z d -> d z",) * 2)
    yield Rule("head.out.bias", tuple(f"{half}_bias" for half in halves), ("z -> z",) * 2)


def _block(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}dwconv.weight", (f"{ours}depth",), ("e 1 x -> x e",))
    yield Rule(f"{theirs}dwconv.bias", (f"{ours}depth_bias",), ("e -> e",))
    yield from _norm(f"{theirs}norm", f"{ours}norm")
    for name, own, pattern in (("pwconv1", "up", "f d -> d f"), ("pwconv2", "down", "d f -> f d")):
        yield Rule(f"{theirs}{name}.weight", (f"{ours}{own}",), (pattern,))
        yield Rule(f"{theirs}{name}.bias", (f"{ours}{own}_bias",), (VECTOR,))
    yield Rule(f"{theirs}gamma", (f"{ours}gain",), (VECTOR,))


def _norm(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (f"{ours}.scale",), (VECTOR,))
    yield Rule(f"{theirs}.bias", (f"{ours}.bias",), (VECTOR,))
