"""WavLM's causal form as sound comes: chunk by chunk equal to the whole.

The form is FocalCodec-Stream's (Della Libera et al. 2025, arXiv 2509.16195). Convolutions see the
first sample, or the first position, repeated before the sound, and nothing later; a position sees
the chunk of `look_ahead` + 1 that it is in, and of earlier ones as much as the window leaves. So a
chunk is heard once its samples are there, and delay does not grow with layers. The window of a last
chunk that is not full ends where the chunk would, as theirs does chunk by chunk; of a whole sound
theirs lets it end with the sound, and so see a little more.

All are pure functions of a state that is a pytree. Samples of no whole chunk wait in it, so that
pieces of any length may come: each number of chunks that become whole at once is compiled once. The
mesh splits rows and heads, and not time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from melllm_jax import sharding
from melllm_jax.encoders.wavlm import PreNormBlock, WavLMEncoder
from melllm_jax.errors import Mistake
from melllm_jax.nn.attention import gather_time
from melllm_jax.nn.relative_position import attend_gated, chunk_mask


class Past(NamedTuple):
    """What is kept of the chunks that were heard."""

    before: tuple[Array, ...]  # what each convolution saw last: [b taps-1 c], in their order
    keys: Float[Array, "layers b s n h"]  # of the window without a chunk: the last s positions
    values: Float[Array, "layers b s n h"]
    heard: Int[Array, ""]  # positions so far


class StreamState(NamedTuple):
    """What is kept of the sound so far."""

    samples: Float[Array, "b w"]  # those of no whole chunk yet
    past: Past


class ConvolutionHistory:
    """What the convolutions saw last, in the order in which they ask."""

    def __init__(self, before: tuple[Array, ...], first: Bool[Array, ""]) -> None:
        self._before, self._first = before, first
        self.after = list[Array]()

    def extend(self, x_bsc: Float[Array, "b s c"], taps: int) -> Float[Array, "b q c"]:
        """`x` after the steps before it: at the beginning its own first one, repeated."""
        before = self._before[len(self.after)].astype(x_bsc.dtype)
        before = jnp.where(self._first, x_bsc[:, :1], before)
        seen = jnp.concatenate([before, x_bsc], axis=1)
        self.after.append(seen[:, seen.shape[1] - taps + 1 :])
        return seen


def init_state(model: WavLMEncoder, b: int) -> StreamState:
    """The state of `b` sounds before their first sample. Raises Mistake for a model not causal."""
    cfg, dtype = model.cfg, model.table.dtype
    if not cfg.causal:
        raise Mistake("wavlm.causal=False: this WavLM sees later positions: it hears no chunks")
    zeros = lambda shape, dims: jnp.zeros(shape, dtype, out_sharding=sharding.a(dims))
    widths = [(taps, c) for taps, c in zip(cfg.kernels, (1, *cfg.channels), strict=False)]
    widths.append((cfg.taps, cfg.d))
    before = tuple(zeros((b, taps - 1, c), "b s c") for taps, c in widths)
    cached = (cfg.l, b, cfg.window - cfg.chunk, cfg.n, cfg.h)
    keys, values = (zeros(cached, "l b s n h") for _ in range(2))
    samples = jnp.zeros((b, 0), out_sharding=sharding.a("b w"))
    return StreamState(samples, Past(before, keys, values, jnp.zeros((), jnp.int32)))


def step(
    model: WavLMEncoder, state: StreamState, samples_bw: Float[Array, "b w"]
) -> tuple[Float[Array, "layers b t d"], StreamState]:
    """All hidden states of the chunks that these samples complete, none or several, and the state.

    States are those of `WavLMEncoder.hidden` for the sound so far.
    """
    samples_bw = jax.reshard(samples_bw, sharding.a("b w"))
    samples_bw = jnp.concatenate([state.samples, samples_bw], axis=1)
    unit = model.cfg.hop * model.cfg.chunk
    whole = samples_bw.shape[1] // unit * unit
    states, past = _hear(model, state.past, samples_bw[:, :whole])
    return states, StreamState(samples_bw[:, whole:], past)


def finish(model: WavLMEncoder, state: StreamState) -> Float[Array, "layers b t d"]:
    """All hidden states of the samples that still wait, as the last of the sound."""
    return _hear(model, state.past, state.samples)[0]


@jax.jit
def _hear(
    model: WavLMEncoder, past: Past, samples_bw: Array
) -> tuple[Float[Array, "layers b t d"], Past]:
    """All hidden states of these samples, and what is kept after them."""
    cfg = model.cfg
    if not samples_bw.shape[1]:
        empty = (cfg.l + 1, len(samples_bw), 0, cfg.d)
        return jnp.zeros(empty, model.table.dtype, out_sharding=sharding.a("l b t d")), past
    memory = ConvolutionHistory(past.before, past.heard == 0)
    x_btd = model.embed(model.stem(samples_bw, memory.extend), memory.extend)
    t, cached = x_btd.shape[1], past.keys.shape[2]
    index_s = past.heard + jnp.arange(-cached, t, dtype=jnp.int32)
    index_t = index_s[cached:]
    bias_nts = model.attention_bias(index_t, index_s)
    visible_ts = chunk_mask(index_t, index_s, cfg.chunk, cfg.window)
    visible_bts = jnp.broadcast_to(visible_ts[None], (len(samples_bw), *visible_ts.shape))
    visible_bts = jax.reshard(visible_bts, sharding.a("b t s"))

    def apply(
        x_btd: Array, layer: tuple[PreNormBlock, Array, Array]
    ) -> tuple[Array, tuple[Array, ...]]:
        block, *before = layer
        after: list[Array] = []

        def attend(q: Array, k: Array, v: Array, gate: Array) -> Array:
            pairs = zip(before, (k, v), strict=True)
            k, v = (jnp.concatenate([old, gather_time(new)], axis=1) for old, new in pairs)
            after.extend(x[:, x.shape[1] - cached :] for x in (k, v))
            return attend_gated(q, k, v, gate, bias_nts, visible_bts)

        y_btd = block(x_btd, attend)
        return y_btd, (y_btd, *after)

    layers = (model.blocks, past.keys, past.values)
    _, (outputs, keys, values) = jax.lax.scan(apply, x_btd, layers)
    after = Past(tuple(memory.after), keys, values, past.heard + t)
    return jnp.concatenate([x_btd[None], outputs]), after
