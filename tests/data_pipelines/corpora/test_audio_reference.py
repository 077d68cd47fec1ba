import dataclasses
import json
import threading

from etils import epath
import numpy as np
import pytest

from data_pipelines.audio.file_io import to_flac
from data_pipelines.corpora import audio_reference, parquet_audio
from data_pipelines.corpora.corpus import load_utterance_wave, open_corpus
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.reject import Unusable
from melllm_jax.errors import Mistake


def noise(number):
    rng = np.random.default_rng(number)
    return (rng.integers(-9000, 9000, 3000 + number) / 32768).astype(np.float32)


def table(path, count, group=2):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sounds = [{"bytes": to_flac(noise(n)), "path": f"{n}.flac"} for n in range(count)]
    names = [f"n{n}" for n in range(count)]
    parquet.write_table(arrow.table({"audio": sounds, "name": names}), path, row_group_size=group)
    return str(path)


def reason(place):
    with pytest.raises(Unusable) as caught:
        audio_reference.load_sound(place)
    assert "\n" not in str(caught.value)
    return caught.value.reason, str(caught.value)


def test_range_of_a_file_is_its_sound(tmp_path):
    parts = [to_flac(noise(n)) for n in range(3)]
    (tmp_path / "all.bin").write_bytes(b"".join(parts))
    start = len(parts[0])
    place = AudioReference(str(tmp_path / "all.bin"), start=start, size=len(parts[1]))
    assert audio_reference.read_audio_bytes(place) == parts[1]
    assert np.array_equal(audio_reference.load_sound(place).wave, noise(1))
    line = {"id": "i", "text": "one", "duration": 0.1, "audio_filepath": "all.bin"}
    line |= {"start": start, "size": len(parts[1])}
    (tmp_path / "dev.jsonl").write_text(json.dumps(line))
    assert np.array_equal(load_utterance_wave(open_corpus(tmp_path, "dev")[0]), noise(1))


def test_range_that_is_not_there_says_why(tmp_path):
    path = str(tmp_path / "a.tar")
    assert reason(AudioReference(path, start=0, size=9)) == ("missing", f"{path}: no such file")
    (tmp_path / "a.tar").write_bytes(b"x" * 700)
    kind, told = reason(AudioReference(path, start=512, size=512))
    assert kind == "undecodable"
    assert told == f"{path}, byte 512: has 188 of 512 bytes: the file was cut off"
    kind, told = reason(AudioReference(path, start=512, size=100))
    assert (kind, told.startswith(f"{path}, byte 512: is no sound")) == ("undecodable", True)


def test_row_of_a_parquet_file_is_its_sound_in_any_order(tmp_path):
    path = table(tmp_path / "a.parquet", 5)
    other = table(tmp_path / "b.parquet", 3)
    for row in (0, 4, 1, 3, 2, 2):
        assert np.array_equal(
            audio_reference.load_sound(AudioReference(path, row=row)).wave, noise(row)
        )
        assert np.array_equal(
            audio_reference.load_sound(AudioReference(other, row=row % 3, column="audio")).wave,
            noise(row % 3),
        )


def test_row_of_samples_is_their_sound(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    held = {"array": noise(1), "sampling_rate": 16_000}
    columns = {"audio": [held, None, held | {"sampling_rate": 4000}], "bare": [noise(2), None, []]}
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    rows = [AudioReference(str(tmp_path / "a.parquet"), row=row) for row in range(3)]
    assert np.array_equal(audio_reference.load_sound(rows[0]).wave, noise(1))
    assert np.array_equal(
        audio_reference.load_sound(rows[0], (0.1, 0.05)).wave, noise(1)[1600:2400]
    )
    with pytest.raises(Unusable, match="row 0: holds samples, not a sound file"):
        audio_reference.read_audio_bytes(rows[0])
    assert [reason(row)[0] for row in rows[1:]] == ["missing", "rate"]
    bare = [dataclasses.replace(row, column="bare", rate=16_000) for row in rows]
    assert np.array_equal(audio_reference.load_sound(bare[0]).wave, noise(2))
    assert [reason(row)[0] for row in bare[1:]] == ["missing", "empty"]


def test_rows_read_in_order_read_each_group_once(tmp_path, monkeypatch):
    path = table(tmp_path / "a.parquet", 6)
    read, group = [], parquet_audio.read_row_group

    def counted(file, number, columns):
        read.append((number, columns))
        return group(file, number, columns)

    monkeypatch.setattr(parquet_audio, "read_row_group", counted)
    for row in range(6):
        audio_reference.read_audio_bytes(AudioReference(path, row=row))
    assert read == [(0, ["audio"]), (1, ["audio"]), (2, ["audio"])]


def test_threads_keep_each_its_own_group(tmp_path, monkeypatch):
    path = table(tmp_path / "a.parquet", 4)
    read, group, turn, right = [], parquet_audio.read_row_group, threading.Barrier(2), []

    def counted(file, number, columns):
        read.append(number)
        return group(file, number, columns)

    def reading(rows):
        for row in rows:
            turn.wait(10)  # both ask at once, each time
            right.append(
                np.array_equal(
                    audio_reference.load_sound(AudioReference(path, row=row)).wave, noise(row)
                )
            )

    monkeypatch.setattr(parquet_audio, "read_row_group", counted)
    threads = [threading.Thread(target=reading, args=(rows,)) for rows in ((0, 1, 0), (2, 3, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 6
    assert sorted(read) == [0, 1]


def test_row_that_is_not_there_says_why(tmp_path):
    path = table(tmp_path / "a.parquet", 3)
    where = f"{path}, row 3"
    assert reason(AudioReference(path, row=3)) == ("missing", f"{where}: the file has 3 rows")
    assert reason(AudioReference(path, row=0, column="name"))[0] == "missing"
    assert reason(AudioReference(str(tmp_path / "no.parquet"), row=0))[0] == "undecodable"


def test_row_of_a_damaged_group_is_undecodable_and_the_others_are_not(tmp_path):
    path = table(tmp_path / "a.parquet", 4)
    assert np.array_equal(audio_reference.load_sound(AudioReference(path, row=3)).wave, noise(3))
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    start = content.index(to_flac(noise(2))[:64])
    content[start - 60 : start] = bytes(60)  # the head of the page of the second group
    damaged = tmp_path / "b.parquet"
    damaged.write_bytes(content)
    assert np.array_equal(
        audio_reference.load_sound(AudioReference(str(damaged), row=1)).wave, noise(1)
    )
    for _ in range(2):  # what failed is not kept
        assert reason(AudioReference(str(damaged), row=2))[0] in ("undecodable", "missing")
    assert np.array_equal(
        audio_reference.load_sound(AudioReference(str(damaged), row=0)).wave, noise(0)
    )


SAMPLES = AudioReference("tfds:digits:dev", row=4, column="audio", rate=16_000)


@pytest.mark.parametrize("kind", [np.int16, np.int64, np.float32])
def test_samples_of_any_type_become_the_same_sound(kind):
    whole = np.rint(noise(1) * 32768)
    held = (whole if kind is not np.float32 else whole / 32768).astype(kind)
    assert np.array_equal(audio_reference.samples_to_sound(held, SAMPLES).wave, noise(1))
    stereo = np.stack([held, held], axis=1)
    assert np.array_equal(audio_reference.samples_to_sound(stereo, SAMPLES).wave, noise(1))
    stereo[:, 0] = 0
    second = audio_reference.samples_to_sound(stereo, SAMPLES, None, 1)
    assert np.array_equal(second.wave, noise(1))


@pytest.mark.parametrize(
    ("held", "rate", "why"),
    [
        (np.zeros(0, np.int16), 16_000, "empty"),
        (np.array([40_000]), 16_000, "undecodable"),
        (np.array([0.0, np.nan]), 16_000, "not finite"),
        (np.zeros(9, np.int16), None, "rate"),
    ],
)
def test_samples_that_cannot_be_used_say_why(held, rate, why):
    with pytest.raises(Unusable) as caught:
        audio_reference.samples_to_sound(
            held, AudioReference("tfds:digits:dev", row=4, column="audio", rate=rate)
        )
    assert caught.value.reason == why
    assert str(caught.value).startswith("tfds:digits:dev, row 4: ")


def test_row_of_a_dataset_that_is_not_there_is_a_mistake(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(Mistake, match="cannot be opened"):
        audio_reference.load_sound(
            AudioReference(f"tfds:{tmp_path}/none:dev", row=0, column="audio")
        )


def test_place_is_described_in_words():
    assert audio_reference.describe_location(epath.Path("/a.wav")) == "/a.wav"
    assert (
        audio_reference.describe_location(AudioReference("/a.tar", start=512, size=9))
        == "/a.tar, byte 512"
    )
    assert (
        audio_reference.describe_location(AudioReference("/a.parquet", row=7))
        == "/a.parquet, row 7"
    )
