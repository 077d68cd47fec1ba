"""Maps the tensors of transformers' `SpeechT5HifiGan` to ours, its weight normalisation folded in.

A weight-normed convolution is stored as a direction and a length of each slice of its first axis;
the matrix is their product (Salimans and Kingma 2016). `folded` says which tensors are a pair.
"""

from collections.abc import Collection, Iterator

from melllm_jax.config.vocoder import HifiGan
from melllm_jax.convert.weight_map import Rule

CONV, UPSAMPLING, VECTOR = "u c x -> x c u", "c u x -> x c u", "u -> u"
# Direction and length, as PyTorch's parametrization names them and as the older hook does.
NORMED = (
    ("parametrizations.weight.original1", "parametrizations.weight.original0"),
    ("weight_v", "weight_g"),
)


def hifi_gan_rules(cfg: HifiGan) -> list[Rule]:
    """Rules of all tensors of a generator of these sizes."""
    return list(_rules(cfg))


def folded(name: str, found: Collection[str]) -> tuple[str, str] | None:
    """The direction and the length that a matrix is stored as among `found`; None: as it is."""
    stem = name.removesuffix("weight")
    for direction, length in NORMED:
        if name.endswith(".weight") and f"{stem}{direction}" in found:
            return f"{stem}{direction}", f"{stem}{length}"
    return None


def _rules(cfg: HifiGan) -> Iterator[Rule]:
    yield Rule("mean", ("mean",), ("m -> m",))
    yield Rule("scale", ("scale",), ("m -> m",))
    yield from _convolution("conv_pre", "first", CONV)
    kernels = range(len(cfg.resblock_kernels))
    for i in range(len(cfg.rates)):
        yield from _convolution(f"upsampler.{i}", f"stages.{i}.up", UPSAMPLING)
        for j in kernels:
            theirs, ours = f"resblocks.{i * len(kernels) + j}", f"stages.{i}.blocks.{j}"
            for at in range(len(cfg.dilations[j])):
                yield from _convolution(f"{theirs}.convs1.{at}", f"{ours}.first.{at}", CONV)
                yield from _convolution(f"{theirs}.convs2.{at}", f"{ours}.second.{at}", CONV)
    yield from _convolution("conv_post", "last", CONV)


def _convolution(theirs: str, ours: str, pattern: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (f"{ours}.kernel",), (pattern,))
    yield Rule(f"{theirs}.bias", (f"{ours}.bias",), (VECTOR,))
