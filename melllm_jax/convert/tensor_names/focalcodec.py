"""Maps the tensors of the package focalcodec, 0.0.2, in its causal form to ours.

Its WavLM has names of its own, one matrix for queries, keys and values, and its convolution of
positions multiplied out. A convolution of one tap is a matrix; modulation keeps query, context and
gates in one.
"""

from collections.abc import Iterator

from melllm_jax.config.codec import CodecSpec, Focal, WaveNext
from melllm_jax.config.encoders import WavLM
from melllm_jax.convert.weight_map import LAYER, Rule

VECTOR = "d -> d"
HEADS, HEAD_VECTORS = ("(n h) d -> d n h",) * 3, ("(n h) -> n h",) * 3
MLP = (("in_proj", "up", "f d -> d f", "f -> f"), ("out_proj", "down", "d f -> f d", VECTOR))


def codec_rules(spec: CodecSpec) -> list[Rule]:
    """Rules of all tensors of a codec of these sizes."""
    return [*_wavlm(spec.wavlm), *_focal(spec), *_wavenext(spec.wavenext)]


def _wavlm(cfg: WavLM) -> Iterator[Rule]:
    for i in range(len(cfg.channels)):
        theirs, ours = f"encoder.feature_extractor.layers.{i}", f"encoder.stem.convolutions.{i}"
        yield Rule(f"{theirs}.conv.weight", (f"{ours}.kernel",), ("u c x -> x c u",))
        yield from _norm(f"{theirs}.norm", f"{ours}.norm")
    yield from _norm("encoder.norm", "encoder.stem.norm")
    yield from _matrix("encoder.feature_proj", "encoder.stem.project", "d c -> c d")
    positions = "encoder.encoder.positional_embedding.conv"
    yield Rule(f"{positions}.weight", ("encoder.positions.kernel",), ("d c x -> x c d",))
    yield Rule(f"{positions}.bias", ("encoder.positions.bias",), (VECTOR,))
    table = "encoder.encoder.relative_embedding.weight"
    yield Rule(table, ("encoder.table",), ("z n -> z n",))
    layer, block = f"encoder.encoder.layers.{LAYER}.", "encoder.blocks."
    yield from _norm(f"{layer}attention_norm", f"{block}attn_norm")
    yield from _norm(f"{layer}feed_forward_norm", f"{block}mlp_norm")
    attention, ours = f"{layer}attention.", f"{block}attn."
    heads = tuple(f"{ours}{name}" for name in "qkv")
    biases = tuple(f"{name}_bias" for name in heads)
    yield Rule(f"{attention}qkv_proj.weight", heads, HEADS)
    yield Rule(f"{attention}qkv_proj.bias", biases, HEAD_VECTORS)
    yield from _matrix(f"{attention}out_proj", f"{ours}o", "d (n h) -> n h d")
    gate = f"{attention}gru_rel_pos_"
    yield Rule(f"{gate}linear.weight", (f"{ours}gate.kernel",), ("g h -> h g",))
    yield Rule(f"{gate}linear.bias", (f"{ours}gate.bias",), ("g -> g",))
    yield Rule(f"{gate}const", (f"{ours}gate.scale",), ("i n 1 1 -> i n",))
    yield from _mlp(f"{layer}feed_forward", f"{block}mlp")


def _focal(spec: CodecSpec) -> Iterator[Rule]:
    for i in range(len(spec.compressor.widths)):
        layer, ours = f"compressor.layers.{i}.", "compressor."
        yield from _linear(f"{layer}downscale.downscale", f"{ours}scales.{i}", "d c 1 -> c d")
        yield from _snake(f"{layer}downscale.activation", f"{ours}snakes.{i}")
        yield from _block(f"{layer}focal_block.", f"{ours}blocks.{i}.", spec.compressor)
    yield from _linear("compressor.out_proj", "compressor.latents", "c d -> d c", "c -> c")
    yield from _linear("decompressor.in_proj", "decompressor.embed", "d c -> c d")
    for i in range(len(spec.decompressor.widths)):
        layer, ours = f"decompressor.layers.{i}.", "decompressor."
        yield from _block(f"{layer}focal_block.", f"{ours}blocks.{i}.", spec.decompressor)
        yield from _snake(f"{layer}upscale.activation", f"{ours}snakes.{i}")
        yield from _linear(f"{layer}upscale.upscale", f"{ours}scales.{i}", "c d 1 -> c d")
    if spec.refined > 1:
        theirs, ours = "decompressor.refiner.", "decompressor.refiner."
        yield from _matrix(f"{theirs}in_proj", f"{ours}up", "f (x d) -> x d f", "f -> f")
        yield from _matrix(f"{theirs}out_proj", f"{ours}down", "(x d) f -> f x d", "(x d) -> x d")


def _block(theirs: str, ours: str, cfg: Focal) -> Iterator[Rule]:
    modulation, our_modulation = f"{theirs}modulation.", f"{ours}modulation."
    fused = [f"{our_modulation}{name}" for name in ("query", "context", "gates")]
    kernels, biases = (tuple(f"{x}.{part}" for x in fused) for part in ("kernel", "bias"))
    patterns = ("e d -> d e", "e d -> d e", "c d -> d c")
    yield Rule(f"{modulation}in_proj.weight", kernels, patterns)
    yield Rule(f"{modulation}in_proj.bias", biases, ("e -> e", "e -> e", "c -> c"))
    for i in range(cfg.levels + 1):
        level = f"{our_modulation}levels.{i}"
        yield from _linear(f"{modulation}layers.{i}.0", level, "d 1 x -> x d")
    mixed = f"{our_modulation}modulator"
    yield from _linear(f"{modulation}context_proj", mixed, "e d 1 -> d e", "e -> e")
    yield from _linear(f"{modulation}out_proj", f"{our_modulation}output", "e d -> d e", "e -> e")
    yield from _mlp(f"{theirs}feed_forward", f"{ours}mlp")
    norms = [("modulation_norm", "modulation_norm"), ("feed_forward_norm", "mlp_norm")]
    norms += [("modulation.norm", "modulation.norm")] if cfg.post_norm else []
    for name, our_name in norms:
        yield Rule(f"{theirs}{name}.alpha", (f"{ours}{our_name}.scale",), ("i -> i",))
    if cfg.gain is not None:
        for name, our_name in (("modulation", "modulation"), ("feed_forward", "mlp")):
            yield Rule(f"{theirs}{name}_gamma", (f"{ours}{our_name}_gain",), (VECTOR,))


def _wavenext(cfg: WaveNext) -> Iterator[Rule]:
    backbone = "decoder.backbone."
    yield from _linear(f"{backbone}embedding", "decoder.embed", "d c x -> x c d")
    yield from _norm(f"{backbone}input_norm", "decoder.norm")
    for i in range(cfg.l):
        layer, ours = f"{backbone}layers.{i}.", f"decoder.blocks.{i}."
        yield from _linear(f"{layer}dwconv", f"{ours}depth", "d 1 x -> x d")
        yield from _norm(f"{layer}norm", f"{ours}norm")
        yield from _matrix(f"{layer}pwconv1", f"{ours}mlp.up", "f d -> d f", "f -> f")
        yield from _matrix(f"{layer}pwconv2", f"{ours}mlp.down", "d f -> f d")
        yield Rule(f"{layer}gamma", (f"{ours}gain",), (VECTOR,))
    yield from _norm(f"{backbone}output_norm", "decoder.last_norm")
    yield from _linear("decoder.head.proj", "decoder.samples", "c d -> d c", "c -> c")


def _mlp(theirs: str, ours: str) -> Iterator[Rule]:
    for name, our_name, pattern, bias in MLP:
        yield from _matrix(f"{theirs}.{name}", f"{ours}.{our_name}", pattern, bias)


def _matrix(theirs: str, ours: str, pattern: str, bias: str = VECTOR) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (ours,), (pattern,))
    yield Rule(f"{theirs}.bias", (f"{ours}_bias",), (bias,))


def _linear(theirs: str, ours: str, pattern: str, bias: str = VECTOR) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (f"{ours}.kernel",), (pattern,))
    yield Rule(f"{theirs}.bias", (f"{ours}.bias",), (bias,))


def _norm(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.weight", (f"{ours}.scale",), (VECTOR,))
    yield Rule(f"{theirs}.bias", (f"{ours}.bias",), (VECTOR,))


def _snake(theirs: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{theirs}.alpha", (f"{ours}.scale",), ("d 1 -> d",))
