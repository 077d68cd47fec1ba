"""The section of one split on the page: figures, warnings, and cards of charts and tables."""

from collections.abc import Sequence
import dataclasses

from markupsafe import Markup

from launch.charts.bar_chart import bands, histogram
from launch.charts.distribution import Distribution
from launch.charts.html import Card, faint, render, table
from launch.corpus_report.audio_statistics import AudioInspection
from launch.corpus_report.characters import HIDDEN, Letter, code_point
from launch.corpus_report.split_statistics import FAR, Outlier, SpeechShare, SplitInspection
from launch.terminal.number_format import format_hours, format_number

LETTERS = 120  # characters shown; beyond, as many of the most frequent as of the rarest
DIFFERENT = 12  # languages or sources shown
ODD = 4  # odd characters of a kind that are named


@dataclasses.dataclass(frozen=True)
class SplitSection:
    """What the page shows of a split."""

    figures: list[tuple[str, str]]  # each over what it counts
    warnings: list[str]  # what a reader should not miss
    cards: list[Card]


def section(facts: SplitInspection, heard: AudioInspection) -> SplitSection:
    """The section of a split of which `facts` and `heard` are known."""
    read = sample_note(facts.read, facts.utterances)
    counted = read if not facts.exact else sample_note(facts.utterances, facts.utterances)
    listened = sample_note(heard.of, facts.utterances)
    cards = [
        Card(
            "Length", _bars(facts.seconds, "seconds"), f"{_figures(facts.seconds, ' s')}{counted}"
        ),
        Card(
            "Characters a second",
            _bars(facts.rate, "characters a second"),
            f"{_figures(facts.rate, '')}{counted}",
        ),
        Card(
            "Loudness",
            _bars(heard.loudness, "dBFS, root mean square", "Ready mel has no loudness."),
            f"{_figures(heard.loudness, ' dBFS')}{listened}",
        ),
        Card("Mel by band", _mel(heard), f"Mean ± one standard deviation; {heard.mel}; {listened}"),
        Card("Speakers with most hours", _shares(facts.largest, "speaker"), read),
        Card("Texts that come again", _repeated(facts), f"{_different(facts)}; {read}"),
        *(
            Card(title, _shares(parts[:DIFFERENT], kind), _more(len(parts), DIFFERENT))
            for title, kind, parts in (
                ("Languages", "language", facts.languages),
                ("Sources", "source", facts.sources),
            )
            if parts
        ),
        Card("Far from the usual speed", _outliers(facts), read, wide=True),
        Card("Characters", _letters(facts.letters), f"{_odd(facts.letters)}; {read}", wide=True),
    ]
    return SplitSection(_tiles(facts), _warnings(facts, heard), cards)


def sample_note(count: int, utterances: int) -> str:
    """Says of how many utterances a figure is."""
    if count == utterances:
        return f"all {format_number(count)} utterances"
    return f"a sample of {format_number(count)} of {format_number(utterances)} utterances"


def _tiles(facts: SplitInspection) -> list[tuple[str, str]]:
    about = "" if facts.exact else "≈ "
    at_least = "" if facts.all_speakers else "at least "
    return [
        (format_number(facts.utterances), "utterances"),
        (about + format_hours(facts.hours), "of speech"),
        (about + format_number(facts.characters), "characters"),
        (at_least + format_number(facts.speakers), "speakers"),
        (format_number(len(facts.letters)), "different characters"),
    ]


def _warnings(facts: SplitInspection, heard: AudioInspection) -> list[str]:
    """Lines on what a reader should not miss."""
    lines = []
    if facts.unreadable:
        count, first = len(facts.unreadable), facts.unreadable[0]
        lines.append(f"cannot be read: {format_number(count)} of those drawn; the first: {first}")
    if facts.untimed:
        lines.append(f"of no duration, so that the hours lack them: {format_number(facts.untimed)}")
    if facts.unnamed:
        lines.append(
            f"of no named speaker: {format_number(facts.unnamed)} of {format_number(facts.read)}"
        )
    for reason, count in heard.troubles:
        lines.append(f"{reason}: {count} of {heard.of} whose sound was tried")
    lines.extend(heard.first)
    if heard.clipped:
        lines.append(f"reaches full scale: {heard.clipped} of {heard.of} whose sound was tried")
    return lines


def _bars(numbers: Distribution | None, unit: str, empty: str = "Nothing to count.") -> Markup:
    return histogram(numbers, unit) if numbers else faint(empty)


def _figures(numbers: Distribution | None, unit: str) -> str:
    if numbers is None:
        return ""
    figures = {
        "median": numbers.median,
        "mean": numbers.mean,
        "95 % up to": numbers.p95,
        "from": numbers.low,
        "to": numbers.high,
    }
    return ", ".join(f"{name} {format_number(x)}{unit}" for name, x in figures.items()) + "; "


def _mel(heard: AudioInspection) -> Markup:
    if not heard.mean:
        return faint("No sound could be used.")
    return bands(heard.mean, heard.deviation, "mel band")


def _shares(parts: Sequence[SpeechShare], kind: str) -> Markup:
    if not parts:
        return faint(f"No utterance names its {kind}.")
    rows = [(part.name, part.count, format_hours(part.hours)) for part in parts]
    return table((kind, "utterances", "time"), rows)


def _more(count: int, most: int) -> str:
    return f" and {format_number(count - most)} more" if count > most else ""


def _different(facts: SplitInspection) -> str:
    return f"{format_number(facts.texts)} different texts"


def _repeated(facts: SplitInspection) -> Markup:
    if not facts.repeated:
        return faint("No text comes twice.")
    return table(("text", "times"), facts.repeated)


def _outliers(facts: SplitInspection) -> Markup:
    if not facts.outliers:
        return faint("No utterance is far from the others.")

    def row(kind: str, one: Outlier) -> tuple[str | float, ...]:
        return (kind, one.id[:48], one.rate, one.seconds, one.text)

    rows = [row("fast", one) for one in facts.fastest] + [row("slow", x) for x in facts.slowest]
    note = (
        f"{FAR:g} quartile ranges beyond a quartile, or further: {format_number(facts.outliers)}."
    )
    heads = ("", "id", "characters/s", "seconds", "text")
    return faint(note) + table(heads, rows)


def _odd(letters: Sequence[Letter]) -> str:
    """Names the odd characters, the most frequent of each kind."""
    kinds: dict[str, list[str]] = {}
    for letter in letters:
        if letter.odd:
            kinds.setdefault(letter.odd, []).append(code_point(letter.character))
    lines = [
        f"{why}: {', '.join(names[:ODD])}{_more(len(names), ODD)}" for why, names in kinds.items()
    ]
    return "; ".join(lines) if lines else "none looks odd"


def _letters(letters: Sequence[Letter]) -> Markup:
    """A grid of characters, the most frequent first; odd ones are marked and never left out."""
    shown = letters
    if len(letters) > LETTERS:
        half = LETTERS // 2
        shown = [*letters[:half], *(x for x in letters[half:-half] if x.odd), *letters[-half:]]
    left_out = len(letters) - len(shown)
    return render(
        "corpus_report/letters.html",
        letters=[_letter(letter) for letter in shown],
        left_out=format_number(left_out) if left_out else "",
    )


def _letter(letter: Letter) -> dict[str, str]:
    """The values that letters.html shows of a character."""
    name = code_point(letter.character)
    hidden = letter.odd in HIDDEN
    return {
        "odd": letter.odd,
        "title": f"{name}: {letter.odd}" if letter.odd else name,
        "glyph": "␣" if letter.character == " " else "" if hidden else letter.character,
        "code": name.split()[0],
        "count": format_number(letter.count),
    }
