import json
import pathlib

from corpora import write_corpus
import pytest

from data_pipelines import sources
from data_pipelines.audio import BadAudio
from data_pipelines.prepare import prepare
from melllm_jax.errors import Mistake

FSDD = pathlib.Path(__file__).parents[2] / "shared/data/fsdd"
LINE = {"audio_filepath": "a.flac", "text": "one", "duration": 1.0, "speaker": "s", "id": "i"}


def write_lines(folder, *lines):
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def test_manifest_line_becomes_an_utterance(tmp_path):
    write_lines(tmp_path, json.dumps(LINE), json.dumps(LINE | {"id": "j", "offset": 2.5}))
    first, second = sources.open_source(tmp_path, "train")
    assert first.id == "i"
    assert first.text == "one"
    assert first.duration == 1.0
    assert first.speaker == "s"
    assert first.audio == tmp_path / "a.flac"
    assert (first.offset, second.offset) == (None, 2.5)


def test_manifest_without_a_last_line_break_keeps_its_last_line(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(LINE) + "\n\n" + json.dumps(LINE))
    assert len(sources.open_source(tmp_path, "train")) == 2


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("{oops", "is no JSON"),
        ("[1]", "is no object of fields"),
        ('{"text": "one"}', "lacks audio_filepath: has text"),
        (json.dumps(LINE | {"duration": "1"}), "duration='1': must be a number"),
        (json.dumps(LINE | {"duration": -1.0}), "duration=-1.0: must be seconds from 0"),
        (json.dumps(LINE | {"duration": float("inf")}), "duration=inf: must be seconds from 0"),
        (json.dumps(LINE | {"offset": "x"}), "offset='x': must be seconds from 0"),
        (json.dumps(LINE | {"text": None}), "text=None: must be a string"),
    ],
)
def test_manifest_line_that_is_wrong_is_named(tmp_path, line, rule):
    write_lines(tmp_path, json.dumps(LINE), "", line)
    with pytest.raises(Mistake) as caught:
        sources.open_source(tmp_path, "train")
    assert str(caught.value).startswith(f"{tmp_path / 'train.jsonl'}:3: ")
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_manifest_line_past_the_checked_ones_is_named_when_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHECKED", 1)
    write_lines(tmp_path, json.dumps(LINE), "{oops")
    manifest = sources.open_source(tmp_path, "train")
    assert manifest[0].id == "i"
    with pytest.raises(Mistake, match=r"train.jsonl:2: is no JSON"):
        manifest[1]


def test_manifest_searched_in_small_chunks_has_the_same_lines(tmp_path, monkeypatch):
    write_lines(tmp_path, *(json.dumps(LINE | {"id": f"i{n}"}) for n in range(40)))
    monkeypatch.setattr(sources, "_CHUNK", 7)
    ids = [utterance.id for utterance in sources.open_source(tmp_path, "train")]
    assert ids == [f"i{n}" for n in range(40)]


def test_manifest_without_lines_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(Mistake, match=r"train.jsonl: has 0 lines"):
        sources.open_source(tmp_path, "train")


def test_source_of_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(Mistake, match=r"nowhere: is no folder"):
        sources.open_source(tmp_path / "nowhere", "train")


def test_source_of_a_missing_split_names_those_that_exist(tmp_path):
    write_corpus(tmp_path, 1, split="dev")
    write_corpus(tmp_path, 1, split="test")
    with pytest.raises(Mistake, match=r"split=train: .* has dev, test"):
        sources.open_source(tmp_path, "train")


def test_source_of_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(Mistake, match=r"holds neither index.json nor SPLIT.jsonl"):
        sources.splits(tmp_path)


def test_source_of_an_unfinished_folder_of_shards_is_refused(tmp_path):
    prepare(write_corpus(tmp_path / "raw", 2), tmp_path / "out")
    (tmp_path / "out/index.json").unlink()
    with pytest.raises(Mistake, match=r"has shards but no index.json"):
        sources.splits(tmp_path / "out")


def test_source_of_shards_has_the_words_of_its_manifest(tmp_path):
    raw = write_corpus(tmp_path / "raw", 5)
    write_corpus(tmp_path / "raw", 2, split="test", first=9)
    prepare(raw, tmp_path / "out", per_shard=2)
    assert sources.splits(tmp_path / "out") == ["test", "train"]
    for split in ("train", "test"):
        before = sources.open_source(raw, split)
        after = sources.open_source(tmp_path / "out", split)
        assert [u.text for u in after] == [u.text for u in before]
        assert [u.duration for u in after] == [u.duration for u in before]


def test_digest_follows_the_content_of_one_split(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    write_corpus(tmp_path / "raw", 3, split="test")
    out = tmp_path / "out"
    prepare(raw, out)
    before = [sources.digest(folder, "train") for folder in (raw, out)]
    write_corpus(tmp_path / "raw", 2, split="test")
    assert sources.digest(raw, "train") == before[0]
    write_corpus(tmp_path / "raw", 4)
    prepare(raw, tmp_path / "again")
    assert sources.digest(raw, "train") != before[0]
    assert sources.digest(out, "train") == before[1]
    assert sources.digest(tmp_path / "again", "train") != before[1]


def test_sound_with_an_offset_is_that_stretch_of_the_file(tmp_path):
    raw = write_corpus(tmp_path, 1, seconds=1.0)
    whole = sources.sound(sources.open_source(raw, "train")[0])
    write_corpus(tmp_path, 1, seconds=1.0, changes={0: {"offset": 0.1, "duration": 0.2}})
    part = sources.sound(sources.open_source(raw, "train")[0])
    assert part.tolist() == whole[1600:4800].tolist()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"audio_filepath": "none.flac"}, "missing"), ({"offset": 9.0}, "empty")],
)
def test_sound_that_is_not_there_says_why(tmp_path, fields, reason):
    raw = write_corpus(tmp_path, 1, changes={0: fields})
    with pytest.raises(BadAudio) as caught:
        sources.sound(sources.open_source(raw, "train")[0])
    assert caught.value.reason == reason


def test_by_length_puts_the_longest_first(tmp_path):
    changes = {n: {"duration": seconds} for n, seconds in enumerate((1.0, 3.0, 2.0, 3.0))}
    corpus = sources.open_source(write_corpus(tmp_path, 4, changes=changes), "train")
    assert sources.by_length(corpus) == [1, 3, 2, 0]


@pytest.mark.skipif(not FSDD.exists(), reason="needs the digits corpus beside the project")
def test_manifest_of_the_digits_corpus_opens_whole():
    corpus = sources.open_source(FSDD, "train")
    assert len(corpus) == 2700
    assert sources.sound(corpus[2699]).size == round(corpus[2699].duration * 16_000)
