import base64
import html.parser
import io
import json
import re
import resource
import signal

from etils import epath
import numpy as np
import pytest
import soundfile

from data_pipelines.audio.file_io import to_flac
from data_pipelines.corpora import shard_index, shard_writer
from data_pipelines.corpora.utterance import Utterance, encode_record
from launch import cli
from melllm_jax.config.features import Mel
from tests.support.runs import corpus, refused

EVIL = '<script>alert("1")</script></section><img src=x onerror=alert(2)>'


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, and all text in it."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        self.bytes = path.read_bytes()
        self.feed(self.bytes.decode())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def sources(self, tag):
        """What lies in the data: addresses of the elements of a kind."""
        found = [attrs["src"] for name, attrs in self.elements if name == tag]
        assert all(re.match(r"data:\w+/\w+;base64,", one) for one in found)
        return [base64.b64decode(one.partition(",")[2]) for one in found]


def inspected(folder, *words, out=None):
    """The page of a folder, or the JSON that is printed without one."""
    found = ["data", "inspect", str(folder), *map(str, words)]
    if out is None:
        return found + ["--json"]
    assert cli.main([*found, "--out", str(out)]) == 0
    return Page(out)


def figures(capsys, folder, *words):
    assert cli.main(inspected(folder, *words)) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    return json.loads(printed)


def prepared(folder, utterances, split="train", mel=None, **more):
    """Shards of three records each, with what preparing writes beside them."""
    path = epath.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    writer = shard_writer.ShardWriter(path, split, per_shard=3)
    for one in utterances:
        writer.add(encode_record(one), one.duration)
    rows = [
        (shard_index.utterance_hash(one.source, one.id), one.duration, len(one.text))
        for one in utterances
    ]
    np.save(
        f"{path}/{split}{shard_index.COLUMNS_SUFFIX}", np.array(rows, shard_index.COLUMNS_DTYPE)
    )
    shard_index.write_index(path, shard_index.ShardIndex(mel, {split: writer.close()}, **more))
    return path


def spoken(number, text="some words", seconds=1.0, **more):
    wave = np.random.default_rng(number).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
    return Utterance(f"id{number}", text, seconds, f"s{number % 2}", audio=to_flac(wave), **more)


def test_inspect_tells_what_is_in_manifests(tmp_path, capsys):
    changes = {0: {"text": "ab", "speaker": "x", "language": "en", "source": "web"}}
    folder = corpus(tmp_path / "data", 12, changes=changes)
    corpus(folder, 3, split="test", first=50)
    found = figures(capsys, folder)
    assert found["stores"] == "manifests" and list(found["facts"]) == ["test", "train"]
    train = found["facts"]["train"]
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert train["utterances"] == train["read"] == train["seconds"]["of"] == 12
    assert train["hours"] == pytest.approx(sum(x["duration"] for x in lines) / 3600)
    assert train["characters"] == sum(len(x["text"]) for x in lines)
    counted = {x["character"]: x["count"] for x in train["letters"]}
    joined = "".join(x["text"] for x in lines)
    assert counted == {x: joined.count(x) for x in set(joined)}
    assert train["speakers"] == 2 and train["all_speakers"] and train["exact"]
    assert [(x["name"], x["count"]) for x in train["largest"]] == [("noise", 11), ("x", 1)]
    assert [(x["name"], x["count"]) for x in train["languages"]] == [("en", 1)]
    assert [(x["name"], x["count"]) for x in train["sources"]] == [("web", 1)]
    heard = found["heard"]["train"]
    assert (heard["of"], heard["troubles"]) == (12, [])
    assert heard["loudness"]["mean"] == pytest.approx(-20, abs=1)  # of 0.1 times full scale
    assert len(heard["mean"]) == 80
    assert len(heard["examples"]) + len(found["heard"]["test"]["examples"]) == 13  # 10 and all 3


def test_inspect_page_can_be_opened_alone_and_its_sound_played(tmp_path):
    page = inspected(corpus(tmp_path / "data", 5), out=tmp_path / "page.html")
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    assert b"http://" not in page.bytes and b"https://" not in page.bytes
    (policy,) = [a["content"] for _, a in page.elements if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    sounds, pictures = page.sources("audio"), page.sources("img")
    assert len(sounds) == len(pictures) == 5
    for sound in sounds:
        wave, rate = soundfile.read(io.BytesIO(sound))
        assert rate == 16_000 and 0.1 < wave.std() / 0.1 < 2
    assert all(one.startswith(b"\x89PNG") for one in pictures)


def test_inspect_page_holds_hostile_text_inert(tmp_path):
    changes = {
        0: {"text": EVIL, "speaker": EVIL, "id": EVIL, "language": EVIL, "source": EVIL},
        1: {"text": "nul \x00 override \u202e lone \ud800 end"},
        2: {"text": ""},
    }
    folder = corpus(tmp_path / "data", 4, changes=changes)
    row = {"split": EVIL, "source": EVIL, "id": EVIL, "reason": EVIL, "detail": EVIL}
    (folder / shard_index.REJECTS).write_text(json.dumps(row) + "\n")
    page = inspected(folder, out=tmp_path / "page.html")
    assert EVIL in page.text
    assert not {"script", "x"} & {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert len(page.sources("img")) == 4
    assert "nul \\u0000 override \\u202e lone \\ud800 end" in page.text
    assert not {"\x00", "\u202e"} & set(page.text)


def test_inspect_without_sound_says_why_and_goes_on(tmp_path, capsys):
    folder = corpus(tmp_path / "data", 4, changes={1: {"audio_filepath": "audio/none.flac"}})
    heard = figures(capsys, folder)["heard"]["train"]
    assert heard["troubles"] == [["missing", 1]] and heard["loudness"]["of"] == 3
    (bad,) = [one for one in heard["examples"] if one["trouble"]]
    assert bad["id"] == "id1" and bad["trouble"].endswith("none.flac: no such file")
    page = inspected(folder, out=tmp_path / "page.html")
    assert "none.flac: no such file" in page.text and len(page.sources("audio")) == 3


def test_inspect_of_shards_counts_all_by_columns_and_reads_a_sample(tmp_path, capsys):
    rng = np.random.default_rng(0)
    utterances = [spoken(i, "word " * (1 + i % 4), rng.uniform(0.2, 0.6)) for i in range(20)]
    stated = shard_index.SplitSummary(
        1000,
        2,
        {"en": shard_index.Subtotal(20, 0.1)},
        {"web": shard_index.Subtotal(5, 0.2), "": shard_index.Subtotal(15, 1.0)},
    )
    levels = {"web": {"mean": -20.5, "p50": -21.0}}
    statistics = shard_index.MelStatistics("phi4", 80, (1.0,) * 80, (0.5,) * 80)
    more = {"facts": {"train": stated}, "loudness": levels, "statistics": statistics}
    folder = prepared(tmp_path / "out", utterances, **more)
    found = figures(capsys, folder, "--sample", 5, "--listen", 4, "--examples", 2)
    train = found["facts"]["train"]
    assert (train["utterances"], train["read"], train["exact"]) == (20, 5, True)
    assert train["hours"] == pytest.approx(sum(one.duration for one in utterances) / 3600)
    assert train["characters"] == sum(len(one.text) for one in utterances)
    assert train["seconds"]["of"] == train["rate"]["of"] == 20
    assert sum(one["count"] for one in train["largest"]) == 5
    assert (train["speakers"], train["all_speakers"]) == (2, True)
    assert [one["name"] for one in train["sources"]] == ["web"]
    assert found["heard"]["train"]["of"] == 4 and len(found["heard"]["train"]["examples"]) == 2
    page = inspected(folder, "--sample", 5, out=tmp_path / "page.html")
    assert "a sample of 5 of 20 utterances" in page.text and "all 20 utterances" in page.text
    assert "Loudness by source" in page.text and "phi4, 80 bands; mean" in page.text


def test_inspect_of_a_sampled_manifest_says_that_hours_are_estimates(tmp_path, capsys):
    folder = corpus(tmp_path / "data", 30)
    train = figures(capsys, folder, "--sample", 10)["facts"]["train"]
    assert (train["read"], train["exact"], train["all_speakers"]) == (10, False, False)
    whole = figures(capsys, folder)["facts"]["train"]
    assert train["hours"] == pytest.approx(whole["hours"], rel=0.3)
    assert train["hours"] != whole["hours"]
    page = inspected(folder, "--sample", 10, out=tmp_path / "page.html")
    assert "Estimates from a sample: hours and characters of train." in page.text
    assert cli.main(["data", "inspect", str(folder), "--sample", "10"]) == 0
    assert "train: 30 utterances, about " in capsys.readouterr().out


def test_inspect_of_ready_mel_has_pictures_but_no_sound_and_says_so(tmp_path, capsys):
    mel = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    utterances = [Utterance(f"id{i}", "words", 0.5, "s", mel=mel) for i in range(3)]
    cfg = Mel(kind="plain", m=8)
    folder = prepared(tmp_path / "out", utterances, mel=cfg)
    heard = figures(capsys, folder)["heard"]["train"]
    assert heard["loudness"] is None and heard["mel"].startswith("plain, 8 bands")
    assert heard["mean"] == pytest.approx(mel.mean(axis=0).tolist(), abs=0.02)
    page = inspected(folder, out=tmp_path / "page.html")
    assert (page.sources("audio"), len(page.sources("img"))) == ([], 3)
    assert page.text.count("Ready mel: there is no sound to play.") == 3


def test_inspect_page_stays_within_its_size_and_says_what_it_left_out(tmp_path):
    folder = corpus(tmp_path / "data", 8, seconds=1.0)
    whole = inspected(folder, out=tmp_path / "whole.html")
    small = inspected(folder, "--megabytes", 0.1, out=tmp_path / "small.html")
    assert len(whole.sources("audio")) == 8
    left = 8 - len(small.sources("audio"))
    assert 0 < left < 8 and len(small.bytes) < 0.15e6
    assert f"{left} are without sound and picture, which would take more than 0.10 MB" in small.text


def test_inspect_lists_what_preparing_rejected_by_reason_and_source(tmp_path, capsys):
    folder = corpus(tmp_path / "data", 3)
    kinds = [("silent", "web")] * 5 + [("silent", "radio")] + [("empty", "web")] * 2
    rows = [
        {"split": "train", "source": source, "id": f"r{i}", "reason": reason, "detail": f"why {i}"}
        for i, (reason, source) in enumerate(kinds)
    ]
    (folder / shard_index.REJECTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = figures(capsys, folder)["rejects"]
    assert [(x["reason"], x["source"], x["count"]) for x in found] == [
        ("silent", "web", 5),
        ("empty", "web", 2),
        ("silent", "radio", 1),
    ]
    assert [one["detail"] for one in found[0]["first"]] == ["why 0", "why 1", "why 2"]
    page = inspected(folder, out=tmp_path / "page.html")
    assert "8 of 11 utterances, 72.73%" in page.text and "why 6" in page.text


def test_inspect_names_texts_that_come_again_and_utterances_of_odd_speed(tmp_path, capsys):
    changes = {i: {"text": "the same"} for i in range(0, 40, 2)}
    changes[5] = {"text": "x" * 900}
    train = figures(capsys, corpus(tmp_path / "data", 40, changes=changes))["facts"]["train"]
    assert train["repeated"][0] == ["the same", 20] and train["texts"] == 21
    assert [one["id"] for one in train["fastest"]] == ["id5"] and train["slowest"] == []
    assert train["fastest"][0]["rate"] == pytest.approx(900 / train["fastest"][0]["seconds"])


def test_inspect_takes_no_speed_of_a_duration_that_no_sound_has(tmp_path, capsys):
    changes = {i: {"duration": x} for i, x in enumerate((1e-300, 5e-324, 1e-50))}
    train = figures(capsys, corpus(tmp_path / "data", 20, changes=changes))["facts"]["train"]
    assert train["fastest"] == [] and train["untimed"] == 3


def test_inspect_tells_a_record_that_cannot_be_read_and_reads_the_others(tmp_path, capsys):
    folder = prepared(tmp_path / "out", [spoken(i) for i in range(6)])
    path = folder / shard_index.shard_name("train", 1)
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF  # in the first record
    path.write_bytes(bytes(content))
    found = figures(capsys, folder)
    train, heard = found["facts"]["train"], found["heard"]["train"]
    assert (train["read"], len(train["unreadable"])) == (5, 1)
    assert shard_index.shard_name("train", 1) in train["unreadable"][0]
    assert heard["troubles"] == [["cannot be read", 1]]


def test_inspect_of_columns_of_another_length_is_a_fault(tmp_path, capsys):
    folder = prepared(tmp_path / "out", [spoken(i) for i in range(4)])
    np.save(f"{folder}/train{shard_index.COLUMNS_SUFFIX}", np.zeros(3, shard_index.COLUMNS_DTYPE))
    said = refused(["data", "inspect", folder], capsys, status=1)
    assert said.endswith(f"train{shard_index.COLUMNS_SUFFIX}: has 3 rows, index.json says 4")


def test_inspect_of_a_damaged_list_of_rejects_is_a_fault_naming_the_line(tmp_path, capsys):
    folder = corpus(tmp_path / "data", 3)
    (folder / shard_index.REJECTS).write_text('{"split": "train"}\n')
    said = refused(["data", "inspect", folder], capsys, status=1)
    assert said.startswith(f"{folder / shard_index.REJECTS}:1: cannot be read: KeyError")


def test_inspect_draws_the_same_for_a_seed_and_others_for_another(tmp_path, capsys):
    folder = corpus(tmp_path / "data", 40)
    small = ["--sample", 20, "--listen", 4, "--examples", 4]
    once, again, other = (figures(capsys, folder, *small, "--seed", seed) for seed in (0, 0, 1))
    assert once == again
    shown = [[x["id"] for x in one["heard"]["train"]["examples"]] for one in (once, other)]
    assert shown[0] != shown[1] and len(set(shown[0])) == 4
    assert once["facts"]["train"]["characters"] != other["facts"]["train"]["characters"]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["none"], "data=none: is no folder"),
        ([".", "--examples", "-1"], "examples=-1: must be 0 or more"),
        ([".", "--exmples", "3"], "unknown flag --exmples: did you mean --examples?"),
    ],
)
def test_inspect_refuses_what_it_cannot_look_at(capsys, words, rule):
    assert rule in refused(["data", "inspect", *words], capsys)


def test_inspect_where_the_page_cannot_be_written_is_a_fault(tmp_path, capsys):
    folder = corpus(tmp_path / "data", 2)
    (tmp_path / "no").write_text("")
    said = refused(["data", "inspect", folder, "--out", tmp_path / "no/page.html"], capsys, 1)
    assert said.startswith(f"out={tmp_path / 'no/page.html'}: cannot be written: ")


def test_inspect_that_fills_the_disk_leaves_the_page_that_was_there(tmp_path, capsys):
    folder, out = corpus(tmp_path / "data", 2), tmp_path / "page.html"
    out.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, as on a disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        said = refused(["data", "inspect", folder, "--out", out], capsys, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert said == f"out={out}: cannot be written: File too large"
    assert [one.name for one in tmp_path.glob("*page*")] == ["page.html"]
    assert out.read_text() == "before"
