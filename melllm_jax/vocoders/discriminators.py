"""What tells recorded sound from a vocoder's: discriminators of several periods and resolutions.

Each gives the outputs of all its layers: the hidden ones are matched (Larsen et al. 2016, arXiv
1512.09300), the last one says where the sound is a recording's. Weights have no normalisation of
their own: they are drawn so that a layer keeps the size of its input.
"""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from melllm_jax.config.vocoder_run import Adversarial
from melllm_jax.features.stft import stft
from melllm_jax.nn.layers import constant, weight

SLOPE = 0.1  # of the leaky ReLUs
GAIN = (2 / (1 + SLOPE**2)) ** 0.5  # what a leaky ReLU takes of the deviation (arXiv 1502.01852)
PERIOD_TAPS, PERIOD_STRIDE, LAST_TAPS = 5, 3, 3
BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges, as shares of a spectrum's bins
BAND_LAYERS = (((3, 9), 1), ((3, 9), 2), ((3, 9), 2), ((3, 9), 2), ((3, 3), 1))  # taps, stride
LEAST_PEAK = 1e-3  # added to what sound is divided by: silence stays quiet, and its gradient small

Layers = list[Array]  # outputs, the first layer's first: [b …]


class Discriminators(nnx.Module):
    """All discriminators of a run; either kind may be missing."""

    def __init__(self, rngs: nnx.Rngs, cfg: Adversarial):
        self.periods = nnx.List([PeriodDiscriminator(rngs, cfg, x) for x in cfg.periods])
        self.resolutions = nnx.List(
            [ResolutionDiscriminator(rngs, cfg, x) for x in cfg.resolutions]
        )

    def __call__(self, wave_bw: Float[Array, "b w"]) -> tuple[list[Layers], list[Layers]]:
        """The layers of each discriminator of sound: those of periods, those of resolutions."""
        return [d(wave_bw) for d in self.periods], [d(wave_bw) for d in self.resolutions]


class PeriodDiscriminator(nnx.Module):
    """Sees every p-th sample by itself: HiFi-GAN's (Kong et al. 2020, arXiv 2010.05646).

    The sound is folded to [b w/p p], mirrored at its end to whole rows; all convolutions are along
    the folded time alone, of stride 3 but for the last two.
    """

    def __init__(self, rngs: nnx.Rngs, cfg: Adversarial, period: int):
        self.period = period
        widths = (1, *cfg.period_channels)
        pairs = zip(widths, widths[1:], strict=False)
        self.layers = nnx.List([PlaneConvolution(rngs, c, u, (PERIOD_TAPS, 1)) for c, u in pairs])
        self.last = PlaneConvolution(rngs, widths[-1], 1, (LAST_TAPS, 1), gain=1.0)

    def __call__(self, wave_bw: Float[Array, "b w"]) -> Layers:
        b, w = wave_bw.shape
        rest = -w % self.period
        folded = jnp.pad(wave_bw, ((0, 0), (0, rest)), mode="reflect")
        strides = [(PERIOD_STRIDE, 1)] * (len(self.layers) - 1) + [(1, 1)]
        plane = folded.reshape(b, (w + rest) // self.period, self.period, 1)
        return _outputs(self.layers, self.last, plane, strides)


class ResolutionDiscriminator(nnx.Module):
    """Sees complex spectra of one width in five bands: the Descript codec's (arXiv 2306.06546).

    As the package vocos 0.1.0 has it, but for silence: without mean and at a peak of 0.8, a hop of
    a quarter of the width. Each band has its own layers, after which they stand side by side again.
    """

    def __init__(self, rngs: nnx.Rngs, cfg: Adversarial, width: int):
        self.width = width
        c = cfg.resolution_channels
        make = lambda: nnx.List(
            [
                PlaneConvolution(rngs, c if i else 2, c, taps)
                for i, (taps, _) in enumerate(BAND_LAYERS)
            ]
        )
        self.bands = nnx.List([make() for _ in BANDS[1:]])
        self.last = PlaneConvolution(rngs, c, 1, (LAST_TAPS, LAST_TAPS), gain=1.0)

    def __call__(self, wave_bw: Float[Array, "b w"]) -> Layers:
        wave_bw = wave_bw - jnp.mean(wave_bw, axis=1, keepdims=True)
        peak = jnp.max(jnp.abs(wave_bw), axis=1, keepdims=True)
        spectra = stft(0.8 * wave_bw / (peak + LEAST_PEAK), self.width, self.width // 4)
        plane = jnp.stack([spectra.real, spectra.imag], axis=-1)
        edges = [int(share * plane.shape[2]) for share in BANDS]
        found: Layers = []
        ends: Layers = []
        for layers, low, high in zip(self.bands, edges, edges[1:], strict=False):
            x = plane[:, :, low:high]
            for layer, (_, stride) in zip(layers, BAND_LAYERS, strict=True):
                x = jax.nn.leaky_relu(layer(x, (1, stride)), SLOPE)
                found.append(x)
            ends.append(x)
        return [*found, self.last(jnp.concatenate(ends, axis=2), (1, 1))]


class PlaneConvolution(nnx.Module):
    """A convolution over a plane, padded with zeros by half its taps."""

    def __init__(self, rngs: nnx.Rngs, c: int, u: int, taps: tuple[int, int], gain: float = GAIN):
        size = {"x": taps[0], "y": taps[1], "c": c, "u": u}
        self.kernel = weight(rngs, size, "x y c u", fan_in="x y c", scale=gain)
        self.bias = constant(size, "u", 0.0)

    def __call__(
        self, x_bijc: Float[Array, "b i j c"], strides: tuple[int, int]
    ) -> Float[Array, "b s q u"]:
        kernel = self.kernel[...]
        y = jax.lax.conv_general_dilated(
            x_bijc.astype(kernel.dtype),
            kernel,
            window_strides=strides,
            padding=[(taps // 2, taps // 2) for taps in kernel.shape[:2]],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...][None, None, None]


def _outputs(
    layers: Sequence[PlaneConvolution],
    last: PlaneConvolution,
    x: Array,
    strides: Sequence[tuple[int, int]],
) -> Layers:
    found: Layers = []
    for layer, stride in zip(layers, strides, strict=True):
        x = jax.nn.leaky_relu(layer(x, stride), SLOPE)
        found.append(x)
    return [*found, last(x, (1, 1))]
