import json
import re

from etils import epath
import pytest

from data_pipelines.corpora import manifest
from data_pipelines.corpora.corpus import load_utterance_wave, open_corpus
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable
from melllm_jax.errors import Mistake
from tests.support.paths import FSDD

LINE = {"audio_filepath": "a.flac", "text": "one", "duration": 1.0, "speaker": "s", "id": "i"}


def write_lines(folder, *lines):
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def parsed(row):
    return manifest.parse_line(json.dumps(row).encode(), epath.Path("/corpus"), "here:1")


def test_manifest_line_becomes_an_utterance(tmp_path):
    write_lines(tmp_path, json.dumps(LINE), json.dumps(LINE | {"id": "j", "offset": 2.5}))
    first, second = open_corpus(tmp_path, "train")
    assert first.id == "i"
    assert first.text == "one"
    assert first.duration == 1.0
    assert first.speaker == "s"
    assert first.audio == tmp_path / "a.flac"
    assert (first.offset, second.offset) == (None, 2.5)


def test_manifest_has_its_last_line_without_a_break_and_no_lines_of_blanks(tmp_path):
    lines = ["", json.dumps(LINE), "  \r", "\t", "  " + json.dumps(LINE)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert len(open_corpus(tmp_path, "train")) == 2


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("{oops", "is no JSON"),
        ("[1]", "is no object of fields"),
        ('{"text": "one"}', "lacks audio_filepath: has text"),
        (json.dumps(LINE | {"duration": "1"}), "duration='1': must be a number"),
        (json.dumps(LINE | {"duration": -1.0}), "duration=-1.0: must be seconds from 0"),
        (json.dumps(LINE | {"duration": float("inf")}), "duration=inf: must be seconds from 0"),
        (json.dumps(LINE | {"duration": float("nan")}), "duration=nan: must be seconds from 0"),
        (json.dumps(LINE | {"duration": 10**300}), "…: must be seconds up to 1e+08"),
        (json.dumps(LINE | {"duration": 10**400}), "is no JSON: a whole number of 401 digits"),
        (json.dumps(LINE | {"duration": True}), "duration=True: must be a number"),
        (json.dumps(LINE | {"offset": "x"}), "offset='x': must be seconds from 0"),
        ("[" * 10**6, "is no JSON"),
        (json.dumps(LINE | {"text": None}), "text=None: must be a string"),
        (json.dumps(LINE | {"channel": True}), "channel=True: must be a whole number from 0"),
    ],
)
def test_manifest_line_that_is_wrong_is_an_utterance_with_a_flaw(tmp_path, line, rule):
    write_lines(tmp_path, json.dumps(LINE), "", line)
    good, bad = open_corpus(tmp_path, "train")
    assert not good.flaw
    assert bad.flaw.startswith(f"{tmp_path / 'train.jsonl'}:3: ")
    assert rule in bad.flaw
    assert "\n" not in bad.flaw
    with pytest.raises(Unusable, match=re.escape(bad.flaw)) as caught:
        load_utterance_wave(bad)
    assert caught.value.reason == "malformed row"
    (tmp_path / "train.jsonl").write_text(line)
    with pytest.raises(Mistake, match=r"train.jsonl:1: "):  # none is in order: no manifest
        open_corpus(tmp_path, "train")


def test_manifest_passes_over_lines_of_blanks_and_counts_them(tmp_path):
    write_lines(tmp_path, "\ufeff\r", json.dumps(LINE), " \t\r", f"  {json.dumps(LINE)}\r", "\xa0")
    corpus = open_corpus(tmp_path, "train")
    assert [utterance.id for utterance in corpus] == ["i", "i"]
    write_lines(tmp_path, json.dumps(LINE), "\u3000 \v\f", "{oops")
    assert "train.jsonl:3: is no JSON" in open_corpus(tmp_path, "train")[1].flaw


def test_manifest_searched_in_small_chunks_has_the_same_lines(tmp_path, monkeypatch):
    write_lines(tmp_path, *(json.dumps(LINE | {"id": f"i{n}"}) for n in range(40)))
    monkeypatch.setattr(manifest, "_CHUNK", 7)
    ids = [utterance.id for utterance in open_corpus(tmp_path, "train")]
    assert ids == [f"i{n}" for n in range(40)]


@pytest.mark.parametrize("text", ["", "\n \t\r\n"])
def test_manifest_without_lines_is_refused(tmp_path, text):
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(Mistake, match=r"train.jsonl: has 0 lines"):
        open_corpus(tmp_path, "train")


@pytest.mark.skipif(not FSDD.exists(), reason="needs the digits corpus beside the project")
def test_manifest_of_the_digits_corpus_opens_whole():
    corpus = open_corpus(FSDD, "train")
    assert len(corpus) == 2700
    assert load_utterance_wave(corpus[2699]).size == round(corpus[2699].duration * 16_000)


def test_line_with_a_place_inside_a_file_becomes_a_reference():
    member = LINE | {"audio_filepath": "x/a.tar", "start": 512, "size": 99}
    assert parsed(member).audio == AudioReference("/corpus/x/a.tar", start=512, size=99)
    row = LINE | {"audio_filepath": "/data/p.parquet", "row": 3, "column": "audio"}
    assert parsed(row).audio == AudioReference("/data/p.parquet", row=3, column="audio")
    tfds = LINE | {"audio_filepath": "tfds:digits:test", "row": 0, "column": "wav", "rate": 8000}
    assert parsed(tfds).audio == AudioReference("tfds:digits:test", row=0, column="wav", rate=8000)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("gs://bucket/a.flac", epath.Path("gs://bucket/a.flac")),
        ("file:///b/a%20c.flac", epath.Path("/b/a c.flac")),
        ("https://host/a.flac", AudioReference("https://host/a.flac")),
    ],
)
def test_line_with_a_uri_names_its_place_or_sound_that_is_missing(path, place):
    heard = parsed(LINE | {"audio_filepath": path})
    assert heard.audio == place
    if not path.startswith("gs"):
        with pytest.raises(Unusable) as caught:
            load_utterance_wave(heard)
        assert caught.value.reason == "missing"
    assert parsed(LINE | {"audio_filepath": path, "start": 0, "size": 9}).audio.path == str(
        place.path if isinstance(place, AudioReference) else place
    )


def test_line_without_speaker_language_and_source_leaves_them_empty():
    heard = parsed({name: LINE[name] for name in LINE if name != "speaker"})
    assert (heard.speaker, heard.language, heard.source) == ("", "", "")
    heard = parsed(LINE | {"language": "de-CH", "source": "talks", "speaker": None})
    assert (heard.speaker, heard.language, heard.source) == ("", "de-CH", "talks")


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"speaker": 7}, "speaker=7: must be a string"),
        ({"start": 5}, "start=5, size=None: must be given together"),
        ({"row": -1}, "row=-1: must be a whole number from 0"),
        ({"row": True}, "row=True: must be a whole number from 0"),
        ({"audio_filepath": "tfds:digits:test"}, "needs row, its number in the split"),
    ],
)
def test_line_with_a_wrong_place_is_named(fields, rule):
    flawed = parsed(LINE | fields)
    assert flawed.id == "i"
    assert flawed.flaw.startswith("here:1: ")
    assert rule in flawed.flaw


def test_written_manifest_comes_back_without_the_fields_that_are_none(tmp_path):
    importers = {"where": "a:1", "spare": ""}  # what `make_row` adds
    rows = (LINE | importers | {"id": f"ä{n}", "offset": None} for n in range(3))
    assert manifest.write_manifest(epath.Path(tmp_path / "new"), "train", rows) == 3
    written = manifest.Manifest(epath.Path(tmp_path / "new/train.jsonl"))
    assert [heard.id for heard in written] == ["ä0", "ä1", "ä2"]
    text = (tmp_path / "new/train.jsonl").read_text()
    assert not any(name in text for name in ("offset", "where", "spare"))


def test_manifest_whose_rows_fail_midway_leaves_the_one_before(tmp_path):
    def rows():
        yield LINE
        raise Mistake("line 2 is bad")

    folder = epath.Path(tmp_path)
    manifest.write_manifest(folder, "train", [LINE, LINE])
    before = (folder / "train.jsonl").read_text()
    with pytest.raises(Mistake, match="line 2 is bad"):
        manifest.write_manifest(folder, "train", rows())
    assert [path.name for path in folder.iterdir()] == ["train.jsonl"]
    assert (folder / "train.jsonl").read_text() == before
