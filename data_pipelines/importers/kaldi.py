"""Kaldi's data folders: wav.scp and text; segments, utt2spk, utt2dur and others where they are.

A folder is a split of its name; SOURCE is one, or holds several. The files are read side by side,
in the order of ids that Kaldi itself demands, so that none is held in memory but wav.scp beside
segments. Of pipes in wav.scp those are taken that only unpack one file, whole:
`flac -c -d -s FILE |`, `sph2pipe -f wav FILE |`, `sox FILE -t wav - |`, `cat FILE |`. The others
are utt2lang and reco2file_and_channel, whose channel alone is read: A, B… or 1, 2….
"""

from collections.abc import Callable, Iterator
import os
import re
import shlex

from etils import epath

from data_pipelines.corpora.manifest import locate_audio
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    find_audio_folder,
    make_row,
    parse_seconds,
    read_lines,
    select_splits,
)
from melllm_jax import files
from melllm_jax.errors import Mistake

_BLANK = re.compile(r"[ \t]+")
_ARCHIVE = re.compile(r"\.ark(:\d+)?$")
_CHANNEL = re.compile(r"[A-Z]|[1-9][0-9]?")
# Options that leave the sound as it is, with a value and without: what picks a channel or a stretch
# is not among them, nor an effect. A new rate, width or number of channels makes no difference.
_VALUED = {"flac": (), "sph2pipe": ("-f",), "sox": ("-t", "-r", "-b", "-e", "-c"), "cat": ()}
_BARE = {
    "flac": ("-c", "-d", "-s", "-cd", "-cds", "-dcs"),
    "sph2pipe": ("-p",),
    "sox": ("-G", "-V0", "-V1", "-D", "-R", "-q"),
    "cat": (),
}


def read_splits(source: epath.Path, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every data folder."""
    if (source / "wav.scp").exists():
        folders = {source.name: source}
    else:
        held = (path for path in files.list_folder(source) if (path / "wav.scp").exists())
        folders = {path.name: path for path in held}
    if not folders:
        raise Mistake(f"source={source}: has no wav.scp, neither has a folder in it")
    return {name: _rows(folders[name], options) for name in select_splits(folders, options, source)}


def _rows(folder: epath.Path, options: ImportOptions) -> Iterator[ManifestRow]:
    texts, speakers = _Column(folder / "text"), _Column(folder / "utt2spk", optional=True)
    timed = (folder / "segments").exists() or (folder / "utt2dur").exists()
    seconds = _Column(folder / ("utt2dur" if timed else "reco2dur"), optional=True)
    languages = _Column(folder / "utt2lang", optional=True)
    for name, location, channel, offset, length, where in _utterances(folder, options):
        duration = seconds.value(name)
        if length is None and duration is not None:
            length = parse_seconds(duration, "duration", where)
        yield make_row(
            name,
            texts.value(name) or "",
            location,
            where=where,
            seconds=length,
            offset=offset,
            channel=channel,
            speaker=speakers.value(name) or "",
            language=languages.value(name) or "",
        )
    for column in (texts, speakers, seconds, languages):
        column.check_empty()


Location = epath.Path | AudioReference
KaldiUtterance = tuple[str, Location, int | None, float | None, float | None, str]


def _utterances(folder: epath.Path, options: ImportOptions) -> Iterator[KaldiUtterance]:
    """Id, file, channel, offset, seconds and line of every utterance."""
    scp, segments = _Paths(folder, options), folder / "segments"
    channels = _read_channels(folder / "reco2file_and_channel")
    if not segments.exists():
        for name, rest, where in _sorted_lines(folder / "wav.scp"):
            yield name, scp.path(rest, where), channels(name, where), None, None, where
        return
    recordings = {
        name: (rest, f"{folder / 'wav.scp'}:{count}")
        for count, line in read_lines(folder / "wav.scp")
        for name, rest in [_split_pair(line)]
    }
    for name, rest, where in _sorted_lines(segments):
        parts = rest.split()
        if len(parts) != 3:
            raise Mistake(f"{where}: must be UTTERANCE RECORDING START END")
        if parts[0] not in recordings:
            raise Mistake(f"{where}: wav.scp has no recording {parts[0]}")
        location = scp.path(*recordings[parts[0]])
        channel = channels(parts[0], where)
        start = parse_seconds(parts[1], "start", where) or 0.0
        if parts[2] in ("-1", "-1.0"):  # up to where the recording ends
            yield name, location, channel, start, None, where
            continue
        end = parse_seconds(parts[2], "end", where) or 0.0
        if end <= start:
            raise Mistake(f"{where}: end={end}: must lie after start={start}")
        yield name, location, channel, start, end - start, where


def _read_channels(path: epath.Path) -> Callable[[str, str], int | None]:
    """A function from recording and line to the channel, from 0; None without such a file."""
    if not path.exists():
        return lambda recording, where: None
    found: dict[str, int] = {}
    for count, line in read_lines(path):
        name, rest = _split_pair(line)
        label = rest.rpartition(" ")[2].rpartition("\t")[2]
        if not _CHANNEL.fullmatch(label):
            rule = "must be A, B… or 1, 2…; without this file all channels are averaged"
            raise Mistake(f"{path}:{count}: channel {label!r}: {rule}")
        found[name] = int(label) - 1 if label.isdigit() else ord(label) - ord("A")

    def channel(recording: str, where: str) -> int:
        if recording not in found:
            raise Mistake(f"{where}: {path.name} has no recording {recording}")
        return found[recording]

    return channel


class _Paths:
    """Files as wav.scp names them; relative ones start where the first of them is found."""

    def __init__(self, folder: epath.Path, options: ImportOptions) -> None:
        # Recipes keep data/train and run beside data; others ship train beside its audio.
        self._tried = [folder, folder.parent, folder.parent.parent, epath.Path().absolute()]
        self._options = options
        self._base: epath.Path | None = None

    def path(self, rest: str, where: str) -> Location:
        name = _parse_pipe(rest, where) if rest.endswith("|") else rest
        if _ARCHIVE.search(name):
            raise Mistake(f"{where}: {name}: is an archive: write its sounds as files first")
        if "://" in name or name.startswith("/"):
            return locate_audio(name, self._tried[0])
        if self._base is None:
            self._base = find_audio_folder(self._tried, name, self._options, where)
        return self._base / name


class _Column:
    """The values of a file by id, to be requested in rising order of ids."""

    def __init__(self, path: epath.Path, *, optional: bool = False) -> None:
        rows = iter(()) if optional and not path.exists() else _sorted_lines(path)
        self._rows: Iterator[tuple[str, str, str]] = rows
        self._next = next(self._rows, None)

    def value(self, name: str) -> str | None:
        """The value of an id, or None. Raises Mistake for a line whose id was passed over."""
        if self._next is None or self._next[0] > name:
            return None
        key, value, where = self._next
        if key < name:
            raise Mistake(f"{where}: {key} is no utterance of segments or wav.scp")
        self._next = next(self._rows, None)
        return value

    def check_empty(self) -> None:
        """Raises Mistake where a line was never requested."""
        if self._next is not None:
            raise Mistake(
                f"{self._next[2]}: {self._next[0]} is no utterance of segments or wav.scp"
            )


def _sorted_lines(path: epath.Path) -> Iterator[tuple[str, str, str]]:
    """Id, rest, and file and line of every line. Raises Mistake where the ids do not rise."""
    last, before = "", ""
    file = os.fspath(path)  # once: epath takes 7 us for it
    for count, line in read_lines(path):
        name, rest = _split_pair(line)
        where = f"{file}:{count}"
        if name == last:
            raise Mistake(f"{where}: id {name} stands already at {before}")
        if name < last:
            raise Mistake(f"{where}: {name} follows {last}: sort the file (LC_ALL=C sort)")
        yield name, rest, where
        last, before = name, where


def _split_pair(line: str) -> tuple[str, str]:
    name, *rest = _BLANK.split(line.strip(), maxsplit=1)
    return name, rest[0] if rest else ""


def _parse_pipe(command: str, where: str) -> str:
    """The one file that a pipe unpacks whole. Raises Mistake for a pipe that does more."""
    rule = "only flac -c -d -s FILE |, sph2pipe -f wav FILE |, sox FILE -t wav - | and cat FILE |"
    refused = Mistake(f"{where}: {command}: a pipe that is not understood: {rule}")
    try:
        tool, *words = shlex.split(command.removesuffix("|"))
    except ValueError as error:
        raise refused from error
    tool = tool.rpartition("/")[2]
    if tool not in _VALUED or "|" in words:
        raise refused
    named, words = [], words[::-1]
    while words:
        word = words.pop()
        if word == "-" and tool == "sox" and not words:
            break  # the output; what would follow it are effects
        if word in _VALUED[tool] and words:
            words.pop()
        elif word in _BARE[tool]:
            continue
        else:
            named.append(word)
    if len(named) != 1 or named[0].startswith("-"):
        raise refused
    return named[0]
