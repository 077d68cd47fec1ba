"""Counts the weights and FLOPs of a vocoder's training from its config: arithmetic only."""

from collections.abc import Iterator, Sequence
import dataclasses

from melllm_jax.config.vocoder_run import Adversarial, VocoderRun

VOCODER_TAPS = 7  # of a vocoder's first and last convolutions, and of Vocos's blocks
PERIOD_TAPS, PERIOD_STRIDE, LAST_TAPS = 5, 3, 3
BAND_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
BAND_TAPS, BAND_STRIDES = (27, 27, 27, 27, 9), (1, 2, 2, 2, 1)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A matrix or a convolution with a bias."""

    weights: int  # that one output step is multiplied with
    biases: int
    steps: int  # at which it works, of one crop

    @property
    def flops(self) -> float:
        """Of its forward pass over a crop."""
        return 2.0 * self.weights * self.steps


def generator_layers(run: VocoderRun) -> Sequence[Layer]:
    """The layers of a run's vocoder; norms, and the transform that ends a Vocos, left out."""
    t, m = run.data.t, run.mel.m
    if run.vocoder.kind == "vocos":
        own = run.vocoder.vocos
        block = [
            Layer(VOCODER_TAPS * own.d, own.d, t),
            Layer(own.d * own.f, own.f, t),
            Layer(own.f * own.d, own.d, t),
        ]
        bins = own.n_fft // 2 + 1
        first = Layer(VOCODER_TAPS * m * own.d, own.d, t)
        return [first, *block * own.l, *[Layer(own.d * bins, bins, t)] * 2]
    cfg = run.vocoder.hifi_gan
    c, steps = cfg.channels, t
    layers = [Layer(VOCODER_TAPS * m * c, c, steps)]
    for rate, taps in zip(cfg.rates, cfg.kernels, strict=True):
        layers.append(Layer(taps * c * (c // 2), c // 2, steps))
        c, steps = c // 2, steps * rate
        for width, dilations in zip(cfg.resblock_kernels, cfg.dilations, strict=True):
            layers += [Layer(width * c * c, c, steps)] * (2 * len(dilations))
    return [*layers, Layer(VOCODER_TAPS * c, 1, steps)]


def discriminator_layers(run: VocoderRun) -> Sequence[Layer]:
    """The layers of all discriminators of a run."""
    cfg, w = run.adversarial, run.data.t * run.mel.hop
    periods = [layer for period in cfg.periods for layer in _period_layers(cfg, period, w)]
    spectra = [layer for width in cfg.resolutions for layer in _resolution_layers(cfg, width, w)]
    return periods + spectra


def _period_layers(cfg: Adversarial, period: int, w: int) -> Iterator[Layer]:
    c, steps = 1, -(-w // period)
    for i, u in enumerate(cfg.period_channels):
        if i < len(cfg.period_channels) - 1:
            steps = -(-steps // PERIOD_STRIDE)
        yield Layer(PERIOD_TAPS * c * u, u, steps * period)
        c = u
    yield Layer(LAST_TAPS * c, 1, steps * period)


def _resolution_layers(cfg: Adversarial, width: int, w: int) -> Iterator[Layer]:
    frames, c = w // (width // 4) + 1, cfg.resolution_channels
    edges = [int(share * (width // 2 + 1)) for share in BAND_EDGES]
    ends = 0
    for low, high in zip(edges, edges[1:], strict=False):
        bins = high - low
        for i, (taps, stride) in enumerate(zip(BAND_TAPS, BAND_STRIDES, strict=True)):
            bins = -(-bins // stride)
            yield Layer(taps * (c if i else 2) * c, c, frames * bins)
        ends += bins
    yield Layer(LAST_TAPS**2 * c, 1, frames * ends)


def generator_parameters(run: VocoderRun) -> int:
    """Weights of a run's vocoder: what an export holds, but for statistics."""
    count = sum(layer.weights + layer.biases for layer in generator_layers(run))
    own = run.vocoder.vocos
    norms = (2 * (2 + own.l) + own.l) * own.d if run.vocoder.kind == "vocos" else 0
    return count + norms


def discriminator_parameters(run: VocoderRun) -> int:
    """Weights of a run's discriminators, which training alone needs."""
    return sum(layer.weights + layer.biases for layer in discriminator_layers(run))


def vocoder_update_flops(run: VocoderRun) -> float:
    """FLOPs of one update: the vocoder forward and twice that backward; the discriminators 7 times.

    They hear the recording and the vocoder's sound, learn from both, and pass the gradient of the
    latter on without learning from it. Spectra and mels are left out.
    """
    own = 3 * sum(layer.flops for layer in generator_layers(run))
    judges = 7 * sum(layer.flops for layer in discriminator_layers(run))
    return run.data.b * (own + judges)
