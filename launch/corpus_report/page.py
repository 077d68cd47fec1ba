"""The page of `melllm data inspect`: one file of HTML, opened from disk, without a script."""

import base64
from collections import Counter
from collections.abc import Mapping
import dataclasses
import html

from data_pipelines.corpora.shard_index import MelStatistics
from launch.charts.bar_chart import bands
from launch.charts.html import card, document, table, text_html
from launch.corpus_report.audio_statistics import AudioInspection, PageExample
from launch.corpus_report.rejects import RejectCount
from launch.corpus_report.split_section import section
from launch.corpus_report.split_statistics import SplitInspection
from launch.terminal.number_format import format_hours, format_number

MANIFESTS = "manifests"


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that was found in a folder."""

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
    """The page. Sound and pictures past `most` bytes in all are left out, and it says so."""
    splits = [
        f'<h2 id="split{place}">{text_html(split)}</h2>{section(facts, found.heard[split])}'
        for place, (split, facts) in enumerate(found.facts.items())
    ]
    links = [f'<a href="#split{i}">{text_html(split)}</a>' for i, split in enumerate(found.facts)]
    return document(
        f"{found.folder}: what is in it",
        [
            f"<h1>{text_html(found.folder)}</h1>",
            f'<p class="faint">{html.escape(found.stores)} · samples drawn with seed {found.seed}'
            " · by melllm data inspect</p>",
            f'<nav>{"".join(links)}<a href="#rejects">rejects</a>'
            '<a href="#examples">examples</a></nav>',
            f"<h2>Overview</h2>{_overview(found)}",
            *splits,
            _from_index(found),
            f'<h2 id="rejects">Rejects</h2>{_rejects(found)}',
            f'<h2 id="examples">Examples</h2>{_examples(found, most)}',
        ],
    )


def _overview(found: Inspection) -> str:
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
    return card("Splits", table(heads, rows), note if unsure else "")


def _from_index(found: Inspection) -> str:
    """What preparing measured over all of the corpus."""
    cards = []
    if stated := found.statistics:
        deviation = [1 / invstd for invstd in stated.invstd]
        note = f"{stated.kind}, {stated.m} bands; mean ± one standard deviation, all frames"
        cards.append(card("Mel by band", bands(stated.mean, deviation, "mel band"), note))
    if found.loudness:
        names = list(next(iter(found.loudness.values())))
        rows = [
            (source or None, *(levels[name] for name in names))
            for source, levels in sorted(found.loudness.items())
        ]
        content = table(("source", *names), rows)
        cards.append(card("Loudness by source", content, "dBFS, all utterances"))
    if not cards:
        return ""
    return f'<h2>From the index</h2><div class="cards">{"".join(cards)}</div>'


def _rejects(found: Inspection) -> str:
    if not found.rejects:
        unchecked = found.stores == MANIFESTS
        why = "Nothing is checked yet: `melllm prepare` does it." if unchecked else "Nothing."
        return card("Left out by preparing", f'<p class="faint">{why}</p>')
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
    return card("Left out by preparing", table(heads, rows), note)


def _examples(found: Inspection, most: int) -> str:
    examples = [one for heard in found.heard.values() for one in heard.examples]
    room, left_out, cards = most, 0, []
    for one in examples:
        size = sum(4 * len(part) // 3 for part in (one.audio, one.picture) if part)
        if size > room:
            left_out += 1
            one = dataclasses.replace(one, audio=None, picture=None, trouble=_TOO_LARGE)
        else:
            room -= size
        cards.append(_example(one))
    note = f"{len(examples)} utterances drawn at random."
    if left_out:
        note += f" {left_out} are without sound and picture, which would take more than "
        note += f"{format_number(most / 1e6)} MB."
    return f'<p class="faint">{note}</p><div class="cards">{"".join(cards)}</div>'


_TOO_LARGE = "Left out: the page would become too large."


def _example(one: PageExample) -> str:
    about = [one.speaker, one.language, one.source, f"{one.seconds:.2f} s", one.split]
    parts = [f"<p>{text_html(one.text)}</p>"]
    if one.picture:
        parts.append(f'<img alt="mel of the sound" src="{_inline("image/png", one.picture)}">')
    if one.audio:
        source = _inline("audio/flac", one.audio)
        parts.append(f'<audio controls preload="metadata" src="{source}"></audio>')
    elif not one.trouble:
        parts.append('<p class="note">Ready mel: there is no sound to play.</p>')
    if one.trouble:
        parts.append(f'<p class="note odd">{text_html(one.trouble)}</p>')
    said = " · ".join(text_html(word) for word in about if word)
    parts.append(f'<div class="note">{text_html(one.id)} · {said}</div>')
    return f'<section class="card example">{"".join(parts)}</section>'


def _inline(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
