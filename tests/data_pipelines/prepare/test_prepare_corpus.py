import hashlib
import json

from etils import epath
import ml_dtypes
import numpy as np
import pytest
from scipy.io import wavfile
import soundfile

from data_pipelines.audio.file_io import decode_audio, to_flac
from data_pipelines.audio.log_mel import band_statistics as mel_statistics
from data_pipelines.audio.log_mel import extract_log_mel, normalized_log_mel
from data_pipelines.corpora import shard_index
from data_pipelines.corpora.corpus import list_splits, load_utterance_wave, open_corpus
from data_pipelines.examples.asr_example import load_mel
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.prepare.validate import Limits
from data_pipelines.text.byte_tokenizer import ByteTokenizer
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from tests.support.corpora import WORDS, write_corpus

GONE = {"audio_filepath": "none.flac"}


def same(number):
    return {"audio_filepath": f"audio/{number}.flac", "text": WORDS[number], "duration": 0.0}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rejects(folder):
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def test_prepare_to_flac_keeps_every_16_bit_sample(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    prepare(raw, tmp_path / "out")
    for before, after in zip(
        open_corpus(raw, "train"), open_corpus(tmp_path / "out", "train"), strict=True
    ):
        assert np.array_equal(decode_audio(after.audio), decode_audio(before.audio))


def test_prepare_to_mel_keeps_it_as_bfloat16_and_says_how_it_was_made(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2)
    cfg = Mel(kind="plain", m=16, normalize="none")
    prepare(raw, tmp_path / "out", mel=cfg)
    stored = open_corpus(tmp_path / "out", "train")
    assert stored.mel == cfg
    mel = normalized_log_mel(decode_audio(open_corpus(raw, "train")[1].audio), cfg)
    assert np.array_equal(stored[1].mel, mel.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_prepare_tells_how_many_are_done_of_how_many(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    write_corpus(tmp_path / "raw", 2, split="test", first=10)
    done = []
    index = prepare(raw, tmp_path / "out", progress=lambda *told: done.append(told))
    assert (done[0], done[-1]) == ((0, 5), (5, 5))
    assert done == sorted(done)
    assert {split: part[0].count for split, part in index.splits.items()} == {"train": 3, "test": 2}


def test_prepare_leaves_bad_utterances_out_and_lists_them(tmp_path):
    raw = write_corpus(tmp_path / "raw", 4, changes={2: GONE})
    prepare(raw, tmp_path / "out", bad=0.25)
    ids = [utterance.id for utterance in open_corpus(tmp_path / "out", "train")]
    assert ids == ["id0", "id1", "id3"]
    (line,) = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    reject = json.loads(line)
    assert (reject["split"], reject["id"], reject["reason"]) == ("train", "id2", "missing")
    assert "none.flac" in reject["detail"]


def test_prepare_of_too_many_bad_utterances_stops_without_an_index(tmp_path):
    raw = write_corpus(tmp_path / "raw", 4, changes={2: GONE, 3: {"offset": 99.0}})
    with pytest.raises(Mistake, match=r"bad=0.49: 2 of 4 .*50.0%.* 1 missing, 1 empty"):
        prepare(raw, tmp_path / "out", bad=0.49)
    assert not (tmp_path / "out/index.json").exists()
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 2


def test_prepare_of_many_bad_utterances_stops_early(tmp_path):
    changes = {number: GONE for number in range(150)}
    raw = write_corpus(tmp_path / "raw", 150, seconds=0.05, changes=changes)
    with pytest.raises(Mistake, match="101 or more of 150 utterances"):
        prepare(raw, tmp_path / "out")
    assert len(rejects(tmp_path / "out")) == 101


def test_prepare_goes_on_with_what_it_did_where_more_bad_ones_are_allowed(tmp_path):
    raw = write_corpus(tmp_path / "raw", 4, changes={2: GONE})
    with pytest.raises(Mistake, match="bad=0.2"):
        prepare(raw, tmp_path / "out", per_shard=2, bad=0.2)
    shard = tmp_path / "out/.work/train-00000.array_record"
    before = shard.stat().st_mtime_ns
    told = []
    prepare(raw, tmp_path / "out", per_shard=2, bad=0.3, progress=lambda *now: told.append(now))
    assert told == [(2, 4), (4, 4)]  # no line was read again
    assert (tmp_path / "out/train-00000.array_record").stat().st_mtime_ns == before
    assert not (tmp_path / "out/.work").exists()


def test_prepare_of_a_split_with_nothing_usable_is_refused(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2)
    write_corpus(tmp_path / "raw", 1, split="test", changes={0: GONE})
    with pytest.raises(Mistake, match="split=test: none of its 1 utterances is usable"):
        prepare(raw, tmp_path / "out", bad=1.0)


def test_prepare_into_a_whole_folder_is_refused(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2)
    prepare(raw, tmp_path / "out")
    with pytest.raises(Mistake, match=r"out=.*: already holds a whole index.json"):
        prepare(raw, tmp_path / "out")


def test_prepare_from_ready_mel_is_refused(tmp_path):
    prepare(write_corpus(tmp_path / "raw", 2), tmp_path / "mel", mel=Mel())
    with pytest.raises(Mistake, match="holds ready mel"):
        prepare(tmp_path / "mel", tmp_path / "out")


@pytest.mark.parametrize("at", [1, 3, 5, 7])
def test_prepare_after_an_interrupted_job_writes_the_same_files(tmp_path, at):
    raw = write_corpus(tmp_path / "raw", 7)

    def interrupted(done, total):
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "out", per_shard=2, progress=interrupted)
    assert not list((tmp_path / "out").glob("*.*record"))
    prepare(raw, tmp_path / "out", per_shard=2)
    prepare(raw, tmp_path / "again", per_shard=2)
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_prepare_of_lines_that_changed_since_it_was_interrupted_takes_the_new_ones(tmp_path):
    raw = write_corpus(tmp_path / "raw", 4)

    def interrupted(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "out", per_shard=2, progress=interrupted)
    assert (tmp_path / "out/.work/train-00000.json").exists()
    path = raw / "train.jsonl"
    path.write_text(path.read_text().replace('"one"', '"won"'))
    prepare(raw, tmp_path / "out", per_shard=2)
    texts = [one.text for one in open_corpus(tmp_path / "out", "train")]
    assert texts == ["zero", "won", "two", "three"]


def test_prepare_interrupted_while_it_publishes_ends_with_the_same_files(tmp_path, monkeypatch):
    raw = write_corpus(tmp_path / "raw", 7)

    def interrupted(folder, index):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "write_index", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, tmp_path / "out", per_shard=1)
    assert len(list((tmp_path / "out").glob("*.array_record"))) == 7
    prepare(raw, tmp_path / "out", per_shard=2)  # fewer shards: those of before must go
    prepare(raw, tmp_path / "again", per_shard=2)
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_prepare_takes_out_repeated_sound_of_train_and_keeps_what_is_held_out(tmp_path):
    raw = write_corpus(tmp_path / "raw", 6, changes={4: same(1), 5: {**same(1), "text": "another"}})
    write_corpus(tmp_path / "raw", 2, split="test", first=50)
    line = (raw / "test.jsonl").read_text().splitlines()[1]
    again = json.loads(line) | {"id": "copied"}
    (raw / "train.jsonl").write_text((raw / "train.jsonl").read_text() + json.dumps(again) + "\n")
    index = prepare(raw, tmp_path / "out", per_shard=2, bad=0.0)
    ids = [utterance.id for utterance in open_corpus(tmp_path / "out", "train")]
    assert ids == ["id0", "id1", "id2", "id3", "id5"]
    assert len(open_corpus(tmp_path / "out", "test")) == 2
    assert [(r["id"], r["reason"]) for r in rejects(tmp_path / "out")] == [
        ("id4", "duplicate"),
        ("copied", "duplicate"),
    ]
    found = {line["id"]: line["detail"] for line in rejects(tmp_path / "out")}
    assert found["id4"] == "id4: has the same sound and text as train.jsonl:2"
    assert found["copied"] == "copied: has the same sound and text as test.jsonl:2"
    assert index.facts["train"].rejects == {"duplicate": 2}
    hashes = shard_index.read_columns(epath.Path(tmp_path / "out"), "train")["hash"].tolist()
    assert hashes == [shard_index.utterance_hash("", name) for name in ids]
    assert index.facts["train"].characters == len("zeroonetwothreeanother")
    assert [shard.name for shard in index.splits["train"]] == [
        shard_index.shard_name("train", n) for n in (0, 1, 2)
    ]
    kept = prepare(raw, tmp_path / "all", limits=Limits(duplicates="keep"))
    assert sum(shard.count for shard in kept.splits["train"]) == 7


def test_prepare_takes_out_repeated_ids_of_a_split(tmp_path):
    raw = write_corpus(tmp_path / "raw", 4, changes={2: {"id": "id0"}, 3: {"id": "id0"}})
    write_corpus(tmp_path / "raw", 1, split="test", first=50, changes={50: {"id": "id0"}})
    prepare(raw, tmp_path / "out", per_shard=1)
    assert [one.id for one in open_corpus(tmp_path / "out", "train")] == ["id0", "id1"]
    assert [one.id for one in open_corpus(tmp_path / "out", "test")] == ["id0"]
    assert [line["reason"] for line in rejects(tmp_path / "out")] == ["duplicate id"] * 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (GONE, "missing"),
        ({"duration": None}, "malformed row"),
        ({"text": " "}, "empty transcript"),
        ({"text": "\ud800"}, "unknown characters"),
        ({"text": "word " * 20}, "text too long for its audio"),
        ({"duration": 2.0}, "wrong duration"),
        ({"offset": 0.0, "duration": 0.03}, "too short"),
        ({"duration": 700.0}, "longer than 600 s"),
        ({"audio_filepath": "silent.flac", "duration": 0.0}, "silent"),
        ({"audio_filepath": "stuck.flac", "duration": 0.0}, "silent"),
        ({"audio_filepath": "opposite.flac", "duration": 0.0}, "channels cancel each other"),
        ({"audio_filepath": "train.jsonl", "duration": 0.0}, "undecodable"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_prepare_counts_what_it_refuses_by_reason_and_source(tmp_path, row, reason):
    raw = write_corpus(tmp_path / "raw", 2, changes={1: {**row, "source": "read"}})
    (raw / "silent.flac").write_bytes(to_flac(np.zeros(16_000, np.float32)))
    (raw / "stuck.flac").write_bytes(to_flac(np.full(16_000, 0.9, np.float32)))
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 16_000).astype(np.float32)
    soundfile.write(raw / "opposite.flac", np.stack([noise, -noise], axis=1), 16_000)
    index = prepare(raw, tmp_path / "out", bad=0.5)
    (line,) = rejects(tmp_path / "out")
    assert (line["split"], line["source"], line["id"]) == ("train", "read", "id1")
    assert line["reason"] == reason
    assert index.facts["train"].rejects == {reason: 1}


def test_prepare_cuts_long_sound_without_text_where_nobody_speaks(tmp_path):
    raw = write_corpus(tmp_path / "raw", 1)
    rng = np.random.default_rng(0)
    quiet = 1e-4 * rng.standard_normal(16_000 * 10).astype(np.float32)
    speech = 0.1 * rng.standard_normal(16_000 * 10).astype(np.float32)
    for second in (3, 6):  # pauses of 0.4 s
        span = slice(16_000 * second, 16_000 * second + 6400)
        speech[span] = quiet[span]
    (raw / "long.flac").write_bytes(to_flac(speech))
    long = {"id": "long", "audio_filepath": "long.flac", "duration": 10.0, "speaker": "x"}
    lines = [long | {"text": ""}, long | {"id": "told", "text": "what was said"}]
    with (raw / "train.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    limits = Limits(longest=4.0, long="split", untranscribed="keep")
    prepare(raw, tmp_path / "out", limits=limits, bad=0.4)
    pieces = {one.id: one for one in open_corpus(tmp_path / "out", "train")}
    assert list(pieces) == ["id0", "long.000", "long.001", "long.002"]
    waves = [decode_audio(pieces[f"long.{n:03d}"].audio) for n in range(3)]
    np.testing.assert_array_equal(np.concatenate(waves), decode_audio(to_flac(speech)))
    assert [len(wave) / 16_000 for wave in waves] == pytest.approx([3.2, 3.0, 3.8], abs=0.1)
    assert [line["reason"] for line in rejects(tmp_path / "out")] == ["longer than 4 s"]


def test_prepare_refuses_long_sound_without_a_pause(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2, seconds=4.0, changes={1: {"text": ""}})
    limits = Limits(longest=1.5, long="split", untranscribed="keep")
    with pytest.raises(Mistake, match="2 longer than 1.5 s"):
        prepare(raw, tmp_path / "out", limits=limits)
    assert "has no pause to cut it at" in rejects(tmp_path / "out")[1]["detail"]


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(Mistake, match="long=split: cuts only what has no text"):
        Limits(long="split")
    with pytest.raises(Mistake, match="shortest=2.0: must be below longest=1"):
        Limits(shortest=2.0, longest=1.0)
    with pytest.raises(Mistake, match="fastest=0.0: must be positive"):
        Limits(fastest=0.0)


def test_prepare_to_original_keeps_the_bytes_of_each_file(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2, changes={1: {"offset": 0.05, "duration": 0.1}})
    index = prepare(raw, tmp_path / "out", store="original")
    whole, part = open_corpus(tmp_path / "out", "train")
    assert whole.audio == (raw / "audio/0.flac").read_bytes()
    assert decode_audio(part.audio).size == 1600
    assert index.sound == "original"


@pytest.mark.parametrize("store", ["flac", "original"])
def test_prepare_of_one_channel_stores_what_is_read_as_it(tmp_path, store):
    raw = write_corpus(tmp_path / "raw", 3, changes={n: {"channel": n} for n in range(3)})
    waves = np.stack([decode_audio(raw / f"audio/{n}.flac")[:1600] for n in range(2)], axis=1)
    lines = [json.loads(line) for line in (raw / "train.jsonl").read_text().splitlines()]
    rows = [line | {"audio_filepath": "both.wav", "duration": 0.1} for line in lines]
    (raw / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wavfile.write(raw / "both.wav", 16_000, np.rint(waves * 32768).astype(np.int16))
    prepare(raw, tmp_path / "out", store=store, bad=0.5)
    assert [line["reason"] for line in rejects(tmp_path / "out")] == ["missing"]
    prepare(tmp_path / "out", tmp_path / "again")  # from shards: their records know it
    for folder in ("out", "again"):
        found = list(open_corpus(tmp_path / folder, "train"))
        assert len(found) == 2
        for heard, wave in zip(found, waves.T, strict=True):
            assert np.array_equal(load_utterance_wave(heard), wave)


def test_prepare_to_opus_keeps_the_length_and_gives_the_same_bytes_again(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    prepare(raw, tmp_path / "out", store="opus")
    prepare(raw, tmp_path / "again", store="opus")
    assert files(tmp_path / "out") == files(tmp_path / "again")
    stored = open_corpus(tmp_path / "out", "train")
    assert stored[0].audio[:4] == b"OggS"
    for before, after in zip(open_corpus(raw, "train"), stored, strict=True):
        assert decode_audio(after.audio).size == decode_audio(before.audio).size


def test_prepare_with_a_tokenizer_stores_the_ids_of_each_text(tmp_path):
    raw = write_corpus(tmp_path / "raw", 2)
    index = prepare(raw, tmp_path / "out", tokenizer="bytes")
    one = open_corpus(tmp_path / "out", "train")[1]
    assert one.tokens == tuple(b"one") and one.text == "one"
    read = shard_index.read_index(epath.Path(tmp_path / "out"))
    assert index.tokenizer == ByteTokenizer().digest() == read.tokenizer


def test_prepare_to_globally_normalised_mel_takes_its_constants_from_train(tmp_path):
    raw = write_corpus(tmp_path / "raw", 5)
    write_corpus(tmp_path / "raw", 2, split="test", first=20)
    said = []
    cfg = Mel(kind="plain", m=16, normalize="global")
    index = prepare(raw, tmp_path / "out", mel=cfg, per_shard=2, log=said.append)
    mels = [extract_log_mel(decode_audio(one.audio), cfg) for one in open_corpus(raw, "train")]
    mean, invstd = mel_statistics(mels)
    np.testing.assert_allclose(index.mel.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(index.mel.invstd, invstd, rtol=1e-9)
    assert (index.statistics.mean, index.statistics.invstd) == (index.mel.mean, index.mel.invstd)
    wide = np.concatenate([one.mel for one in open_corpus(tmp_path / "out", "train")])
    wide = wide.astype(np.float32)
    np.testing.assert_allclose(wide.mean(axis=0), 0, atol=0.01)  # bfloat16 keeps 8 bits
    np.testing.assert_allclose(wide.std(axis=0), 1, atol=0.01)
    assert len(said) == 2 and "first pass" in said[0]


def test_prepare_leaves_columns_and_facts_of_every_record(tmp_path):
    more = {number: {"language": "en", "source": "read"} for number in (1, 3)}
    raw = write_corpus(tmp_path / "raw", 5, changes=more | {4: GONE})
    index = prepare(raw, tmp_path / "out", per_shard=2, bad=0.2)
    rows = shard_index.read_columns(epath.Path(tmp_path / "out"), "train")
    stored = list(open_corpus(tmp_path / "out", "train"))
    for row, one in zip(rows, stored, strict=True):
        whole = hashlib.sha256(f"{one.source}\t{one.id}".encode()).digest()
        assert row["hash"] == int.from_bytes(whole[:8], "little")
        assert row["characters"] == len(one.text)
        assert row["seconds"] == np.float32(one.duration)
    facts = index.facts["train"]
    assert facts.characters == sum(len(one.text) for one in stored)
    assert facts.speakers == 1
    hours = sum(one.duration for one in stored if one.source) / 3600
    assert facts.sources.keys() == {"", "read"} and facts.languages.keys() == {"", "en"}
    assert facts.sources["read"].count == 2
    assert facts.sources["read"].hours == pytest.approx(hours)
    assert -21 < index.loudness["read"]["mean"] < -19  # noise of 0.1: 20 dB below full scale
    assert index == shard_index.read_index(epath.Path(tmp_path / "out"))


def test_prepare_of_prepared_sound_gives_its_mel(tmp_path):
    raw = write_corpus(tmp_path / "raw", 5)
    prepare(raw, tmp_path / "flac", per_shard=2)
    cfg = Mel(kind="plain", m=8)
    prepare(tmp_path / "flac", tmp_path / "mel", mel=cfg, per_shard=3)
    prepare(raw, tmp_path / "direct", mel=cfg, per_shard=3)
    assert files(tmp_path / "mel") == files(tmp_path / "direct")


def test_prepare_of_a_line_that_is_none_counts_it_under_its_place(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    with (raw / "train.jsonl").open("a") as file:
        file.write("{}\n")
    prepare(raw, tmp_path / "out", per_shard=2, bad=0.5)
    (line,) = rejects(tmp_path / "out")
    assert line["id"] == f"{raw / 'train.jsonl'}:4"
    assert line["detail"].startswith(f"{raw / 'train.jsonl'}:4: lacks audio_filepath")


@pytest.mark.parametrize("store", ["flac", "mel"])
def test_prepare_of_telephone_speech_keeps_its_rate_for_phi4(tmp_path, store):
    raw = write_corpus(tmp_path / "raw", 1, changes={0: {"duration": 0.0}})
    wave = np.random.default_rng(0).integers(-9000, 9000, 4001) / 32_768
    (raw / "audio/0.flac").write_bytes(to_flac(wave.astype(np.float32), 8000))
    cfg = Mel(normalize="none", telephone="native")
    index = prepare(raw, tmp_path / "out", mel=cfg, store=store)
    mels = [
        load_mel(open_corpus(folder, "train")[0], cfg, longest=9.0)
        for folder in (raw, tmp_path / "out")
    ]
    assert np.array_equal(mels[0], extract_log_mel(np.float32(wave), cfg, 8000))
    assert np.array_equal(mels[0].astype(mels[1].dtype), mels[1])
    assert not np.array(index.statistics.mean)[62:].any()


def test_prepare_of_another_kind_imports_it_first(tmp_path):
    raw = write_corpus(tmp_path / "raw", 3)
    lines = (raw / "train.jsonl").read_text()
    (raw / "train.jsonl").unlink()
    (raw / "nemo.json").write_text(lines)
    prepare(raw / "nemo.json", tmp_path / "out", kind="nemo")
    (split,) = list_splits(tmp_path / "out")
    assert [one.text for one in open_corpus(tmp_path / "out", split)] == ["zero", "one", "two"]
    assert not (tmp_path / "out/.work").exists()


def task_corpus(folder):
    """Lines of a task of two clips, of one clip asked twice, and of text alone."""
    write_corpus(folder, 3)
    clips = [f"audio/{number}.flac" for number in (0, 1)]
    rows = [
        {"id": "two", "audio": clips, "instruction": "Same?", "answer": "no"},
        {"id": "one", "audio": clips[0], "instruction": "Who?", "answer": "a", "task": "who"},
        {"id": "other", "audio": clips[0], "instruction": "Why?", "answer": "a"},
        {"id": "again", "audio": clips[0], "instruction": "Why?", "answer": "a"},
        {"id": "text", "instruction": "Say a", "answer": ["a", "A"], "options": ["a", "b"]},
        {"id": "none", "audio": clips[0], "instruction": "Why?"},
        {"id": "lost", "audio": [clips[0], "gone.flac"], "answer": "a"},
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("store", ["flac", "original", "mel"])
def test_prepare_keeps_tasks_with_all_their_clips(tmp_path, store):
    raw = task_corpus(tmp_path / "raw")
    cfg = Mel(kind="plain", m=8)
    prepare(raw, tmp_path / "out", store=store, mel=cfg, bad=0.5)
    before = {heard.id: heard for heard in open_corpus(raw, "train")}
    after = {heard.id: heard for heard in open_corpus(tmp_path / "out", "train")}
    assert list(after) == ["two", "one", "other", "text"]
    for name, held in after.items():
        told = before[name]
        assert (held.text, held.turns, held.task, held.metric, held.answers, held.options) == (
            *(told.text, told.turns, told.task, told.metric, told.answers, told.options),
        )
        assert len(held.clips) == len(told.clips)
        for clip, was in zip(held.clips, told.clips, strict=True):
            mels = (load_mel(x, cfg, longest=60.0).astype(ml_dtypes.bfloat16) for x in (clip, was))
            assert np.array_equal(*mels)
    seconds = sum(heard.seconds for heard in after.values())
    assert open_corpus(tmp_path / "out", "train").hours == pytest.approx(seconds / 3600)
    assert {(x["id"], x["reason"]) for x in rejects(tmp_path / "out")} == {
        ("again", "duplicate"),
        ("none", "malformed row"),
        ("lost", "missing"),
    }
