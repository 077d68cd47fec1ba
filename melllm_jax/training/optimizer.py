"""Learning-rate schedules, AdamW and Muon.

Trained weights are float32 masters. Frozen ones have no gradient and no optimiser state.
"""

from collections.abc import Mapping

from flax import nnx
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from melllm_jax.config.run import Optim
from melllm_jax.models.parameters import Kinds
from melllm_jax.nn.layers import LoraParam


def learning_rate_schedule(cfg: Optim) -> optax.Schedule:
    """Learning rate by update: a linear rise from 0, then cosine, linear or stable-then-decay.

    The last update's rate is `final · lr` (wsd: Hu et al. 2024, arXiv 2404.06395).
    """
    warmup, rest, end = cfg.warmup, max(cfg.steps - cfg.warmup, 1), cfg.lr * cfg.final
    rise = optax.linear_schedule(0.0, cfg.lr, warmup)
    if cfg.schedule == "wsd":
        falling = min(max(int(cfg.steps * cfg.decay), 1), rest)  # never before the rise is over
        parts = [optax.constant_schedule(cfg.lr), optax.linear_schedule(cfg.lr, end, falling)]
        return optax.join_schedules([rise, *parts], [warmup, cfg.steps - falling])
    if cfg.schedule == "cosine":
        fall = optax.cosine_decay_schedule(cfg.lr, rest, cfg.final)
    else:
        fall = optax.linear_schedule(cfg.lr, end, rest)
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(cfg: Optim, kinds: Kinds) -> optax.GradientTransformation:
    """Clip, then AdamW, or Muon on the layers' matrices and AdamW on the rest.

    `kinds` names the trained weights. Muon's updates have AdamW's size (0.2 · √max side: Liu et
    al. 2025, arXiv 2502.16982), so one learning rate serves both. Weight decay spares vectors.
    """
    clip = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    decayed = {name: bool(kind.fan_in) for name, kind in kinds.items()}
    adamw = optax.adamw(
        learning_rate_schedule(cfg),
        cfg.b1,
        cfg.b2,
        cfg.eps,
        weight_decay=cfg.weight_decay,
        mask=decayed,
    )
    if cfg.kind == "adamw":
        return optax.chain(*clip, adamw)
    axes = {name: _muon_dimensions(name, kind) for name, kind in kinds.items()}
    matrices = contrib.muon(
        learning_rate_schedule(cfg),
        weight_decay=cfg.weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=axes,
    )
    labels = {name: "muon" if axes[name] else "adamw" for name in kinds}
    both = optax.transforms.partition({"muon": matrices, "adamw": adamw}, labels)
    return optax.chain(*clip, _under_auto_axes(both))


def layer_update_masks(cfg: Optim, kinds: Kinds) -> Mapping[str, jax.Array]:
    """For each weight of the stack, 1 for a layer that changes and 0 for one that does not."""
    layers = lambda shape: jnp.ones(shape[0]).at[jnp.asarray(cfg.freeze)].set(0.0)
    return {
        name: layers(kind.shape).reshape(-1, *[1] * (len(kind.shape) - 1))
        for name, kind in kinds.items()
        if cfg.freeze and name.startswith("stack.")
    }


def _muon_dimensions(name: str, kind: nnx.Param) -> contrib.MuonDimensionNumbers | None:
    """Which axes of a stacked weight are one matrix's input and output; None: no matrix."""
    if not name.startswith("stack.") or isinstance(kind, LoraParam) or not kind.fan_in:
        return None
    letters, offset = kind.dims.split(), len(kind.shape) - len(kind.dims.split())
    inputs = tuple(offset + i for i, s in enumerate(letters) if s in kind.fan_in.split())
    outputs = tuple(offset + i for i, s in enumerate(letters) if s not in kind.fan_in.split())
    return contrib.MuonDimensionNumbers(inputs, outputs)


def _under_auto_axes(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` under automatic axes: Muon's reshapes cannot be spelled with explicit ones."""
    specs = lambda tree: jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree)

    def update(grads: optax.Updates, state: optax.OptState, params: optax.Params) -> tuple:
        out = specs((grads, state))
        return jax.sharding.auto_axes(inner.update, out_sharding=out)(grads, state, params)

    return optax.GradientTransformation(inner.init, update)
