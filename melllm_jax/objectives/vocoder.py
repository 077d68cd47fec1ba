"""A vocoder that learns from sound: the distance of its mel, and discriminators to deceive."""

from collections.abc import Callable, Mapping
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from melllm_jax.batch import Batch
from melllm_jax.config.vocoder import VocoderSpec
from melllm_jax.config.vocoder_run import Adversarial, VocoderRun
from melllm_jax.features.log_mel import batch_log_mel
from melllm_jax.features.mel_filters import make_filters
from melllm_jax.models.parameters import Kinds
from melllm_jax.nn import attention
from melllm_jax.objectives.objective import Companion, LossSums, Term, trainable_names
from melllm_jax.vocoders.discriminators import Discriminators, Layers
from melllm_jax.vocoders.stored_vocoder import Vocoder, make_vocoder

Judge = Callable[[Array], Array]  # an output of a discriminator to what it costs
# What an output costs a discriminator of a recording, and of the vocoder's sound, and what the
# latter costs the vocoder.
COSTS: Mapping[str, tuple[Judge, Judge, Judge]] = {
    "hinge": (
        lambda x: jnp.maximum(1 - x, 0),
        lambda x: jnp.maximum(1 + x, 0),
        lambda x: jnp.maximum(1 - x, 0),
    ),
    "least_squares": (
        lambda x: jnp.square(1 - x),
        jnp.square,
        lambda x: jnp.square(1 - x),
    ),
}


class VocoderAndJudges(nnx.Module):
    """A vocoder and the discriminators that it learns against."""

    def __init__(self, rngs: nnx.Rngs, run: VocoderRun):
        self.generator: Vocoder = make_vocoder(rngs, run.spec)
        self.discriminators = Discriminators(rngs, run.adversarial)


@dataclasses.dataclass(frozen=True)
class VocoderObjective:
    """Mel reconstruction, feature matching and discriminators, in one loss.

    Published trainings make two updates of a batch: one of the discriminators, then one of the
    vocoder against those. Here one backward pass gives the gradients of both: the discriminators'
    loss sees the sound as given, and the vocoder's sees the discriminators' weights as given, so
    that neither moves what is the other's. What differs is that both are from before the update.
    """

    run: VocoderRun

    def build(self, rngs: nnx.Rngs) -> VocoderAndJudges:
        """The vocoder and its discriminators, of the run's sizes."""
        return VocoderAndJudges(rngs, self.run)

    def loss(
        self,
        model: VocoderAndJudges,
        batch: Batch,
        key: Array | None = None,
        companions: Mapping[str, nnx.Module] | None = None,
    ) -> LossSums:
        """Summed distance of the mel of every real frame; `mel` is the same without its weight.

        Further terms are sums over rows: `adversarial` and `feature` are the vocoder's, of which
        it wants little, `discriminator` is that of those who tell it apart.
        """
        spec, cfg = self.run.spec, self.run.adversarial
        real_bt = attention.gather_time(batch.frames) > 0
        wave_bw = crop_waves(batch)
        mels_bfm = crop_mels(wave_bw, spec)
        heard_bw = jnp.repeat(real_bt, spec.hop, axis=1)
        made_bw = model.generator(mels_bfm).astype(jnp.float32)
        made_bw = jnp.where(heard_bw, made_bw, 0)
        t = real_bt.shape[1]
        off_bt = mel_distance(crop_mels(made_bw, spec)[:, :t], mels_bfm[:, :t], spec)
        mel = jnp.sum(jnp.where(real_bt, off_bt, 0))
        terms = {}
        if cfg.periods or cfg.resolutions:
            rows_b = jnp.any(real_bt, axis=1)
            terms = judge(model.discriminators, wave_bw, made_bw, rows_b, cfg)
        return LossSums(cfg.mel * mel, jnp.sum(self.target_weights(batch)), {"mel": mel}, terms)

    def target_weights(self, batch: Batch) -> Float[Array, "b t"]:
        """1 for each frame with sound."""
        return batch.loss_weight

    def terms(self, batch: Batch, step: Array) -> Mapping[str, Term]:
        """What the discriminators say, from the update adversarial.start on."""
        cfg = self.run.adversarial
        if not (cfg.periods or cfg.resolutions):
            return {}
        rows = jnp.sum(jnp.any(batch.frames > 0, axis=1)).astype(jnp.float32)
        on = (step >= cfg.start).astype(jnp.float32)
        scales = {"adversarial": on, "feature": cfg.feature * on, "discriminator": on}
        return {name: Term(rows, scale) for name, scale in scales.items()}

    def trained(self, kinds: Kinds) -> frozenset[str]:
        """All but the statistics that a HiFi-GAN may normalise by."""
        return trainable_names(self.run.optim, kinds)

    def companions(self) -> Mapping[str, Companion]:
        """None."""
        return {}


def crop_waves(batch: Batch) -> Float[Array, "b w"]:
    """The sound of each row, t · hop samples in float32."""
    patches_btp = attention.gather_time(batch.patches)
    waves: Array = patches_btp.reshape(len(patches_btp), -1).astype(jnp.float32)
    return waves


def crop_mels(wave_bw: Float[Array, "b w"], spec: VocoderSpec) -> Float[Array, "b f m"]:
    """The frames of which the vocoder makes just as many samples as `wave` has.

    They lie where the vocoder puts them: what their extractor does not see at the edges is silence,
    or what it mirrors.
    """
    table, w = make_filters(spec.mel.kind, spec.mel.m, spec.rate), wave_bw.shape[1]
    count = w // spec.hop
    count += spec.samples(count) < w
    if not table.edge:  # its frames lie within the sound
        centred = count * spec.hop > w
        side = table.width // 2 if centred else (table.width - spec.hop) // 2
        wave_bw = jnp.pad(wave_bw, ((0, 0), (side, side)))
    short = max(count - table.frames(wave_bw.shape[1]), 0)
    wave_bw = jnp.pad(wave_bw, ((0, 0), (0, short * spec.hop)))
    lengths_b = jnp.full_like(wave_bw[:, 0], wave_bw.shape[1], jnp.int32)
    return batch_log_mel(wave_bw, lengths_b, spec.mel, spec.rate)[0][:, :count]


def mel_distance(
    x_btm: Float[Array, "b t m"], y_btm: Float[Array, "b t m"], spec: VocoderSpec
) -> Float[Array, "b t"]:
    """Mean absolute difference of the bands, in natural log of magnitude whatever the extractor."""
    table = make_filters(spec.mel.kind, spec.mel.m, spec.rate)
    return jnp.mean(jnp.abs(x_btm - y_btm), axis=2) / (table.gain * table.power)


def judge(
    discriminators: Discriminators,
    real_bw: Float[Array, "b w"],
    made_bw: Float[Array, "b w"],
    rows_b: Bool[Array, "b"],
    cfg: Adversarial,
) -> dict[str, Array]:
    """The sums of `VocoderObjective.terms` over the rows that hold something."""
    graph, weights = nnx.split(discriminators)
    given = nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, weights))
    recorded, told, judged = (
        discriminators(real_bw),
        discriminators(jax.lax.stop_gradient(made_bw)),
        given(made_bw),
    )
    real_cost, made_cost, own_cost = COSTS[cfg.loss]
    totals = dict.fromkeys(("adversarial", "feature", "discriminator"), jnp.float32(0))
    shares = (cfg.period_weight, cfg.resolution_weight)
    for share, real, fake, own in zip(shares, recorded, told, judged, strict=True):
        for layers in zip(real, fake, own, strict=True):
            costs = {
                "adversarial": _row_mean(own_cost, layers[2][-1]),
                "feature": _matched(layers[0], layers[2]),
                "discriminator": _row_mean(real_cost, layers[0][-1])
                + _row_mean(made_cost, layers[1][-1]),
            }
            for name, cost_b in costs.items():
                totals[name] += share / len(real) * jnp.sum(jnp.where(rows_b, cost_b, 0))
    return totals


def _row_mean(cost: Judge, x: Array) -> Float[Array, "b"]:
    return jnp.mean(cost(x.astype(jnp.float32)), axis=range(1, x.ndim))


def _matched(real: Layers, own: Layers) -> Float[Array, "b"]:
    """The mean distance of each layer from what a recording gives there, added up."""
    total = jnp.float32(0)
    for x, y in zip(real, own, strict=True):
        off = jnp.abs(jax.lax.stop_gradient(x).astype(jnp.float32) - y.astype(jnp.float32))
        total += jnp.mean(off, axis=range(1, off.ndim))
    return total
