"""A comparison as a table, for a terminal and in Markdown."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from launch.terminal.number_format import format_bytes, format_count

NONE = "–"
_NAMES = {"exact_match": "exact match", "wer": "WER", "mae": "mean abs. error", "choice": "right"}


@dataclasses.dataclass(frozen=True)
class ComparisonTable:
    """Columns and a row of texts for each system."""

    heads: list[str]
    rows: list[list[str]]


def comparison_table(rows: Sequence[Mapping[str, Any]], batches: Sequence[int]) -> ComparisonTable:
    """The table of the rows of a `Comparison`; what no row has, has no column."""
    first = rows[0]["name"]
    columns: dict[str, list[str]] = {
        "system": [row["name"] for row in rows],
        "WER": [_wer(row) for row in rows],
        "95 %": [_interval(row.get("wer", {}).get("interval")) for row in rows],
        "errors/words": [_errors(row) for row in rows],
        f"WER less {first}'s": [_difference(row) for row in rows],
        "below 0": [_below(row) for row in rows],
    }
    for subject, task, metric in _metrics(rows):
        figures = [row.get("tasks", {}).get(subject, {}).get(task, {}).get(metric) for row in rows]
        columns[f"{task}: {_NAMES.get(metric, metric)}"] = [_score(metric, x) for x in figures]
    for subject, said in (("speech", "RTFx"), ("questions", "RTFx, questions")):
        for batch in batches:
            columns[f"{said}, batch {batch}"] = [_rtfx(row, subject, batch) for row in rows]
    for batch in batches:
        columns[f"peak, batch {batch}"] = [_peak(row, batch) for row in rows]
    for head, name in (("updates", "step"), ("parameters", "parameters"), ("trained", "trained")):
        counts = [row.get(name) for row in rows]
        text = format_count if name != "step" else "{:,}".format
        columns[head] = [NONE if x is None else str(text(x)) for x in counts]
    kept = {head: texts for head, texts in columns.items() if {*texts} != {NONE}}
    return ComparisonTable([*kept], [list(texts) for texts in zip(*kept.values(), strict=True)])


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the figures of a table are, a sentence each, then what failed."""
    measured = [
        speed
        for row in rows
        for batches in row.get("measured", {}).values()
        for speed in batches.values()
    ]
    said = []
    if scores := [row["wer"] for row in rows if "interval" in row.get("wer", {})]:
        drawn = scores[0]["interval"]
        said.append(
            f"WER by {scores[0]['normalizer']} and {scores[0]['scorer']}; intervals of "
            f"{drawn['level']:.0%} and the share of differences below 0 by {drawn['resamples']:,} "
            "resamples of utterances."
        )
    if measured:
        shapes = sorted({f"{x['dtype']} on {x['devices']} {x['chip']}" for x in measured})
        peaks = {"device": "a device's allocations", "process": "the process's resident set"}
        held = " or ".join(sorted({peaks[x["peak_of"]] for x in measured}))
        said.append(
            f"RTFx is seconds of sound a second of work, without compiling ({', '.join(shapes)}); "
            f"peak is the most of {held}, each measured in a process of its own."
        )
    said += [f"{row['name']}: {error}" for row in rows for error in row.get("errors", [])]
    return said


def markdown(table: ComparisonTable, title: str, notes: Sequence[str]) -> str:
    """The table as a page of Markdown."""
    line = lambda texts: "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
    ruler = ["---", *["---:"] * (len(table.heads) - 1)]
    lines = [f"# {title}", "", line(table.heads), line(ruler), *map(line, table.rows), ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Every (subject, task, metric) of the rows, in order."""
    found = {
        (subject, task, metric)
        for row in rows
        for subject, tasks in row.get("tasks", {}).items()
        for task, metrics in tasks.items()
        for metric in metrics
    }
    return sorted(found)


def _wer(row: Mapping[str, Any]) -> str:
    return f"{row['wer']['wer']:.2%}" if "wer" in row else NONE


def _errors(row: Mapping[str, Any]) -> str:
    return f"{row['wer']['errors']:,}/{row['wer']['words']:,}" if "wer" in row else NONE


def _interval(drawn: Mapping[str, Any] | None) -> str:
    return NONE if drawn is None else f"{100 * drawn['low']:.2f} to {100 * drawn['high']:.2f}"


def _difference(row: Mapping[str, Any]) -> str:
    drawn = row.get("against_first")
    if drawn is None:
        return NONE
    return f"{100 * drawn['difference']:+.2f} ({_interval(drawn)})".replace("-", "−")


def _below(row: Mapping[str, Any]) -> str:
    return f"{row['against_first']['below']:.1%}" if "against_first" in row else NONE


def _score(metric: str, figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return NONE
    if metric == "mae":
        return NONE if figures["mae"] is None else f"{figures['mae']:.2f}"
    if metric == "wer":
        return f"{figures['wer']:.2%}"
    share = figures["accuracy" if metric == "choice" else metric]
    return f"{share:.1%} ({figures['hits']}/{figures['utterances']})"


def _rtfx(row: Mapping[str, Any], subject: str, batch: int) -> str:
    speed = row.get("measured", {}).get(subject, {}).get(str(batch))
    return NONE if speed is None else f"{speed['rtfx']:.3g}"


def _peak(row: Mapping[str, Any], batch: int) -> str:
    found = [
        batches[str(batch)]["peak_bytes"]
        for batches in row.get("measured", {}).values()
        if str(batch) in batches
    ]
    return format_bytes(max(found)) if found else NONE
