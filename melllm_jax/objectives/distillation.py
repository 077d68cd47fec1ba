"""AuRA: the next token, and hidden states that follow those of a frozen speech encoder.

At the positions of speech, chosen layers of the model are led to the states that the encoder, the
teacher, has in its own layers at the same time: through a head a layer, which training alone has.
At inference the encoder is gone. Source: arXiv 2606.11033; what that leaves unsaid is in
`config.distillation`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Literal, cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from melllm_jax import sharding
from melllm_jax.batch import Batch
from melllm_jax.config.distillation import Distill
from melllm_jax.config.run import Run
from melllm_jax.encoders.teachers import TEACHERS, Teacher, states_there
from melllm_jax.errors import Mistake
from melllm_jax.models.parameters import Kinds, is_alignment_head
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn.layers import RMSNorm, Sizes, einsum, weight
from melllm_jax.objectives.next_token import NextToken, token_loss
from melllm_jax.objectives.objective import Companion, LossSums, Term
from melllm_jax.objectives.teacher_weights import load_teacher

TEACHER = "teacher"  # the companion's name
LEAST = 1e-6  # added to a square before its root is divided by


class AlignmentHead(nnx.Module):
    """From the model's width to the teacher's: RMSNorm, as VoRA has it, and a matrix."""

    def __init__(self, rngs: nnx.Rngs, size: Sizes, cfg: Distill, eps: float):
        self.kernel = weight(rngs, size, "d e", fan_in="d")
        if cfg.head == "norm":
            self.norm = RMSNorm(size, eps)
        self.norms = cfg.head == "norm"

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        x_btd = self.norm(x_btd) if self.norms else x_btd
        return einsum("btd,de->bte", x_btd, self.kernel[...])


class DistilledLM(SpeechLM):
    """A speech language model with the heads that its layers are taught through, stacked.

    Without them it is the model that the same seed makes of the same run without a teacher.
    """

    def __init__(self, run: Run, *, rngs: nnx.Rngs):
        super().__init__(run.model, run.mel, run.lora, rngs=rngs)
        size = {"d": run.model.d, "e": run.distill.width}
        pairs = run.distill.pairs(run.model.l)
        self.has_heads = run.distill.head != "none"
        if self.has_heads:
            make = lambda key: AlignmentHead(key, size, run.distill, run.model.eps)
            self.align = jax.vmap(make)(rngs.split(len(pairs)))

    def follow(self, outputs_nbtd: Float[Array, "n b t d"]) -> Float[Array, "n b t e"]:
        """What the heads make of the outputs of the layers that learn."""
        if not self.has_heads:
            return outputs_nbtd
        through = lambda _, pair: (None, pair[0](pair[1]))
        return jax.lax.scan(through, None, (self.align, outputs_nbtd))[1]


class TeacherUntil(nnx.Module):
    """A teacher that costs nothing where it does not count."""

    def __init__(self, teacher: nnx.Module, counts: Bool[Array, ""]):
        self.teacher, self.counts = teacher, counts

    def states(self, batch: Batch, layers: Sequence[int]) -> Float[Array, "n b t j e"]:
        """The teacher's, or zeros; see `Teacher`."""
        hear = lambda: cast(Teacher, self.teacher).states(batch, layers)
        heard = jax.eval_shape(hear)
        nothing = lambda: jnp.zeros(heard.shape, heard.dtype, out_sharding=heard.sharding.spec)
        states: Array = jax.lax.cond(self.counts, hear, nothing)
        return states


@dataclasses.dataclass(frozen=True)
class Distillation(NextToken):
    """The next token, and a term for each layer that the teacher leads, `align_LAYER`.

    `align_LAYER` is a mean over the positions of speech that the teacher hears; `taught` is the
    share that these are of all. Both are 0 from the update on that its weight is 0 for good: nobody
    asks it any more. Raises Mistake as `NextToken` does, for a run without a
    teacher, and where the layers of the two do not meet.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run.distill.teacher == "none":
            raise Mistake('distill.teacher="none": there is nobody to learn from')
        self.run.distill.pairs(self.run.model.l)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(teacher's layer, student's), counted from 0."""
        return self.run.distill.pairs(self.run.model.l)

    def build(self, rngs: nnx.Rngs) -> DistilledLM:
        """The model of the run's sizes, and its heads."""
        return DistilledLM(self.run, rngs=rngs)

    def loss(
        self,
        model: SpeechLM,
        batch: Batch,
        key: Array | None = None,
        companions: Mapping[str, nnx.Module] | None = None,
    ) -> LossSums:
        """That of `NextToken`, and the distance of each layer from its teacher's."""
        assert isinstance(model, DistilledLM) and companions is not None
        teacher = cast(Teacher | TeacherUntil, companions[TEACHER])
        teachers, students = zip(*self.pairs, strict=True)
        drop = key if self.run.lora.dropout else None
        hidden, outputs = model.with_layers(batch, students, drop)
        there = states_there(batch, self.run.distill, self.run.mel.r)
        if isinstance(teacher, TeacherUntil):
            there &= teacher.counts
        targets = teacher.states(batch, teachers)
        weights = within_positions(there, self.run.distill.time)
        targets = jnp.einsum(
            "btj,nbtje->nbte", weights, targets, out_sharding=jax.P(None, *sharding.a("b t e"))
        )
        off = distance(model.follow(outputs), targets, self.run.distill.loss)
        taught = jnp.any(there, axis=-1)
        totals = jnp.sum(jnp.where(taught[None], off, 0.0), axis=(1, 2))
        terms = {name: totals[i] for i, name in enumerate(self._names)}
        terms["taught"] = jnp.sum(taught, dtype=jnp.float32)
        return token_loss(model, hidden, batch)._replace(terms=terms)

    def terms(self, batch: Batch, step: Array) -> Mapping[str, Term]:
        """One for each layer that learns; `taught` weighs nothing in the loss."""
        there = states_there(batch, self.run.distill, self.run.mel.r)
        taught = jnp.sum(jnp.any(there, axis=-1), dtype=jnp.float32)
        scale = weight_at(self.run, step) / len(self.pairs)
        speech = jnp.sum(batch.is_speech, dtype=jnp.float32)
        each = {name: Term(taught, scale) for name in self._names}
        return each | {"taught": Term(speech, jnp.zeros_like(scale))}

    def trained(self, kinds: Kinds) -> frozenset[str]:
        """What optim.train says, and the heads."""
        return super().trained(kinds) | frozenset(filter(is_alignment_head, kinds))

    def companions(self) -> Mapping[str, Companion]:
        """The teacher, from the folder that distill.path names."""
        cfg, mel = self.run.distill, self.run.mel
        kind = TEACHERS[cfg.teacher]
        build, load = lambda rngs: kind(rngs, cfg, mel), lambda shapes: load_teacher(cfg, shapes)
        companion = Companion(build, load, kind.EXACT)
        if cfg.schedule != "constant" and 0 < cfg.until < self.run.optim.steps:
            until = lambda teacher, step: TeacherUntil(teacher, step < cfg.until)
            companion = dataclasses.replace(companion, at=until)
        return {TEACHER: companion}

    @property
    def _names(self) -> list[str]:
        return [f"align_{student}" for _, student in self.pairs]


def weight_at(run: Run, step: Array) -> Array:
    """What the mean of the terms is multiplied with at an update, counted from 0; float32."""
    cfg = run.distill
    until = cfg.until or run.optim.steps
    left = 1.0 - step.astype(jnp.float32) / until
    if cfg.schedule == "constant":
        return jnp.float32(cfg.weight)
    if cfg.schedule == "linear":
        return cfg.weight * jnp.maximum(left, 0.0)
    return jnp.where(left > 0, jnp.float32(cfg.weight), 0.0)


def within_positions(
    there_btj: Bool[Array, "b t j"], time: Literal["mean", "strided", "linear"]
) -> Float[Array, "b t j"]:
    """The share of each of the teacher's states in what a position is to follow.

    mean: all alike; strided: the first alone; linear: what lies between two at the middle of them.
    A clip's last position may hold fewer than j; where there is none all are 0.
    """
    count = jnp.sum(there_btj, axis=-1, keepdims=True).astype(jnp.float32)
    index = jnp.arange(there_btj.shape[-1], dtype=jnp.float32)[None, None]
    if time == "mean":
        shares = 1.0 / jnp.maximum(count, 1.0)
    elif time == "strided":
        shares = (index == 0).astype(jnp.float32)
    else:
        shares = jnp.maximum(1.0 - jnp.abs(index - (count - 1) / 2), 0.0)
    return jnp.where(there_btj, shares, 0.0)


def distance(
    x: Float[Array, "*n e"], target: Float[Array, "*n e"], loss: Literal["cosine", "mse", "both"]
) -> Float[Array, "*n"]:
    """How far states are from their targets, float32: 0 where they are the same.

    cosine: 1 - cosine of the two; mse: the mean square of what they differ in, each brought to mean
    0 and variance 1 before; both: the two added.
    """
    x, target = x.astype(jnp.float32), target.astype(jnp.float32)
    off = jnp.zeros(x.shape[:-1], jnp.float32)
    if loss in ("cosine", "both"):
        off += 1.0 - jnp.sum(_unit(x) * _unit(target), axis=-1)
    if loss in ("mse", "both"):
        off += jnp.mean(jnp.square(_standard(x) - _standard(target)), axis=-1)
    return off


def _unit(x: Array) -> Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + LEAST)


def _standard(x: Array) -> Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + LEAST)
