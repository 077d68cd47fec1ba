"""One update of a run as a pure function, and the state that it changes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
import optax

from melllm_jax.batch import Batch
from melllm_jax.config.run import Run
from melllm_jax.models.parameters import Skeleton, Weights, abstract_model, init_model
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.nn.vocab_parallel import Sums
from melllm_jax.objectives.next_token import next_token_loss, next_token_targets
from melllm_jax.training import optimizer


class State(NamedTuple):
    """All that an update changes, and the frozen weights beside it."""

    trained: Weights  # float32 masters
    frozen: Weights  # bfloat16, but for fixed statistics
    opt: optax.OptState
    step: Array  # int32, updates made
    halted: Array  # bool: an update was not finite, and nothing has changed since


class Update:
    """One update of a run as a pure function, and the state that it starts from."""

    def __init__(self, run: Run):
        self.run = run
        self.build = lambda rngs: SpeechLM(run.model, run.mel, run.lora, rngs=rngs)
        self.skeleton: Skeleton = abstract_model(self.build)[0]
        self.names = optimizer.trainable_names(run.optim, self.skeleton.kinds)
        kinds = {name: kind for name, kind in self.skeleton.kinds.items() if name in self.names}
        self.kinds = kinds
        self.optimizer = optimizer.make_optimizer(run.optim, kinds)
        self.dtype = jnp.dtype(run.optim.compute)

    def init_state(self) -> State:
        """A random start, every array made where the mesh in force keeps it."""
        return self.state_from(init_model(self.build, self.run.seed)[1])

    def state_from(self, weights: Weights) -> State:
        """The state before the first update, from given weights."""
        trained = {name: x for name, x in weights.items() if name in self.names}
        frozen = {name: self._frozen(name, x) for name, x in weights.items() if name not in trained}
        opt = jax.jit(self.optimizer.init)(trained)
        return State(trained, frozen, opt, jnp.int32(0), jnp.bool(False))

    def shapes(self, mesh: jax.sharding.Mesh) -> State:
        """The state's shapes, dtypes and layouts on `mesh`: what a checkpoint is loaded into."""
        state = jax.eval_shape(self.state_from, abstract_model(self.build)[1])

        def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = x.sharding.spec if x.sharding is not None else jax.P()
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))

        return jax.tree.map(placed, state)

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
        metrics = {
            "loss": sums.loss / jnp.maximum(sums.weight, 1e-9),
            "accuracy": sums.hits / jnp.maximum(sums.weight, 1e-9),
            "grad_norm": norm,
            "lr": jnp.asarray(
                optimizer.learning_rate_schedule(self.run.optim)(state.step), jnp.float32
            ),
            "finite": finite,
        }
        state = State(trained, state.frozen, opt, step, ~finite)
        return state, metrics | batch_counts(
            batch, max(len(self.run.data.sources), 1), self.run.mel.hop_seconds
        )

    def _gradients(self, state: State, batch: Batch, key: Array) -> tuple[Sums, Weights]:
        """Sums over the whole batch, and the gradient of their mean loss.

        Every micro-batch's loss is divided by the weight of the whole batch, so the split does not
        change the result, and the gradients themselves are never passed over for a division.
        """
        micro = self.run.optim.micro
        weight = jnp.maximum(jnp.sum(next_token_targets(batch)[1]), 1e-9)
        differentiate = jax.value_and_grad(self._loss, has_aux=True)
        if micro == 1:
            (_, sums), grads = differentiate(state.trained, state.frozen, batch, key, weight)
            return sums, grads
        add = functools.partial(jax.tree.map, jnp.add)

        def one(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
            (_, sums), grads = differentiate(state.trained, state.frozen, *part, weight)
            return add(total, (sums, grads)), None

        nothing = Sums(*[jnp.zeros(())] * 3), jax.tree.map(jnp.zeros_like, state.trained)
        parts = (
            jax.tree.map(lambda x: _split_rows(x, micro), batch),
            jax.random.split(key, micro),
        )
        return jax.lax.scan(one, nothing, parts)[0]

    def _loss(
        self, trained: Weights, frozen: Weights, batch: Batch, key: Array, weight: Array
    ) -> tuple[Array, Sums]:
        # The one cast: masters to the compute dtype. Its gradient casts back to float32.
        model = self.skeleton.model(trained | frozen, self.dtype)
        sums = next_token_loss(model, batch, key if self.run.lora.dropout else None)
        return sums.loss / weight, sums

    def _frozen(self, name: str, x: Array) -> Array:
        return x if name.startswith("front.") else x.astype(jnp.bfloat16)


def batch_counts(batch: Batch, sources: int, hop_seconds: float) -> dict[str, Array]:
    """What is in a batch: positions in use, those of speech, seconds of audio, and by source."""
    starts = (batch.positions == 0) & (batch.segments > 0)
    by_source = batch.sources[..., None] == jnp.arange(sources, dtype=jnp.int32)[None, None]
    return {
        "tokens": jnp.sum(batch.segments > 0).astype(jnp.float32),
        "speech": jnp.sum(batch.is_speech).astype(jnp.float32),
        "audio": jnp.sum(batch.frames).astype(jnp.float32) * hop_seconds,
        "examples": jnp.sum(starts[..., None] & by_source, axis=(0, 1)).astype(jnp.int32),
    }


def _split_rows(x: Array, parts: int) -> Array:
    """[b …] as [parts b/parts …], each part's rows spread over the mesh as the whole's were."""
    spec = jax.typeof(x).sharding.spec
    shape = (x.shape[0] // parts, parts, *x.shape[1:])
    x = jax.lax.reshape(x, shape, out_sharding=jax.P(spec[0], None, *spec[1:]))
    return jnp.moveaxis(x, 1, 0)
