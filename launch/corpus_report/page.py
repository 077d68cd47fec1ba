"""The page of `melllm data inspect`: one file of HTML without a script."""

from collections import Counter
from collections.abc import Mapping
import dataclasses

from data_pipelines.corpora.shard_index import MelStatistics
from launch.charts.bar_chart import bands
from launch.charts.html import Card, faint, render, table
from launch.corpus_report.audio_statistics import AudioInspection, PageExample
from launch.corpus_report.rejects import RejectCount
from launch.corpus_report.split_section import section
from launch.corpus_report.split_statistics import SplitInspection
from launch.terminal.number_format import format_hours, format_number

MANIFESTS = "manifests"


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that was found in the folder of a corpus."""

    folder: str
    stores: str  # MANIFESTS, or as an index has it: flac, opus, original, mel
    seed: int  # of the samples
    facts: Mapping[str, SplitInspection]  # by split
    heard: Mapping[str, AudioInspection]  # by split
    rejects: tuple[RejectCount, ...]
    statistics: MelStatistics | None = None  # of mel, over all, where the index has them
    loudness: Mapping[str, Mapping[str, float]] = dataclasses.field(
        default_factory=dict
    )  # by source, dBFS, where the index has it


def page(found: Inspection, most: int) -> bytes:
    """The page in UTF-8.

    Sound and pictures past `most` bytes in all are left out, and the page says so.
    """
    examples, note = _examples(found, most)
    return render(
        "corpus_report/page.html",
        found=found,
        overview=_overview(found),
        sections={
            split: section(facts, found.heard[split]) for split, facts in found.facts.items()
        },
        index_cards=_index_cards(found),
        rejects=_rejects(found),
        examples=examples,
        examples_note=note,
    ).encode()


def _overview(found: Inspection) -> Card:
    rejected: Counter[str] = Counter()
    for kind in found.rejects:
        rejected[kind.split] += kind.count
    rows = [
        (
            facts.split,
            facts.utterances,
            format_hours(facts.hours),
            facts.seconds.mean if facts.seconds else None,
            facts.characters,
            facts.speakers or None,
            None if found.stores == MANIFESTS else rejected[split],
        )
        for split, facts in found.facts.items()
    ]
    heads = ("split", "utterances", "time", "mean s", "characters", "speakers", "rejects")
    unsure = [split for split, facts in found.facts.items() if not facts.exact]
    note = f"Estimates from a sample: hours and characters of {', '.join(unsure)}."
    return Card("Splits", table(heads, rows), note if unsure else "")


def _index_cards(found: Inspection) -> list[Card]:
    """Cards of what preparing measured over all of the corpus, where an index has it."""
    cards = []
    if stated := found.statistics:
        deviation = [1 / invstd for invstd in stated.invstd]
        note = f"{stated.kind}, {stated.m} bands; mean ± one standard deviation, all frames"
        cards.append(Card("Mel by band", bands(stated.mean, deviation, "mel band"), note))
    if found.loudness:
        names = list(next(iter(found.loudness.values())))
        rows = [
            (source or None, *(levels[name] for name in names))
            for source, levels in sorted(found.loudness.items())
        ]
        content = table(("source", *names), rows)
        cards.append(Card("Loudness by source", content, "dBFS, all utterances"))
    return cards


def _rejects(found: Inspection) -> Card:
    if not found.rejects:
        unchecked = found.stores == MANIFESTS
        why = "Nothing is checked yet: `melllm prepare` does it." if unchecked else "Nothing."
        return Card("Left out by preparing", faint(why))
    rows = [
        (
            kind.reason,
            kind.split,
            kind.source or None,
            kind.count,
            tuple(one.detail for one in kind.first),
        )
        for kind in found.rejects
    ]
    total = sum(kind.count for kind in found.rejects)
    seen = total + sum(facts.utterances for facts in found.facts.values())
    note = f"{format_number(total)} of {format_number(seen)} utterances, {total / seen:.2%}"
    heads = ("reason", "split", "source", "utterances", "the first of them")
    return Card("Left out by preparing", table(heads, rows), note)


def _examples(found: Inspection, most: int) -> tuple[list[PageExample], str]:
    """The examples, of which sound and pictures take at most `most` bytes, and a note on them."""
    examples = [one for heard in found.heard.values() for one in heard.examples]
    room, left_out, shown = most, 0, []
    for one in examples:
        size = sum(4 * len(part) // 3 for part in (one.audio, one.picture) if part)
        if size > room:
            left_out += 1
            one = dataclasses.replace(one, audio=None, picture=None, trouble=_TOO_LARGE)
        else:
            room -= size
        shown.append(one)
    note = f"{len(examples)} utterances drawn at random."
    if left_out:
        note += f" {left_out} are without sound and picture, which would take more than "
        note += f"{format_number(most / 1e6)} MB."
    return shown, note


_TOO_LARGE = "Left out: the page would become too large."
