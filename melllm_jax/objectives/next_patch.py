"""The next token and the next mel patch, of text and of speech that is heard or spoken."""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.errors import Mistake
from melllm_jax.models.mel_head import Patches
from melllm_jax.models.parameters import Kinds, is_mel_head
from melllm_jax.models.speaking_lm import SpeakingLM
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn import attention
from melllm_jax.nn.noise import batch_draw
from melllm_jax.nn.vocab_parallel import cross_entropy
from melllm_jax.objectives.next_token import NextToken, next_token_targets
from melllm_jax.objectives.objective import LossSums, Term


class PatchTargets(NamedTuple):
    """What is to be written after each position."""

    patch: Float[Array, "b t p"]  # float32
    real: Bool[Array, "b t p"]  # cells of real frames; none where no patch is to be written
    weight: Float[Array, "b t"]
    last: Bool[Array, "b t"]  # the patch ends its clip
    before: Float[Array, "b t p"]  # the patch before it in its clip
    follows: Bool[Array, "b t"]  # there is one
    clips: Int[Array, "b t"]  # its clip's number, unlike those of other segments; 0: no patch
    frames: Int[Array, "b t"]  # real frames in it

    @property
    def written(self) -> Bool[Array, "b t"]:
        """Where a patch is to be written."""
        return self.clips > 0


@dataclasses.dataclass(frozen=True)
class NextPatch(NextToken):
    """Every target is a token or a patch, told at the position before it.

    The loss of a token is its cross-entropy; that of a patch is the absolute and the squared error
    of it before and after the post-net, a mean over its real cells. Further terms, each a mean over
    patches: `kl`, the divergence of the latent from N(patch, I), a mean over cells; `flux`, minus
    the distance of the latent's mean from the patch before; `stop`, the cross-entropy of whether
    the patch is the clip's last. `mel_l1` and `mel_l2`, the errors after the post-net, and
    `accuracy`, of tokens alone, are figures that weigh nothing. Source: MELLE (arXiv 2407.08551).

    Raises Mistake for a run whose model writes text alone.
    """

    def __post_init__(self) -> None:
        if self.run.model.writes != "speech":
            raise Mistake('model.writes="text": writes no patches: choose speech')

    def build(self, rngs: nnx.Rngs) -> SpeakingLM:
        """The model of the run's sizes, with its head."""
        return SpeakingLM(self.run.model, self.run.mel, self.run.lora, rngs=rngs)

    def loss(
        self,
        model: SpeechLM,
        batch: Batch,
        key: Array | None = None,
        companions: Mapping[str, nnx.Module] | None = None,
    ) -> LossSums:
        """Sums over all targets; without a `key` nothing is dropped and latents are their means."""
        assert isinstance(model, SpeakingLM)
        targets = patch_targets(batch, self.run.mel.m)
        keys = (None, None) if key is None else jax.random.split(key)
        hidden_btd = model(batch, keys[0])
        tokens, weights = next_token_targets(batch)
        spoken = cross_entropy(hidden_btd, *model.table, tokens, _of_tokens(weights, targets))
        draw = None if keys[1] is None else batch_draw(keys[1])
        written = model.mel_head.latent(hidden_btd, draw)
        refined = model.mel_head.refine(written.patch, targets.clips, targets.frames)
        error = lambda patch, power: _cell_mean(jnp.abs(patch - targets.patch) ** power, targets)
        l1, l2 = ([error(x, power) for x in (written.patch, refined)] for power in (1, 2))
        figures = {"mel_l1": l1[1], "mel_l2": l2[1], "kl": _divergence(written, targets)}
        figures["stop"] = self._stop(written.stop, targets)
        terms = {name: jnp.sum(targets.weight * x) for name, x in figures.items()}
        terms["flux"] = jnp.sum(_flux_weight(targets) * _flux(written, targets))
        loss = spoken.loss + jnp.sum(targets.weight * (l1[0] + l1[1] + l2[0] + l2[1]))
        weight = spoken.weight + jnp.sum(targets.weight)
        return LossSums(loss, weight, {}, terms | {"accuracy": spoken.hits})

    def target_weights(self, batch: Batch) -> Float[Array, "b t"]:
        """The weight of what comes after each position, token or patch."""
        return next_token_targets(batch)[1]

    def terms(self, batch: Batch, step: Array) -> Mapping[str, Term]:
        """How the further terms count at an update; the divergence not before `kl_after`."""
        cfg, targets = self.run.speech_loss, patch_targets(batch, self.run.mel.m)
        weight = jnp.sum(targets.weight)
        kl = jnp.where(step < cfg.kl_after, 0.0, jnp.float32(cfg.kl))
        figure = Term(weight, jnp.zeros_like(kl))
        of_tokens = jnp.sum(_of_tokens(next_token_targets(batch)[1], targets))
        return {
            "mel_l1": figure,
            "mel_l2": figure,
            "kl": Term(weight, kl),
            "flux": Term(jnp.sum(_flux_weight(targets)), jnp.float32(cfg.flux)),
            "stop": Term(weight, jnp.float32(cfg.stop)),
            "accuracy": Term(of_tokens, jnp.zeros_like(kl)),
        }

    def trained(self, kinds: Kinds) -> frozenset[str]:
        """What optim.train says, and the head."""
        return super().trained(kinds) | frozenset(filter(is_mel_head, kinds))

    def _stop(self, logits: Float[Array, "b t"], targets: PatchTargets) -> Float[Array, "b t"]:
        """Cross-entropy of the last patch, in which that counts `stop_positive` times."""
        positive = self.run.speech_loss.stop_positive * jax.nn.softplus(-logits)
        return jnp.where(targets.last, positive, jax.nn.softplus(logits))


def patch_targets(batch: Batch, m: int) -> PatchTargets:
    """What is to be written after each position of a batch of m mel bands."""
    segments, clips = (attention.gather_time(x) for x in (batch.segments, batch.clips))
    frames, weight = _later(batch.frames), _later(batch.loss_weight)
    own = _later(clips)
    written = (_later(segments) == segments) & (own < 0) & (segments > 0)
    goes_on = (_later(segments, 2) == segments) & (_later(clips, 2) == own)
    patches = batch.patches.astype(jnp.float32)
    frame = jnp.arange(patches.shape[-1])[None, None] // m
    found = PatchTargets(
        patch=_later(patches),
        real=written[..., None] & (frame < frames[..., None]),
        weight=jnp.where(written, weight, 0.0),
        last=written & ~goes_on,
        before=patches,
        follows=written & (clips == own),
        # Of no two clips in a row the same: a segment has fewer than the row has positions.
        clips=jnp.where(written, segments * segments.shape[1] - own, 0),
        frames=jnp.where(written, frames, 0),
    )
    split = lambda x: jax.reshard(x, sharding.a("b t p" if x.ndim == 3 else "b t"))
    return PatchTargets(*map(split, found))


def _later(x: Array, count: int = 1) -> Array:
    """`x` [b t …] of `count` positions later, zeros behind the last; time is gathered."""
    pads = [(0, 0), (0, count)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(attention.gather_time(x)[:, count:], pads)


def _of_tokens(weights: Float[Array, "b t"], targets: PatchTargets) -> Float[Array, "b t"]:
    """The weights of targets that are tokens."""
    return jnp.where(targets.written, 0.0, weights)


def _cell_mean(values: Float[Array, "b t p"], targets: PatchTargets) -> Float[Array, "b t"]:
    """The mean over the real cells of each patch; 0 where there is none."""
    count = jnp.sum(targets.real, axis=-1, dtype=jnp.float32)
    return jnp.sum(jnp.where(targets.real, values, 0.0), axis=-1) / jnp.maximum(count, 1.0)


def _divergence(written: Patches, targets: PatchTargets) -> Float[Array, "b t"]:
    """KL(N(mean, var) ‖ N(patch, I)), a mean over cells."""
    off = jnp.square(written.mean - targets.patch)
    return _cell_mean((jnp.exp(written.log_var) + off - 1.0 - written.log_var) / 2, targets)


def _flux(written: Patches, targets: PatchTargets) -> Float[Array, "b t"]:
    """Minus the distance of the latent's mean from the patch before, a mean over cells."""
    return -_cell_mean(jnp.abs(written.mean - targets.before), targets)


def _flux_weight(targets: PatchTargets) -> Float[Array, "b t"]:
    """The weight of a patch that has one before it."""
    return jnp.where(targets.follows, targets.weight, 0.0)
