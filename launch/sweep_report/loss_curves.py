"""Loss curves of a sweep's runs, read from their metrics and thinned for a page.

Points stand at equal distances of log step, each for the mean of the lines around it.
"""

from collections.abc import Sequence
from concurrent import futures
import statistics

from etils import epath

from launch.sweep.ledger import Cell
from melllm_jax.json_text import parse_json

Curve = tuple[tuple[int, float], ...]  # update, loss

TOTAL = 24_000  # points of all curves together: some 300 kB of a page for each chart of them
LEAST, MOST = 24, 120  # points of a curve
MOST = 1 << 53  # nats or updates: a line that tells of more is damaged
READ = 12  # lines that a point is the mean of, where there are many: from 12 to 23


def read_curves(folder: epath.Path, cells: Sequence[Cell]) -> dict[str, Curve]:
    """The curve of each cell that has begun to train, by id."""
    begun = [cell for cell in cells if cell.attempt]
    points = max(LEAST, min(MOST, TOTAL // max(len(begun), 1)))
    path = lambda cell: folder / "runs" / cell.id / "metrics.jsonl"
    with futures.ThreadPoolExecutor(8) as pool:  # in a bucket each is a request
        found = pool.map(lambda cell: read_curve(path(cell), points), begun)
        return {cell.id: one for cell, one in zip(begun, found, strict=True) if one}


def read_curve(path: epath.Path, points: int) -> Curve:
    """At most `points` points; none of a run that has logged no finite loss yet."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # not begun, or being written now
        return ()
    edges = sorted({round(len(lines) ** (i / points)) for i in range(1, points + 1)})
    bins = [lines[a:b] for a, b in zip([0, *edges], edges, strict=False)]
    return tuple(point for part in bins if (point := _mean(part)))


def _mean(lines: Sequence[str]) -> tuple[int, float] | None:
    """The last update among `lines`, and their mean loss; a line that is cut off is left out."""
    found = []
    for line in lines[:: max(1, len(lines) // READ)]:
        try:
            metrics = parse_json(line)
            step, loss = int(metrics["step"]), float(metrics["loss"])
        except (ValueError, TypeError, KeyError, OverflowError):
            continue
        if 0 < loss < MOST and 0 < step < MOST:
            found.append((step, loss))
    if not found:
        return None
    return found[-1][0], statistics.fmean(loss for _, loss in found)
