"""Attention that never holds [t, s]: blocks of queries, splash on TPU, cuDNN on GPU.

All equal `attention.attend` under `attention.visibility_mask`. They rest on one fact: in a packed
row a position sees an unbroken range of its own segment, so that a mask is two indices a position.
Where time is split over the mesh, each device keeps its own queries and gathers keys and values.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from melllm_jax import sharding
from melllm_jax.errors import Mistake
from melllm_jax.nn.attention import (
    PositionIds,
    gather_time,
    largest_divisor,
    softmax_attention,
)
from melllm_jax.nn.remat import name_activation

WHOLE = 1024  # positions up to which "auto" lets [t, s] stand whole
BLOCK = 512  # queries whose scores stand at once in `blocks`
TILE = 512  # queries and keys in a tile of splash
MAX_PACKED = 1 << 15  # positions whose first and last fit one int32
LANES = 128  # a TPU's registers are this wide: splash wants multiples

AttendFn = Callable[..., Float[Array, "b t n h"]]  # (q, k, v) → attention's result


class VisibleRange(NamedTuple):
    """The positions that each one sees: of its own segment, from `first` to `last` of the row.

    All int32 [b t]. Padding sees no more than padding.
    """

    segments: Int[Array, "b t"]
    first: Int[Array, "b t"]
    last: Int[Array, "b t"]


def visible_ranges(ids: PositionIds, *, window: int, both_ways: bool) -> VisibleRange:
    """`attention.visibility_mask` of packed rows with themselves, as ranges.

    Segments, and clips within them, are unbroken runs of positions, as in `Batch`.
    """
    segments, _, clips = (gather_time(x) for x in ids)
    index = jnp.zeros_like(segments) + jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    start, end = _run_bounds(segments, index)
    first = jnp.maximum(start, index - window + 1) if window else start
    last = index
    if both_ways:
        opens, closes = _run_bounds(clips, index)
        speech = clips > 0  # of two segments side by side, both may have a clip of one number
        first = jnp.where(speech, jnp.minimum(first, jnp.maximum(opens, start)), first)
        last = jnp.where(speech, jnp.minimum(closes, end), last)
    padding = segments == 0
    ranges = segments, jnp.where(padding, index, first), jnp.where(padding, index, last)
    return VisibleRange(*(jax.reshard(x, sharding.a("b t")) for x in ranges))


def choose_kernel(kernel: str, t: int, dtype: DTypeLike) -> str:
    """The implementation that `config.Model.attention` means for rows of `t` on the mesh in force.

    cuDNN computes in 16 bits alone, and splash in whole tiles.
    """
    if kernel != "auto":
        return kernel
    platform = _platform()
    local = t // sharding.parts_of_time()
    if platform == "tpu" and t % LANES == 0 and local % LANES == 0:
        return "splash"
    if platform in ("cuda", "gpu") and jnp.dtype(dtype).itemsize == 2:
        return "cudnn"
    return "whole" if t <= WHOLE else "blocks"


def make_attend_fn(kernel: str, ranges: VisibleRange, *, window: int, both_ways: bool) -> AttendFn:
    """Attention by `kernel` as a function of q [b t n h], k and v [b t k h].

    `window` and `both_ways` are those that `ranges` was made with: they bound what a kernel may
    leave out without looking. What all layers share is computed here, once.
    """
    causal = (
        not both_ways and sharding.parts_of_time() == 1
    )  # else a device's queries start anywhere
    segments_bs = gather_time(ranges.segments)
    q_spec, kv_spec, row = sharding.a("b t n h"), sharding.a("b s k h"), sharding.a("b t")
    shared: tuple[Array, ...]
    specs: tuple[jax.P, ...]
    if kernel == "cudnn":
        function: Any = functools.partial(_cudnn, causal=causal)
        shared, specs = (_mask(ranges),), (sharding.a("b t s"),)
    elif kernel == "splash":
        function = functools.partial(_splash, window=window, causal=causal)
        shared, specs = (*ranges, segments_bs), (row, row, row, sharding.a("b s"))
    else:
        function, shared, specs = _blocks, (ranges.first, ranges.last), (row, row)

    def attend(q_btnh: Array, k_bskh: Array, v_bskh: Array) -> Array:
        spread = jax.shard_map(
            function,
            in_specs=(q_spec, kv_spec, kv_spec, *specs),
            out_specs=q_spec,
            check_vma=False,  # a Pallas call does not say over which axes its result varies
        )
        y_btnh = spread(q_btnh, gather_time(k_bskh), gather_time(v_bskh), *shared)
        # Splash names its result itself, beside the sums that its backward pass needs.
        return y_btnh if kernel == "splash" else name_activation(y_btnh, "attended")

    return attend


def _blocks(q_btnh: Array, k_bskh: Array, v_bskh: Array, first_bt: Array, last_bt: Array) -> Array:
    """Attention with scores of BLOCK queries at a time at most, made again in the backward pass."""
    t = q_btnh.shape[1]
    size = largest_divisor(t, BLOCK)
    k_bksh, v_bksh = (jnp.swapaxes(x, 1, 2) for x in (k_bskh, v_bskh))

    @jax.checkpoint
    def one(part: tuple[Array, Array, Array]) -> Array:
        q, first, last = part
        return softmax_attention(q, k_bksh, v_bksh, _within(first, last, k_bksh.shape[2]))

    parts = (_split_time(x, t // size) for x in (q_btnh, first_bt, last_bt))
    y = jax.lax.map(one, tuple(parts))
    return jnp.moveaxis(y, 0, 1).reshape(q_btnh.shape)


def _cudnn(
    q_btnh: Array, k_bskh: Array, v_bskh: Array, visible_bts: Array, *, causal: bool
) -> Array:
    """cuDNN's attention; elsewhere than on a GPU, XLA's of the same mask."""
    return jax.nn.dot_product_attention(
        q_btnh,
        k_bskh,
        v_bskh,
        mask=visible_bts[:, None],
        is_causal=causal,
        implementation="cudnn" if _platform() in ("cuda", "gpu") else "xla",
    )


def _splash(
    q_btnh: Array,
    k_bskh: Array,
    v_bskh: Array,
    segments_bt: Array,
    first_bt: Array,
    last_bt: Array,
    segments_bs: Array,
    *,
    window: int,
    causal: bool,
) -> Array:
    """Splash attention: query heads share KV heads without a copy, unseen tiles are left out."""
    t, n, h = q_btnh.shape[1:]
    s = k_bskh.shape[1]
    windowed = 0 < window < s
    if windowed and s > MAX_PACKED:
        raise Mistake(
            f"data.t={s}: splash under a window takes rows of {MAX_PACKED} positions at most; "
            f"--model.attention blocks takes longer ones"
        )
    mask = VisibleRangeMask((t, s), window if windowed else s, causal, windowed)
    q_tile, kv_tile = math.gcd(t, TILE), math.gcd(s, TILE)
    sizes = splash.BlockSizes(
        block_q=q_tile,
        block_kv=kv_tile,
        block_kv_compute=kv_tile,
        block_q_dkv=q_tile,
        block_kv_dkv=kv_tile,
        block_kv_dkv_compute=kv_tile,
        block_q_dq=q_tile,
        block_kv_dq=kv_tile,
    )
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * n),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attended",
        interpret=_platform() != "tpu",
    )

    def row(q: Array, k: Array, v: Array, ids: splash.SegmentIds, first: Array, last: Array) -> Any:
        reach = _pack_range(first, last) if windowed else last
        with_reach = lambda info: info._replace(q_sequence=reach)
        infos, rest = kernel.tree_flatten()
        row_kernel = splash.SplashAttentionKernel.tree_unflatten(rest, [*map(with_reach, infos)])
        return row_kernel(q, k, v, ids)

    heads = lambda x: jnp.swapaxes(x, 1, 2)
    q = heads(q_btnh) * jnp.asarray(1 / math.sqrt(h), q_btnh.dtype)
    ids = splash.SegmentIds(segments_bt, segments_bs)
    return heads(jax.vmap(row)(q, heads(k_bskh), heads(v_bskh), ids, first_bt, last_bt))


@dataclasses.dataclass(frozen=True)
class VisibleRangeMask(masks.Mask):
    """Which tiles splash computes: all those in which a `VisibleRange` may hold a pair.

    Inside a tile the kernel calls `mask_function` with each query's own range, which stands in
    place of `q_sequence`.
    """

    sizes: tuple[int, int]  # t, s
    window: int  # positions seen back, at most
    causal: bool
    windowed: bool  # ranges are packed in one int32: where a query's range starts matters

    @property
    def shape(self) -> tuple[int, int]:
        """(t, s)."""
        return self.sizes

    @property
    def q_sequence(self) -> np.ndarray:
        """Replaced by each row's own ranges before the kernel runs."""
        return np.arange(self.sizes[0], dtype=np.int32)

    @property
    def mask_function(self) -> Callable[[Array, Array], Array]:
        """(a query's range, index of a key) → whether it sees the key."""
        return _in_range if self.windowed else _not_beyond

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (
            np.arange(*part.indices(size)) for part, size in zip(index, self.sizes, strict=True)
        )
        back = rows[:, None] - columns[None]
        return (back >= 0) & (back < self.window) if self.causal else np.full(back.shape, True)


def splash_tile_share(t: int, window: int) -> float:
    """Share of its tiles that splash computes in causal rows of `t` positions."""
    tile = math.gcd(t, TILE)
    grid = np.arange(t // tile)
    back = grid[:, None] - grid[None]
    seen = (back >= 0) & ((back - 1) * tile < (window or t) - 1)
    return float(seen.mean())


def _pack_range(first: Array, last: Array) -> Array:
    """Two indices in one int32, for rows of at most MAX_PACKED positions."""
    return (first << 16) | last


def _in_range(q: Array, kv: Array) -> Array:
    return ((q >> 16) <= kv) & (kv <= (q & 0xFFFF))


def _not_beyond(q: Array, kv: Array) -> Array:
    return kv <= q


def _run_bounds(x_bt: Array, index_bt: Array) -> tuple[Array, Array]:
    """First and last index of the run of equal numbers that each position is in."""
    t = x_bt.shape[1]
    changes = x_bt[:, 1:] != x_bt[:, :-1]
    edge = jnp.ones_like(x_bt[:, :1], bool)
    opens, closes = (jnp.concatenate(x, axis=1) for x in ([edge, changes], [changes, edge]))
    start = jax.lax.cummax(jnp.where(opens, index_bt, 0), axis=1)
    return start, jax.lax.cummin(jnp.where(closes, index_bt, t), axis=1, reverse=True)


def _within(first_bt: Array, last_bt: Array, s: int) -> Bool[Array, "b t s"]:
    """The mask of ranges over `s` positions."""
    index = jnp.arange(s, dtype=jnp.int32)[None, None]
    return (first_bt[..., None] <= index) & (index <= last_bt[..., None])


def _mask(ranges: VisibleRange) -> Bool[Array, "b t s"]:
    return _within(ranges.first, ranges.last, ranges.first.shape[1])


def _split_time(x: Array, parts: int) -> Array:
    """[b t …] as [parts b t/parts …]."""
    return jnp.moveaxis(x.reshape(x.shape[0], parts, -1, *x.shape[2:]), 1, 0)


def on_one_cpu() -> bool:
    """Whether the mesh in force is one CPU."""
    return jax.sharding.get_abstract_mesh().size == 1 and _platform() == "cpu"


def _platform() -> str | None:
    """The platform of the mesh in force; None where it has no real device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else None
