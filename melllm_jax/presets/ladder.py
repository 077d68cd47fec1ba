"""Presets of one shape at any size: `ladder_1m` to `ladder_14b`, and models between them.

A size is the number of weights in the layers, norms included: embedding, head and front end are
counted apart by `flops.count_parameters`. What must hold, so that losses of different rungs can be
compared: one vocabulary, one optimiser, one token rate and one template for all.
"""

from collections.abc import Mapping
import dataclasses
import math
import types

from melllm_jax import flops
from melllm_jax.config.data import Augment, Data
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.config.run import CheckpointIntervals, Optim, Run

RUNGS: Mapping[str, float] = types.MappingProxyType(  # weights in the layers, about
    {
        "ladder_1m": 1e6,
        "ladder_2m": 2e6,
        "ladder_4m": 4e6,
        "ladder_8m": 8e6,
        "ladder_16m": 16e6,
        "ladder_32m": 32e6,
        "ladder_64m": 64e6,
        "ladder_125m": 125e6,
        "ladder_200m": 200e6,
        "ladder_350m": 350e6,
        "ladder_600m": 600e6,
        "ladder_1b": 1e9,
        "ladder_2b": 2e9,
        "ladder_4b": 4e9,
        "ladder_7b": 7e9,
        "ladder_14b": 14e9,
    }
)
BYTE_VOCABULARY = 320  # ids of the bytes tokenizer, rounded up: the one that needs no file
CPU_LIMIT = 10e6  # a rung below this is for a CPU: short rows, float32, layers unrolled
# Positions a weight: 400 M on 8.0 B, 1 B on 20.2 B tokens, Hoffmann et al. 2022, arXiv 2203.15556,
# approach 1 (table 3).
POSITIONS_PER_WEIGHT = 20.0
MAX_WARMUP = 2000  # updates at most; a twentieth of a short run: both ours
MAX_LEARNING_RATE = (
    8e-3  # no learning rate beyond it: the highest that a small run was seen to do well at
)
STEP_LAW_SHARE = 0.5  # of Step Law's rate, see `learning_rate`
WIDTHS = (
    *range(64, 256, 32),
    *range(256, 1024, 128),
    *range(1024, 2048, 256),
    *range(2048, 8193, 512),
)


def rung(name: str) -> Run:
    """The run of that rung: 20 positions a weight, padding included.

    Bytes are its tokens; another vocabulary goes with all rungs of a sweep:
    --text.tokenizer DIR --model.v SIZE.

    melllm train ladder_350m --data DIR --workdir RUN
    melllm plan ladder_350m --topology v5p:4x4x4
    """
    small = RUNGS[name] < CPU_LIMIT
    shape = model_of_size(RUNGS[name], BYTE_VOCABULARY)
    if small:
        shape = dataclasses.replace(shape, remat="none", scan=False)
    weights = float(flops.stack_parameters(shape))
    positions = POSITIONS_PER_WEIGHT * weights
    t = 128 if small else 2048
    b = 8 if small else max(8, 2 ** round(math.log2(batch_positions(positions) / t)))
    steps = max(1, round(positions / (b * t)))
    return Run(
        name=name,
        model=shape,
        mel=Mel(kind="phi4", r=8, normalize="utterance"),
        data=Data(t=t, b=b, wire="float32" if small else "bfloat16", augment=Augment(shift=7)),
        optim=Optim(
            steps=steps,
            lr=learning_rate(weights, positions, float(b * t)),
            warmup=warmup_updates(steps),
            compute="float32" if small else "bfloat16",
        ),
        checkpoints=CheckpointIntervals(every=200 if small else 500),
    )


def model_of_size(params: float, v: int) -> Model:
    """A model with about `params` weights in its layers and a vocabulary of `v`.

    Of each width the depth is taken that comes nearest; of these the one whose size and shape are
    least off. Depth: l = 8 · (d / 512)^0.7, ours: the line through the first row of Chinchilla's
    table A9 (44 M: d 512, 8 heads of 64, l 8; arXiv 2203.15556) and Phi-4 (d 5120, l 40; its
    config.json), on which Llama 3.2 3B (d 3072, l 28; likewise) lies as well. The table's other
    rows are deeper: 10 to 16 layers at d 640, where the line has 9, and 47 at d 5120. Heads are 32
    wide below d 256, 64 below 1,024, then 128; about four share their keys and values, as in Phi-4;
    f is 8/3 d (Shazeer 2020, arXiv 2002.05202).
    """
    return min(
        (_model_of_width(d, params, v) for d in WIDTHS), key=lambda one: _mismatch(one, params)
    )


def learning_rate(weights: float, positions: float, size: float) -> float:
    """AdamW's peak learning rate for `positions` in all, `size` of them an update.

    Half of Step Law's 1.79 · N^-0.713 · D^0.307 (Li et al. 2025, arXiv 2503.04715; the medians of
    its thousand published fits, github.com/step-law/steplaw, are 1.782, -0.712 and 0.307), N
    weights without the embedding and D positions. The half is ours: speech has no targets, so that
    an update holds fewer than a text model's. Its published dense runs have N 215 M to 1.07 B and D
    4 B to 100 B; extrapolated beyond, and capped at 8e-3, which is ours. Chosen over laws in N · D
    alone, such as DeepSeek LLM's, since small runs want it: on the quickstart's corpus, of a third,
    one and three times 0.3118 · C^-0.125 at this batch, layers of 0.1 M weights did best at 8.5e-3,
    of 0.5 M at 2.4e-3, of 2 M at 1.5e-3. It holds at `batch_positions`; smaller updates take the
    square root of their share: the square root scaling rule of Malladi et al. 2022 (arXiv
    2205.10287), of which we take the learning rate's part alone and leave Adam's betas. That larger
    ones keep the rate is ours.
    """
    law = STEP_LAW_SHARE * 1.79 * weights**-0.713 * positions**0.307
    return float(
        f"{min(MAX_LEARNING_RATE, law * min(1.0, size / batch_positions(positions)) ** 0.5):.3g}"
    )


def batch_positions(positions: float) -> float:
    """Positions an update, with `learning_rate`: Step Law's 0.58 · D^0.571 (arXiv 2503.04715).

    The medians of its published fits are 0.573 and 0.571.
    """
    return 0.58 * positions**0.571


def warmup_updates(steps: int) -> int:
    """Updates of linear rise: a twentieth of all, at most 2,000."""
    return min(MAX_WARMUP, max(1, steps // 20))


def nearest_rung(params: float) -> str:
    """The rung whose size is nearest, by ratio."""
    return min(RUNGS, key=lambda name: abs(math.log(RUNGS[name] / params)))


def _model_of_width(d: int, params: float, v: int) -> Model:
    """The model of width `d` whose layers have about `params` weights."""
    h = 32 if d < 256 else 64 if d < 1024 else 128
    n = d // h
    k = min((x for x in range(1, n + 1) if n % x == 0), key=lambda x: (abs(x - n / 4), -x))
    grain = 64 if d < 1024 else 128
    f = grain * round(8 / 3 * d / grain)
    one = Model(d=d, n=n, k=k, h=h, f=f, l=1, v=v, speech="bidirectional")
    return dataclasses.replace(
        one, l=max(1, round((params - d) / (flops.stack_parameters(one) - d)))
    )


def _mismatch(shape: Model, params: float) -> float:
    """How far a model is from the size and depth that it should have, in logs of ratios."""
    depth = 8 * (shape.d / 512) ** 0.7
    return abs(math.log(flops.stack_parameters(shape) / params)) + abs(math.log(shape.l / depth))
