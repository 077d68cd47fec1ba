"""Estimates what a teacher adds to a training step: bytes of its weights, activations and sends.

By arithmetic alone, as `analytic_cost`, whose part this is; FLOPs are `flops.distillation_flops`.
Bytes are of one chip, and all are 0 without a teacher.
"""

from collections.abc import Mapping

from melllm_jax import flops
from melllm_jax.config.run import Run
from melllm_jax.nn.attention import largest_divisor
from melllm_jax.nn.attention_kernels import BLOCK, LANES

BFLOAT16 = 2  # bytes of a teacher's weights, whatever the run computes in


def state_bytes(run: Run, sizes: Mapping[str, int]) -> float:
    """Bytes of a teacher's weights: matrices split as the LLM's, Whisper's convolutions by fsdp.

    Its table of positions is whole, and so is a Conformer's stem; norms and biases of Whisper,
    which are not split, are left out.
    """
    cfg, w, m = run.distill, run.distill.whisper, run.mel.m
    if cfg.teacher == "none":
        return 0.0
    if cfg.teacher == "conformer":
        own = flops.conformer_parameters(cfg.c, cfg.conformer)
        whole = flops.teacher_parameters(run) - own
        return BFLOAT16 * (whole + own / (sizes["fsdp"] * sizes["tp"]))
    blocks = w.l * (4 * w.d * w.d + 2 * w.d * w.f)
    taps = 3 * m * w.d + 3 * w.d * w.d
    split = blocks / (sizes["fsdp"] * sizes["tp"]) + taps / sizes["fsdp"]
    return BFLOAT16 * (split + w.positions * w.d)


def activation_bytes(run: Run, sizes: Mapping[str, int]) -> float:
    """Bytes of what a teacher and the heads make of a micro-batch, as if all were there at once.

    Of the teacher, who hears one window of 30 s of each row at a time where its frames are whole:
    what each layer gives, the layer at work, and the scores of one block of queries where rows are
    no multiple of the kernel's tiles; then the states that teach, of all windows. Of the model:
    what its layers give, the states within each position, and in float32 what the heads make of
    the one and the mean of the other.
    """
    cfg = run.distill
    if cfg.teacher == "none":
        return 0.0
    number, count, e = _number(run), len(cfg.pairs(run.model.l)), cfg.width
    inner = cfg.conformer.f if cfg.teacher == "conformer" else cfg.whisper.f
    heard, inside = _heard(run, sizes), 6 * e + 2 * inner / sizes["tp"]
    at_once = heard / _turns(run)
    teacher = number * (at_once * (cfg.traits.layers * e + inside) + heard * count * e)
    teacher += _score_bytes(run, sizes)
    tokens = _rows(run, sizes) * run.data.t / sizes["seq"]
    outputs = number * (run.model.l + count) * run.model.d
    states = count * e * (number * run.mel.r // cfg.traits.frames + 4 + 4)
    return teacher + tokens * (outputs + states)


def sent_bytes(run: Run, sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes that a chip sends of an update, by mesh axis, for the teacher alone.

    Its weights are gathered over fsdp, two sums of each layer of a Whisper and four of a Conformer
    go over tp, and over seq Whisper's keys and values and at the end the states that teach; a
    Conformer hears whole rows. All in one pass of each micro-batch.
    """
    cfg, layers, e, micro = (
        run.distill,
        run.distill.traits.layers,
        run.distill.width,
        run.optim.micro,
    )
    if cfg.teacher == "none":
        return dict.fromkeys(sizes, 0.0)
    ring = {axis: (size - 1) / size for axis, size in sizes.items()}
    number, tp, heard = _number(run), sizes["tp"], _heard(run, sizes)
    blocks = cfg.teacher == "conformer"
    gathered = 0.0 if blocks else layers * 2 * e / tp + len(cfg.pairs(run.model.l)) * e
    summed = layers * (4 if blocks else 2) * e
    return {
        "replica": 0.0,
        "fsdp": micro * ring["fsdp"] * flops.teacher_parameters(run) * number / tp,
        "seq": micro * (sizes["seq"] - 1) * heard * gathered * number,
        "tp": micro * ring["tp"] * heard * summed * 2 * number,
    }


def _number(run: Run) -> int:
    """Bytes of a number that is computed with."""
    return 2 if run.optim.compute == "bfloat16" else 4


def _rows(run: Run, sizes: Mapping[str, int]) -> float:
    """Rows of a micro-batch on one chip."""
    return run.data.b / run.optim.micro / (sizes["replica"] * sizes["fsdp"])


def _heard(run: Run, sizes: Mapping[str, int]) -> float:
    """Positions of the teacher's on one chip, of a micro-batch: a Conformer's time is not split."""
    parts = 1 if run.distill.teacher == "conformer" else sizes["seq"]
    return _rows(run, sizes) * flops.teacher_positions(run) / parts


def _turns(run: Run) -> int:
    """Windows of a row that the teacher hears one after another."""
    cfg = run.distill
    return cfg.windows if cfg.teacher == "whisper" and cfg.frame == "whole" else 1


def _score_bytes(run: Run, sizes: Mapping[str, int]) -> float:
    """Bytes in float32 of the scores that stand at once: none where a kernel holds them.

    A query of a Conformer's sees its window, the one before and after.
    """
    cfg, w = run.distill, run.distill.whisper
    if cfg.teacher == "conformer":
        t, window = run.data.t, flops.CONFORMER_WINDOW
        keys = t if t <= window else 3 * window
        return _rows(run, sizes) * t * cfg.conformer.n / sizes["tp"] * keys * 4 * 2
    length = w.positions if cfg.frame == "whole" else flops.teacher_positions(run)
    if length // sizes["seq"] % LANES == 0:
        return 0.0
    queries = largest_divisor(length // sizes["seq"], BLOCK)
    sequences = _rows(run, sizes) * flops.teacher_positions(run) / length / _turns(run)
    return sequences * w.n / sizes["tp"] * queries * length * 4
