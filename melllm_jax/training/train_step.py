"""One update of a run as a pure function, and the state that it changes."""

from collections.abc import Mapping
import functools
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
import optax

from melllm_jax.batch import Batch
from melllm_jax.models.parameters import (
    Net,
    Skeleton,
    Weights,
    abstract_model,
    init_model,
    init_weights,
    is_front,
)
from melllm_jax.nn.layers import NonTrainable
from melllm_jax.objectives.objective import Companion, LossSums, Objective, Term
from melllm_jax.training import optimizer
from melllm_jax.training.front_start import FrontStart
from melllm_jax.training.warm_start import WarmStart

LEAST = 1e-9  # weight that a total is divided by, where a batch has nothing to learn from


class State(NamedTuple):
    """All that an update changes, and the frozen weights beside it."""

    trained: Weights  # float32 masters
    frozen: Weights  # bfloat16, but for statistics and what is of the front end
    opt: optax.OptState
    step: Array  # int32, updates made
    halted: Array  # bool: an update was not finite, and nothing has changed since
    companions: Mapping[str, Weights] = {}  # by the companion's name; never saved


class Update(Generic[Net]):
    """One update of an objective as a pure function, and the state that it starts from.

    `warm` is the checkpoint that a run starts from in place of random weights.
    """

    def __init__(self, objective: Objective[Net], warm: WarmStart | FrontStart | None = None):
        self.objective, self.run, self.warm = objective, objective.run, warm
        self.skeleton: Skeleton[Net] = abstract_model(objective.build)[0]
        self.names = objective.trained(self.skeleton.kinds)
        kinds = {name: kind for name, kind in self.skeleton.kinds.items() if name in self.names}
        self.kinds = kinds
        self.optimizer = optimizer.make_optimizer(self.run.optim, kinds)
        self.dtype = jnp.dtype(self.run.optim.compute)
        self.companions = {
            name: (companion, *abstract_model(companion.build))
            for name, companion in objective.companions().items()
        }

    def init_state(self) -> State:
        """The state before the first update, every array made where the mesh in force keeps it.

        Raises Mistake where the checkpoint that the run starts from does not fit it.
        """
        if self.warm is None:
            return self.state_from(init_model(self.objective.build, self.run.seed)[1])
        fresh = self.fresh_names()
        shapes = self.shapes(jax.sharding.get_mesh())
        wanted = {k: x for k, x in (shapes.trained | shapes.frozen).items() if k not in fresh}
        return self.state_from(
            self.warm.load(wanted) | init_weights(self.objective.build, self.run.seed, fresh)
        )

    def fresh_names(self) -> list[str]:
        """The weights that start at random: all, or those that the run's checkpoint has not.

        Raises Mistake as `WarmStart.fresh_names` does.
        """
        kinds = self.skeleton.kinds
        return (
            list(kinds) if self.warm is None else self.warm.fresh_names(kinds, self.run.lora_rank)
        )

    def state_from(self, weights: Weights) -> State:
        """The state before the first update, from given weights."""
        return self._state_from(weights)._replace(companions=self.load_companions())

    def load_companions(self) -> dict[str, Weights]:
        """The frozen networks beside the one that learns, laid out over the mesh in force."""
        mesh = jax.sharding.get_mesh()
        return {
            name: companion.load(_with_layouts(_companion_shapes(companion, shapes), mesh))
            for name, (companion, _, shapes) in self.companions.items()
        }

    def shapes(self, mesh: jax.sharding.Mesh) -> State:
        """The state's shapes, dtypes and layouts on `mesh`: what a checkpoint is loaded into."""
        state = jax.eval_shape(self._state_from, abstract_model(self.objective.build)[1])
        companions = {
            name: _companion_shapes(companion, shapes)
            for name, (companion, _, shapes) in self.companions.items()
        }
        shapes: State = _with_layouts(state._replace(companions=companions), mesh)
        return shapes

    def __call__(self, state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        """The next state and its metrics: float32 scalars, and `examples` by source.

        Where loss or gradient is not finite, the state stays as it was and halts for good.
        """
        key = jax.random.fold_in(jax.random.key(self.run.seed), state.step)
        sums, grads = self._gradients(state, batch, key)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(sums.loss) & ~state.halted
        updates, opt = self.optimizer.update(grads, state.opt, state.trained)
        for name, changes in optimizer.layer_update_masks(self.run.optim, self.kinds).items():
            updates[name] = updates[name] * changes
        new = (optax.apply_updates(state.trained, updates), opt, state.step + 1)
        old = (state.trained, state.opt, state.step)
        trained, opt, step = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        weight = jnp.maximum(sums.weight, LEAST)
        terms = self.objective.terms(batch, state.step)
        lr = optimizer.learning_rate_schedule(self.run.optim)(state.step)
        metrics = {
            "loss": sums.loss / weight,
            **{name: total / weight for name, total in sums.metrics.items()},
            **{name: _mean(total, terms[name].weight) for name, total in sums.terms.items()},
            "grad_norm": norm,
            "lr": jnp.asarray(lr, jnp.float32),
            "finite": finite,
        }
        state = State(trained, state.frozen, opt, step, ~finite, state.companions)
        sources, hop = max(len(self.run.data.sources), 1), self.run.mel.hop_seconds
        return state, metrics | batch_counts(batch, sources, hop)

    def loss_sums(self, state: State, batch: Batch) -> LossSums:
        """The loss of a batch's targets under a state's weights, without dropout or gradient.

        Further terms, and the companions that they alone ask, are left out.
        """
        return self._sums(state.trained, state, batch, None)._replace(terms={})

    def _gradients(self, state: State, batch: Batch, key: Array) -> tuple[LossSums, Weights]:
        """Sums over the whole batch, and the gradient of their mean loss.

        Every micro-batch's totals are divided by the weights of the whole batch, so the split does
        not change the result, and the gradients themselves are never passed over for a division.
        """
        micro = self.run.optim.micro
        terms = self.objective.terms(batch, state.step)
        weight = (jnp.sum(self.objective.target_weights(batch)), terms)
        differentiate = jax.value_and_grad(self._loss, has_aux=True)
        if micro == 1:
            (_, sums), grads = differentiate(state.trained, state, batch, key, weight)
            return sums, grads
        add = functools.partial(jax.tree.map, jnp.add)

        def add_part(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
            (_, sums), grads = differentiate(state.trained, state, *part, weight)
            return add(total, (sums, grads)), None

        parts = (
            jax.tree.map(lambda x: _split_rows(x, micro), batch),
            jax.random.split(key, micro),
        )
        first = lambda parts: self._sums(state.trained, state, *jax.tree.map(lambda x: x[0], parts))
        sums = jax.eval_shape(first, parts)
        nothing = (
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums),
            jax.tree.map(jnp.zeros_like, state.trained),
        )
        return jax.lax.scan(add_part, nothing, parts)[0]

    def _loss(
        self,
        trained: Weights,
        state: State,
        batch: Batch,
        key: Array,
        weights: tuple[Array, Mapping[str, Term]],
    ) -> tuple[Array, LossSums]:
        """What is minimised, by the weights of the whole batch."""
        sums = self._sums(trained, state, batch, key)
        weight, terms = weights
        loss = _mean(sums.loss, weight)
        for name, total in sums.terms.items():
            loss += terms[name].scale * _mean(total, terms[name].weight)
        return loss, sums

    def _sums(self, trained: Weights, state: State, batch: Batch, key: Array | None) -> LossSums:
        # The one cast: masters to the compute dtype. Its gradient casts back to float32.
        model = self.skeleton.model(trained | state.frozen, self.dtype)
        companions = {
            name: companion.at(skeleton.model(state.companions[name], self.dtype), state.step)
            for name, (companion, skeleton, _) in self.companions.items()
        }
        return self.objective.loss(model, batch, key, companions)

    def _state_from(self, weights: Weights) -> State:
        trained = {name: x for name, x in weights.items() if name in self.names}
        frozen = {name: self._kept(name, x) for name, x in weights.items() if name not in trained}
        opt = jax.jit(self.optimizer.init)(trained)
        return State(trained, frozen, opt, jnp.int32(0), jnp.bool(False))

    def _kept(self, name: str, x: Array) -> Array:
        """A frozen weight as it is kept: that of a front end, or a statistic, as it is."""
        exact = is_front(name) or isinstance(self.skeleton.kinds[name], NonTrainable)
        return x if exact else x.astype(jnp.bfloat16)


def batch_counts(batch: Batch, sources: int, hop_seconds: float) -> dict[str, Array]:
    """What is in a batch: positions in use, those of speech, seconds of audio, and by source."""
    starts = (batch.positions == 0) & (batch.segments > 0)
    by_source = batch.sources[..., None] == jnp.arange(sources, dtype=jnp.int32)[None, None]
    return {
        "tokens": jnp.sum(batch.segments > 0).astype(jnp.float32),
        "speech": jnp.sum(batch.clips != 0).astype(jnp.float32),
        "audio": jnp.sum(batch.frames).astype(jnp.float32) * hop_seconds,
        "examples": jnp.sum(starts[..., None] & by_source, axis=(0, 1)).astype(jnp.int32),
    }


def _mean(total: Array, weight: Array) -> Array:
    return total / jnp.maximum(weight, LEAST)


def _companion_shapes(companion: Companion, shapes: Weights) -> Weights:
    """The shapes of a companion's weights as they are kept."""
    keep = lambda name, x: x if name in companion.exact else x.astype(jnp.bfloat16)
    return jax.eval_shape(lambda w: {name: keep(name, x) for name, x in w.items()}, shapes)


def _with_layouts(shapes: Any, mesh: jax.sharding.Mesh) -> Any:
    """`shapes` with the layouts that they name, on `mesh`."""

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = x.sharding.spec if x.sharding is not None else jax.P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)


def _split_rows(x: Array, parts: int) -> Array:
    """[b …] as [parts b/parts …], each part's rows spread over the mesh as the whole's were."""
    spec = jax.typeof(x).sharding.spec
    shape = (x.shape[0] // parts, parts, *x.shape[1:])
    x = jax.lax.reshape(x, shape, out_sharding=jax.P(spec[0], None, *spec[1:]))
    return jnp.moveaxis(x, 1, 0)
