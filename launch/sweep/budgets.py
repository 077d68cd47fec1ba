"""Sets how long cells train by a budget of tokens, FLOPs or hours of sound; grids of budgets.

Tokens are positions that are not padding, of speech and text alike. Two shares of a row's
positions describe what a row holds: `fill`, of positions that are not padding, and `speech`, of
those that hold speech. Each corpus and row length has its own; `melllm train` prints neither, but
`speech_positions`, `text_positions` and `steps` of a cell's final.json give both. The fields that a
budget reads of a cell (b, t, r, the model) must be in the cell or its preset, not on the command
line.
"""

from collections.abc import Iterable, Sequence
import dataclasses

from launch.sweep import spec
from launch.sweep.spec import Cell
from melllm_jax import flops as counted
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.errors import Mistake
from melllm_jax.presets import ladder


@dataclasses.dataclass(frozen=True)
class RowShares:
    """Shares of a row's positions."""

    speech: float  # that hold speech; 0 of text alone
    fill: float  # that are not padding

    def __post_init__(self) -> None:
        if not 0 <= self.speech <= self.fill <= 1 or not self.fill:
            raise Mistake(
                f"speech={self.speech}, fill={self.fill}: must be 0 ≤ speech ≤ fill ≤ 1, fill > 0"
            )


def sizes(counts: Iterable[float]) -> list[Cell]:
    """A cell for each number of weights in the layers, at or between the ladder's rungs.

    It starts from the nearest rung and takes `ladder.model`'s shape for that number.
    """
    cells = []
    for count in counts:
        name = ladder.nearest_rung(count)
        shape = ladder.model_of_size(count, ladder.BYTE_VOCABULARY)
        fields = {f"model.{letter}": getattr(shape, letter) for letter in "dnkhfl"}
        cells.append({"preset": name, **fields})
    return cells


def tokens(cell: Cell, count: float, rows: RowShares) -> Cell:
    """`cell` for as many updates as `count` positions take."""
    data = spec.run(cell, {}).data
    return _with_updates(cell, count / (data.b * data.t * rows.fill))


def flops(cell: Cell, count: float, rows: RowShares) -> Cell:
    """`cell` for as many updates as `count` FLOPs pay for, as `flops.training_flops` counts."""
    run = _decoder_run(cell)
    positions = run.data.b * run.data.t
    speech, text = positions * rows.speech, positions * (rows.fill - rows.speech)
    return _with_updates(cell, count / counted.training_flops(run, speech, text))


def hours(cell: Cell, count: float, rows: RowShares) -> Cell:
    """`cell` for as many updates as `count` hours of sound take, epochs together.

    Raises Mistake for rows without speech.
    """
    if not rows.speech:
        raise Mistake("speech=0: rows of text alone hold no hours: give tokens or FLOPs")
    return _with_updates(cell, count / hours_per_update(spec.run(cell, {}), rows))


def hours_per_update(run: BaseRun, rows: RowShares) -> float:
    """Hours of sound an update."""
    return run.data.b * run.data.t * rows.speech * run.mel.r * run.mel.hop_seconds / 3600


def isoflop(cells: Sequence[Cell], budgets: Sequence[float], rows: RowShares) -> list[Cell]:
    """Each cell at each budget of FLOPs: the parabolas of Hoffmann et al. 2022's approach 2."""
    return [flops(cell, budget, rows) for budget in budgets for cell in cells]


def chinchilla(cells: Sequence[Cell], ratios: Sequence[float], rows: RowShares) -> list[Cell]:
    """Each cell at each ratio of tokens to weights that multiply.

    20 is the best of Hoffmann et al. 2022, arXiv 2203.15556, approach 1 (table 3).
    """
    size = lambda cell: counted.matmul_parameters(_decoder_run(cell))
    return [tokens(cell, ratio * size(cell), rows) for ratio in ratios for cell in cells]


def fixed_data(
    cells: Sequence[Cell], path: str, amounts: Sequence[float], epochs: float, rows: RowShares
) -> list[Cell]:
    """Growing models on the same sound: each cell on each amount of hours, `epochs` times over.

    The hours are a subset of the corpus at `path`, the smaller ones parts of the larger.
    """
    return [
        hours(cell | {"data.sources": [{"path": path, "hours": amount}]}, amount * epochs, rows)
        for amount in amounts
        for cell in cells
    ]


def token_rates(cell: Cell, rates: Sequence[int], text: float) -> list[Cell]:
    """`cell` at each r of `rates`, with the same sound in every update and as many updates.

    A second of sound is 100/r positions, and `text` more of text and ends whatever r is: rows are
    as long as what a row of the cell holds takes at that r, so that text's share of them grows
    with r. Learning rate and batch, counted in utterances, are the cell's. Rows of 1,024 and more
    are multiples of 128, as TPU kernels want them.
    """
    run = spec.run(cell, {})
    second = lambda r: 1 / (r * run.mel.hop_seconds) + text
    grain = 128 if run.data.t >= 1024 else 1
    return [
        cell
        | {"mel.r": r, "data.t": grain * round(run.data.t * second(r) / second(run.mel.r) / grain)}
        for r in rates
    ]


def with_ladder_rate(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the learning rate and warm-up that the ladder's rule gives what they train."""
    return [_with_ladder_rate(cell) for cell in cells]


def _with_ladder_rate(cell: Cell) -> Cell:
    run = _decoder_run(cell)
    positions, steps = float(run.data.b * run.data.t), run.optim.steps
    size = float(counted.stack_parameters(run.model))
    lr = ladder.learning_rate(size, positions * steps, positions)
    return cell | {"optim.lr": lr, "optim.warmup": ladder.warmup_updates(steps)}


def _with_updates(cell: Cell, updates: float) -> Cell:
    """`cell` for so many updates, at least one, its warm-up in proportion."""
    optim = spec.run(cell, {}).optim
    steps = max(1, round(updates))
    warmup = round(optim.warmup * steps / optim.steps)
    return cell | {"optim.steps": steps, "optim.warmup": warmup}


def _decoder_run(cell: Cell) -> Run:
    """The run of a cell. Raises Mistake where it has no decoder."""
    run = spec.run(cell, {})
    if not isinstance(run, Run):
        raise Mistake(f"preset={cell['preset']}: has no decoder to budget for: give optim.steps")
    return run
