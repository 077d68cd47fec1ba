"""Each format's tree is built in its own layout, imported, and compared with what went in."""

import gzip
import io
import json
import os
import pathlib
import tarfile

from etils import epath
import numpy as np
import pytest
from scipy.io import wavfile

from data_pipelines.audio.file_io import decode_audio, to_flac
from data_pipelines.corpora.corpus import list_splits, load_utterance_wave, open_corpus
from data_pipelines.importers import write_manifests
from data_pipelines.importers.manifest_row import absolute_path
from melllm_jax.errors import Mistake
from tests.support.paths import FSDD

LIBRISPEECH = FSDD.parent / "librispeech_dev_clean_84"


def noise(number, seconds=0.3):
    """A sound of its own for each number: whole 16-bit samples at 16 kHz."""
    rng = np.random.default_rng(number)
    samples = int(16_000 * seconds * rng.uniform(0.5, 1.5))
    wave = rng.normal(0.0, 0.1, samples).clip(-0.9, 0.9)
    return (np.rint(wave * 32768) / 32768).astype(np.float32)


def spoken(count):
    """Id, samples, text and speaker of `count` utterances."""
    texts = ("GO DO YOU HEAR", "grüß dich", 'she said "no"', "seven  nine", "two")
    return [(f"s{n % 2}-c-{n:04d}", noise(n), texts[n % 5], f"s{n % 2}") for n in range(count)]


def imports(source, kind, folder, **options):
    """What the manifests say after an import: the utterances of each split, by id."""
    counts = write_manifests.import_corpus(str(source), kind, epath.Path(folder), **options)
    found = {}
    for split in list_splits(folder):
        corpus = open_corpus(folder, split)
        assert len(corpus) == counts[split]
        found[split] = {heard.id: heard for heard in corpus}
        assert len(found[split]) == len(corpus)
    return found


def same(heard, wave, text, speaker="", seconds=None):
    """Whether an utterance is the one that went in, to the sample."""
    assert heard.text == text
    assert heard.speaker == speaker
    assert heard.duration == pytest.approx(
        len(wave) / 16_000 if seconds is None else seconds, abs=1e-6
    )
    assert np.array_equal(load_utterance_wave(heard), wave)


def refused(source, kind, folder, rule, **options):
    with pytest.raises(Mistake) as caught:
        write_manifests.import_corpus(str(source), kind, epath.Path(folder), **options)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(pathlib.Path(folder).glob("*"))


def librispeech_tree(root, subset, count):
    for name, wave, text, speaker in spoken(count):
        chapter = root / subset / speaker / "c"
        chapter.mkdir(parents=True, exist_ok=True)
        (chapter / f"{name}.flac").write_bytes(to_flac(wave))
        with open(chapter / f"{speaker}-c.trans.txt", "a", encoding="utf-8") as file:
            file.write(f"{name} {text}\n")


def test_librispeech_tree_comes_back_by_subset(tmp_path):
    librispeech_tree(tmp_path / "LibriSpeech", "dev-clean", 5)
    librispeech_tree(tmp_path / "LibriSpeech", "test-other", 2)
    found = imports(tmp_path / "LibriSpeech", "librispeech", tmp_path / "out", language="en")
    assert {split: len(rows) for split, rows in found.items()} == {"dev-clean": 5, "test-other": 2}
    for name, wave, text, speaker in spoken(5):
        same(found["dev-clean"][name], wave, text, speaker)
        assert found["dev-clean"][name].source == "LibriSpeech"
        assert found["dev-clean"][name].language == "en"


def test_librispeech_subset_alone_is_a_split_and_what_is_odd_is_kept(tmp_path):
    librispeech_tree(tmp_path, "dev", 2)
    chapter = tmp_path / "dev/s0/c"
    (chapter / "s0-c-0077.flac").write_bytes(to_flac(noise(77)))  # sound without a transcript
    with open(chapter / "s0-c.trans.txt", "a") as file:
        file.write("s0-c-0088 GONE\n")  # a transcript without sound
    (chapter / "s0-c-0000.flac").write_bytes(b"fLaC, but no more")
    found = imports(tmp_path / "dev", "librispeech", tmp_path / "out")["dev"]
    assert {name: (h.text, h.duration > 0) for name, h in found.items()} == {
        "s0-c-0000": ("GO DO YOU HEAR", False),
        "s0-c-0077": ("", True),
        "s0-c-0088": ("GONE", False),
        "s1-c-0001": ("grüß dich", True),
    }


def test_librispeech_mistakes_are_named(tmp_path):
    refused(tmp_path, "librispeech", tmp_path / "out", "has no SUBSET/SPEAKER/CHAPTER")
    librispeech_tree(tmp_path / "root", "dev", 2)
    transcript = tmp_path / "root/dev/s0/c/s0-c.trans.txt"
    transcript.write_text("a one\nb two\na three\n")
    rule = f"{transcript}:3: id a stands already at {transcript}:1"
    refused(tmp_path / "root", "librispeech", tmp_path / "out", rule)
    transcript.write_bytes(b"a \xff\xfe\n")
    refused(tmp_path / "root", "librispeech", tmp_path / "out", "trans.txt:1: is no UTF-8")
    refused(tmp_path / "root", "librispeech", tmp_path / "out", "splits=x:", splits=("x",))
    (transcript.parent / "s0-c-0000.wav").write_bytes(b"")
    transcript.write_text("a one\n")
    rule = "s0-c-0000.wav: s0-c-0000.flac has its name too"
    refused(tmp_path / "root", "librispeech", tmp_path / "out", rule)


def test_librispeech_tree_from_macos_is_the_tree_alone_and_odd_names_are_kept(tmp_path):
    librispeech_tree(tmp_path / "root", "dev", 1)
    chapter = tmp_path / "root/dev/s0/c"
    for path in list(chapter.iterdir()):
        (chapter / f"._{path.name}").write_bytes(b"\0\5\26\7")
    (tmp_path / "root/__MACOSX").mkdir()
    odd = os.fsencode(chapter) + b"/caf\xe9.flac"  # Latin-1
    pathlib.Path(os.fsdecode(odd)).write_bytes(to_flac(noise(1)))
    found = imports(f"file://{tmp_path}/root", "librispeech", tmp_path / "out")["dev"]
    assert list(found) == ["s0-c-0000", "caf\\udce9"]
    same(found["caf\\udce9"], noise(1), "", "s0")


@pytest.mark.skipif(not LIBRISPEECH.exists(), reason="needs LibriSpeech beside the project")
def test_librispeech_chapter_of_real_speech_comes_back(tmp_path):
    chapter = tmp_path / "LibriSpeech/dev-clean/84/121123"
    chapter.mkdir(parents=True)
    told = list(open_corpus(LIBRISPEECH, "test"))
    for heard in told:
        (chapter / f"{heard.id}.flac").symlink_to(heard.audio)
    lines = "".join(f"{heard.id} {heard.text.upper()}\n" for heard in told)
    (chapter / "84-121123.trans.txt").write_text(lines)
    found = imports(tmp_path / "LibriSpeech", "librispeech", tmp_path / "out")["dev-clean"]
    assert len(found) == 29
    for heard in told:
        same(found[heard.id], decode_audio(heard.audio), heard.text.upper(), "84")


def kaldi_folder(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = "".join(f"{key} {value}\n" for key, value in sorted(rows.items()))
        (folder / name.replace("wav_scp", "wav.scp")).write_text(lines, encoding="utf-8")


def kaldi_corpus(root, count):
    """ROOT/train with its files relative to ROOT, as speechocean762 has them."""
    (root / "wave").mkdir(parents=True)
    told = spoken(count)
    for name, wave, _, _ in told:
        (root / f"wave/{name}.flac").write_bytes(to_flac(wave))
    kaldi_folder(
        root / "train",
        wav_scp={name: f"wave/{name}.flac" for name, *_ in told},
        text={name: text for name, _, text, _ in told},
        utt2spk={name: speaker for name, _, _, speaker in told},
    )
    return told


def test_kaldi_folders_come_back(tmp_path):
    told = kaldi_corpus(tmp_path / "corpus", 5)
    kaldi_folder(
        tmp_path / "corpus/test",
        wav_scp={"u": f"flac -c -d -s {tmp_path}/corpus/wave/s0-c-0000.flac |"},
        text={"u": "gruezi"},
        utt2lang={"u": "de-CH"},
        reco2dur={"u": "7.5"},
    )
    found = imports(tmp_path / "corpus", "kaldi", tmp_path / "out")
    assert set(found) == {"train", "test"}
    for name, wave, text, speaker in told:
        same(found["train"][name], wave, text, speaker)
    same(found["test"]["u"], told[0][1], "gruezi", seconds=7.5)
    assert found["test"]["u"].language == "de-CH"


def test_kaldi_segments_are_stretches_of_their_recording(tmp_path):
    wave = np.concatenate([noise(n, 1.0) for n in range(3)])
    (tmp_path / "long.flac").write_bytes(to_flac(wave))
    end = len(wave) / 16_000
    kaldi_folder(
        tmp_path / "data/dev",
        wav_scp={"rec": f"{tmp_path}/long.flac"},
        segments={"a": "rec 0.10 0.60", "b": "rec 0.60 1.1", "c": "rec 1.1 -1"},
        text={"a": "one", "c": "three"},
        utt2spk={"a": "x", "b": "x", "c": "y"},
    )
    found = imports(tmp_path / "data/dev", "kaldi", tmp_path / "out")["dev"]
    same(found["a"], wave[1600:9600], "one", "x", seconds=0.5)
    same(found["b"], wave[9600:17600], "", "x", seconds=0.5)
    same(found["c"], wave[17600:], "three", "y", seconds=end - 1.1)


@pytest.mark.parametrize("segments", [None, {"cA": "rA 0 -1", "cB": "rB 0 -1"}])
@pytest.mark.parametrize("labels", ["AB", "12"])
def test_kaldi_channels_of_a_file_are_its_recordings(tmp_path, segments, labels):
    sound = np.stack([noise(1)[:1600], noise(2)[:1600]], axis=1)
    wavfile.write(tmp_path / "s.wav", 16_000, np.rint(sound * 32768).astype(np.int16))
    names = ("rA", "rB") if segments else ("cA", "cB")
    files = {"segments": segments} if segments else {}
    kaldi_folder(
        tmp_path / "dev",
        wav_scp={name: "../s.wav" for name in names},
        reco2file_and_channel={n: f"s {label}" for n, label in zip(names, labels, strict=True)},
        text={"cA": "one", "cB": "two"},
        **files,
    )
    found = imports(tmp_path / "dev", "kaldi", tmp_path / "out")["dev"]
    same(found["cA"], sound[:, 0], "one")
    same(found["cB"], sound[:, 1], "two")


def test_kaldi_paths_start_where_root_says(tmp_path):
    told = kaldi_corpus(tmp_path / "corpus", 2)
    (tmp_path / "disk").mkdir()
    (tmp_path / "corpus/wave").rename(tmp_path / "disk/wave")
    refused(tmp_path / "corpus", "kaldi", tmp_path / "out", "name its folder by --root")
    root = str(tmp_path / "disk")
    found = imports(tmp_path / "corpus", "kaldi", tmp_path / "out", root=root)["train"]
    same(found["s0-c-0000"], *told[0][1:])


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("flac -c -d -s /a/b.flac |", "/a/b.flac"),
        ("sph2pipe -f wav -p '/a b/c.sph' |", "/a b/c.sph"),
        ("/usr/bin/sox /a/b.mp3 -t wav -r 16k - |", "/a/b.mp3"),
        ("cat /a/b.wav |", "/a/b.wav"),
    ],
)
def test_kaldi_pipe_that_unpacks_one_file_is_that_file(tmp_path, command, file):
    kaldi_folder(tmp_path / "dev", wav_scp={"u": command}, text={"u": "one"})
    found = imports(tmp_path / "dev", "kaldi", tmp_path / "out")["dev"]
    assert str(found["u"].audio) == file


@pytest.mark.parametrize(
    "command",
    [
        "ffmpeg -i /a.mp3 -f wav - |",
        "sox /a.wav -t wav - speed 0.9 |",
        "sph2pipe -f wav -c 2 /a.sph |",
        "flac -c -d -s --skip=1000 /a.flac |",
        "cat /a.wav | sox - -t wav - |",
        "cat '/a.wav |",
    ],
)
def test_kaldi_pipe_that_does_more_is_refused(tmp_path, command):
    kaldi_folder(tmp_path / "dev", wav_scp={"u": command}, text={"u": "one"})
    refused(tmp_path / "dev", "kaldi", tmp_path / "out", "wav.scp:1: ")


@pytest.mark.parametrize(
    ("file", "lines", "rule"),
    [
        ("text", "b two\na one\n", "text:2: a follows b: sort the file"),
        ("text", "a one\na two\n", "text:2: id a stands already at"),
        ("text", "a one\nb two\nc three\n", "text:3: c is no utterance of segments or wav.scp"),
        ("utt2spk", "0 x\na x\n", "utt2spk:1: 0 is no utterance of segments or wav.scp"),
        ("wav.scp", "a none.wav\n", "wav.scp:1: none.wav is in none of"),
        ("wav.scp", "a /data/raw.ark:17\n", "is an archive"),
        ("segments", "a rec 0 1\n", "segments:1: wav.scp has no recording rec"),
        ("segments", "a a 2 1\n", "segments:1: end=1.0: must lie after start=2.0"),
        ("segments", "a a x 1\n", "segments:1: start='x': must be seconds from 0"),
        ("segments", "a a 1\n", "segments:1: must be UTTERANCE RECORDING START END"),
        ("reco2file_and_channel", "a f A\nb f H00\n", "channel:2: channel 'H00': must be A, B"),
        ("reco2file_and_channel", "a f A\n", "wav.scp:2: reco2file_and_channel has no recording b"),
    ],
)
def test_kaldi_mistakes_are_named(tmp_path, file, lines, rule):
    kaldi_folder(tmp_path / "dev", wav_scp={"a": "/a.wav", "b": "/b.wav"}, text={"a": "one"})
    (tmp_path / "dev" / file).write_text(lines)
    refused(tmp_path / "dev", "kaldi", tmp_path / "out", rule)


def test_nemo_manifests_come_back(tmp_path):
    (tmp_path / "wav").mkdir()
    rows = []
    for name, wave, text, speaker in spoken(5):
        (tmp_path / f"wav/{name}.flac").write_bytes(to_flac(wave))
        rows.append({"audio_filepath": f"wav/{name}.flac", "text": text, "speaker": speaker})
    wave = spoken(1)[0][1]
    (tmp_path / "said.txt").write_bytes(b"\xef\xbb\xbffrom a file\r\n")
    rows[1] = {"audio_filepath": rows[1]["audio_filepath"], "text_filepath": "said.txt"}
    stretch = {"audio_filepath": "wav/s0-c-0000.flac", "offset": 0.02, "duration": 0.05}
    rows.append(stretch | {"text": "part", "lang": "de", "id": "mine"})
    rows += [stretch | {"text": str(n), "offset": n / 100} for n in (1, 2)]
    rows[0]["duration"] = 9.5  # what the source says is taken; preparing compares
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "train_manifest.json").write_text(lines)
    found = imports(tmp_path / "train_manifest.json", "nemo", tmp_path / "out")["train"]
    assert found["wav/s0-c-0000"].duration == 9.5
    for name, wave_, text, speaker in spoken(5)[2:]:
        same(found[f"wav/{name}"], wave_, text, speaker)
    same(found["wav/s1-c-0001"], spoken(2)[1][1], "from a file")
    assert found["mine"].source == tmp_path.name
    same(found["mine"], wave[320:1120], "part", seconds=0.05)
    assert found["mine"].language == "de"
    same(found["wav/s0-c-0000@0.01"], wave[160:960], "1", seconds=0.05)
    same(found["wav/s0-c-0000@0.02"], wave[320:1120], "2", seconds=0.05)


def nemo_rows(folder, *rows, **options):
    """What becomes of lines over one sound, in the order of the manifest that is written."""
    lines = "".join(
        json.dumps({"audio_filepath": "a.wav", "text": ""} | row) + "\n" for row in rows
    )
    (folder / "m.json").write_text(lines)
    write_manifests.import_corpus(
        str(folder / "m.json"), "nemo", epath.Path(folder / "out"), **options
    )
    return [json.loads(line) for line in (folder / "out/m.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"text": float("nan"), "speaker": float("nan"), "id": float("nan")}, ("", None, "a")),
        ({"text": None, "speaker": None, "duration": float("nan")}, ("", None, "a")),
        ({"text": 7, "speaker": 84.0, "id": 3}, ("7", "84", "3")),
        ({"text": "x \ud83d", "speaker": "s"}, ("x \ud83d", "s", "a")),  # preparing counts it
    ],
)
def test_nemo_words_that_are_no_string_are_missing_or_numbers(tmp_path, fields, wanted):
    (row,) = nemo_rows(tmp_path, fields)
    assert (row["text"], row.get("speaker"), row["id"]) == wanted


def test_nemo_ids_made_of_paths_and_offsets_differ(tmp_path):
    ahead = {"offset": 36000.12}
    near = {"offset": 36000.14}
    rows = nemo_rows(tmp_path, ahead, near, near, {}, {"audio_filepath": "a.flac"}, {"offset": 2})
    ids = ["a@36000.12", "a@36000.14", "a:3", "a", "a:5", "a@2"]
    assert [row["id"] for row in rows] == ids


def test_made_ids_of_a_large_split_differ_without_comparing_them(tmp_path, monkeypatch):
    monkeypatch.setattr(write_manifests, "COMPARED_IDS", 2)
    rows = nemo_rows(tmp_path, {}, {}, {}, {"id": "own"}, {"audio_filepath": "b.wav"})
    assert [row["id"] for row in rows] == ["a", "a:2", "a:3", "own", "b:5"]


def test_nemo_rows_with_uris_and_channels_say_so(tmp_path):
    rows = nemo_rows(
        tmp_path,
        {"audio_filepath": "https://host/b.wav"},
        {"audio_filepath": f"file://{tmp_path}/out/c.wav", "channel": 1.0},
        {"channel_selector": [2], "channel": None},
        {"channel_selector": "average"},
    )
    paths = ["https://host/b.wav", "c.wav", f"{tmp_path}/a.wav", f"{tmp_path}/a.wav"]
    assert [row["audio_filepath"] for row in rows] == paths
    assert [row.get("channel") for row in rows] == [None, 1, 2, None]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ('{"text": "one"}', "m.json:1: audio_filepath=None: must be a path"),
        ('{"audio_filepath": "a.wav"}', "m.json:1: lacks text or text_filepath"),
        ('{"audio_filepath": "a.wav", "text": "", "duration": -1}', "duration=-1: must be seconds"),
        ('{"audio_filepath": "a.wav", "text_filepath": "b.txt"}', "text_filepath="),
        ('{"audio_filepath": "a.wav", "text": "", "shard_id": 3}', "shard_id=3: is tarred"),
        ("[]", "m.json:1: '[]' is no object of fields"),
        ('{"audio_filepath": "a", "text": ["a"]}', "m.json:1: text=['a']: must be a string"),
        ('{"audio_filepath": "a", "text": "", "speaker": {}}', "speaker={}: must be a string"),
        ('{"audio_filepath": "a", "text": "", "lang": true}', "lang=True: must be a string"),
        ('{"audio_filepath": "a", "text": "", "id": Infinity}', "id=inf: must be a string"),
        ('{"audio_filepath": "a", "text": "", "offset": 1%s}' % ("0" * 400), "of 401 digits"),
        ('{"audio_filepath": "a", "text": "", "channel": [0, 1]}', "channel=[0, 1]: must be one"),
    ],
)
def test_nemo_mistakes_are_named(tmp_path, line, rule):
    (tmp_path / "m.json").write_text(line + "\n")
    refused(tmp_path / "m.json", "nemo", tmp_path / "out", rule)


def commonvoice_tree(root, splits, durations=True):
    (root / "clips").mkdir(parents=True)
    for split, told in splits.items():
        with open(root / f"{split}.tsv", "w", encoding="utf-8") as file:
            file.write("client_id\tpath\tsentence\tup_votes\tlocale\n")
            for name, wave, text, speaker in told:
                (root / f"clips/{name}.mp3").write_bytes(to_flac(wave))
                file.write(f"{speaker}\t{name}.mp3\t{text}\t2\tde\n")
    if durations:
        clips = {name: len(wave) for told in splits.values() for name, wave, _, _ in told}
        lines = "".join(f"{name}.mp3\t{count // 16}\n" for name, count in clips.items())
        (root / "clip_durations.tsv").write_text("clip\tduration[ms]\n" + lines)


@pytest.mark.parametrize("durations", [True, False])
def test_commonvoice_tables_come_back(tmp_path, durations):
    told = spoken(5)
    tables = {"train": told[:3], "dev": told[3:], "test": [], "validated": told}
    commonvoice_tree(tmp_path / "de", tables, durations)
    found = imports(tmp_path / "de", "commonvoice", tmp_path / "out")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 3, "dev": 2}
    for name, wave, text, speaker in told[:3]:
        length = len(wave) // 16 / 1000 if durations else None
        same(found["train"][name], wave, text, speaker, seconds=length)
        assert found["train"][name].language == "de"
    found = imports(tmp_path / "de", "commonvoice", tmp_path / "all", splits=("validated",))
    assert len(found["validated"]) == 5


def test_commonvoice_mistakes_are_named(tmp_path):
    commonvoice_tree(tmp_path / "cv/de", {"train": spoken(2)})
    refused(tmp_path / "cv", "commonvoice", tmp_path / "out", "has no clips/: give one of")
    table = tmp_path / "cv/de/train.tsv"
    table.write_text(table.read_text() + "x\ty.mp3\n")
    refused(tmp_path / "cv/de", "commonvoice", tmp_path / "out", "train.tsv:4: has 2 columns")
    table.unlink()
    refused(tmp_path / "cv/de", "commonvoice", tmp_path / "out", "has no .tsv with the columns")


@pytest.mark.parametrize("length", ["1" + "0" * 400, "9" * 5000, "²", "-1", ""])
def test_commonvoice_durations_that_no_clip_has_are_refused(tmp_path, length):
    commonvoice_tree(tmp_path / "de", {"train": spoken(1)})
    (tmp_path / "de/clip_durations.tsv").write_text(f"clip\tduration[ms]\na.mp3\t{length}\n")
    rule = "clip_durations.tsv:2: must have clip and duration[ms], whole milliseconds"
    refused(tmp_path / "de", "commonvoice", tmp_path / "out", rule)


def tar_of(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_webdataset_tars_come_back_without_a_copy(tmp_path):
    told = spoken(5)
    members = []
    for name, wave, text, _ in told[:3]:
        members += [(f"./{name}.flac", to_flac(wave)), (f"./{name}.txt", text.encode())]
    tar_of(tmp_path / "tars/train-000000.tar", members)
    members = []
    for name, wave, text, speaker in told[3:]:
        fields = {"text": text, "speaker": speaker, "language": "de"}
        members += [(f"{name}.json", json.dumps(fields).encode()), (f"{name}.ogg", to_flac(wave))]
    tar_of(tmp_path / "tars/train-000001.tar", [*members, ("lone.wav", to_flac(noise(9)))])
    tar_of(tmp_path / "tars/dev/0.tar", [("a/b.c.flac", to_flac(noise(8)))])
    found = imports(tmp_path / "tars", "webdataset", tmp_path / "out")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 6, "dev": 1}
    for name, wave, text, _ in told[:3]:
        same(found["train"][f"train-000000/{name}"], wave, text)
    for name, wave, text, speaker in told[3:]:
        same(found["train"][f"train-000001/{name}"], wave, text, speaker)
        assert found["train"][f"train-000001/{name}"].language == "de"
    same(found["train"]["train-000001/lone"], noise(9), "")
    same(found["dev"]["0/a/b"], noise(8), "")


def test_webdataset_mistakes_are_named(tmp_path):
    sound = to_flac(noise(1))
    refused(tmp_path, "webdataset", tmp_path / "out", "has no .tar")
    tar_of(tmp_path / "a/t-0.tar", [("k.flac", sound), ("k.wav", sound)])
    refused(tmp_path / "a", "webdataset", tmp_path / "out", "t-0.tar, k.wav: k has two sounds")
    tar_of(tmp_path / "b/t-0.tar", [("k.txt", b"one")])
    refused(tmp_path / "b", "webdataset", tmp_path / "out", "t-0.tar, k: has text and no sound")
    tar_of(tmp_path / "c/t-0.tar", [("k.flac", sound), ("k.json", b'{"caption": "one"}')])
    refused(tmp_path / "c", "webdataset", tmp_path / "out", "name it by --text; there are caption")
    tar_of(tmp_path / "d/t-0.tar.gz", [("k.flac", sound)], mode="w:gz")
    refused(tmp_path / "d", "webdataset", tmp_path / "out", "is compressed")
    tar_of(tmp_path / "e/t-0.tar", [("k.flac", sound), ("l.flac", sound)])
    content = (tmp_path / "e/t-0.tar").read_bytes()
    second = 512 + -(-len(sound) // 512) * 512  # where the header of the second sound starts
    for stop in (second, second + 100, second + 512 + 100):
        (tmp_path / "e/t-0.tar").write_bytes(content[:stop])
        refused(tmp_path / "e", "webdataset", tmp_path / "out", "t-0.tar: is no whole tar")


TEXTS = [("u.speaker.txt", b"spk7"), ("u.txt", b"\xef\xbb\xbfone")]
METADATA = [("u.json", b'\xef\xbb\xbf{"text": "two"}'), ("u.more.json", b'{"text": NaN}')]


@pytest.mark.parametrize(
    ("members", "option", "text"),
    [
        (TEXTS, "", "one"),
        (TEXTS[::-1] + METADATA, "", "one"),
        (TEXTS[:1] + METADATA, "", "two"),
        (TEXTS + METADATA[::-1], "text", "two"),
        (TEXTS, "speaker.txt", "spk7"),
        (METADATA[1:], "", ""),
        ([("._u.txt", b"\0\5\26\7"), ("__MACOSX/u.wav", b""), *TEXTS], "", "one"),
    ],
)
def test_webdataset_text_is_that_named_as_the_sound(tmp_path, members, option, text):
    tar_of(tmp_path / "t-0.tar", [("u.flac", to_flac(noise(1))), *members])
    found = imports(tmp_path / "t-0.tar", "webdataset", tmp_path / "out", text=option)
    same(found["t"]["t-0/u"], noise(1), text)


def test_webdataset_words_of_a_sound_with_dots_in_its_name_are_its_own(tmp_path):
    members = [("u.left.wav", to_flac(noise(1))), ("u.txt", b"both"), ("u.left.txt", b"left")]
    tar_of(tmp_path / "t-0.tar", members)
    same(imports(tmp_path, "webdataset", tmp_path / "out")["t"]["t-0/u"], noise(1), "left")


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ([("k.a.txt", b""), ("k.b.txt", b"")], "k: has no .txt but .a.txt and .b.txt: name that"),
        ([("k.a.json", b"{}"), ("k.b.json", b"{}")], "k: has .a.json and .b.json: needs one"),
        ([("k.txt", b""), ("k.txt", b"")], "k.txt: k has two .txt"),
        ([("k.json", b'{"text": ["a"]}')], "k: text=['a']: must be a string"),
        ([("l.wav", b""), ("k.wav", b"")], "t-0.tar, byte 1536: id=t-0/k stands already at"),
    ],
)
def test_webdataset_samples_that_are_not_clear_are_refused(tmp_path, members, rule):
    tar_of(tmp_path / "t-0.tar", [("k.flac", b""), *members])
    refused(tmp_path / "t-0.tar", "webdataset", tmp_path / "out", rule)


def test_lhotse_cuts_come_back(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    told = spoken(4)
    recordings, supervisions = [], []
    for name, wave, text, speaker in told[:3]:
        (tmp_path / f"{name}.flac").write_bytes(to_flac(wave))
        recording = lhotse.Recording.from_file(tmp_path / f"{name}.flac", recording_id=name)
        recordings.append(recording)
        told_ = {"text": text, "speaker": speaker, "language": "English"}
        segment = lhotse.SupervisionSegment(name, name, 0, recording.duration, **told_)
        supervisions.append(segment)
    parts = [("two-a", 0.0, 0.06), ("two-b", 0.05, 0.04)]
    supervisions[2:] = [
        lhotse.SupervisionSegment(name, told[2][0], start, length, text=name)
        for name, start, length in parts
    ]
    cuts = lhotse.CutSet.from_manifests(
        lhotse.RecordingSet.from_recordings(recordings),
        lhotse.SupervisionSet.from_segments(supervisions),
    )
    cuts = lhotse.CutSet.from_cuts(
        [*list(cuts)[:2], list(cuts)[2].truncate(offset=0.01, preserve_id=True)]
    )
    cuts.to_file(tmp_path / "digits_cuts_dev-clean.jsonl.gz")
    cuts.to_file(tmp_path / "cuts_plain.jsonl")
    out = imports(tmp_path, "lhotse", tmp_path / "out")
    for found in (out["dev-clean"], out["plain"]):
        for name, wave, text, speaker in told[:2]:
            same(found[name], wave, text, speaker)
            assert found[name].language == "English"
            assert found[name].offset is None
        same(found["two-a"], told[2][1][:960], "two-a", seconds=0.06)
        same(found["two-b"], told[2][1][800:1440], "two-b", seconds=0.04)


CUT = {
    "id": "c",
    "start": 0,
    "duration": 1.0,
    "type": "MonoCut",
    "recording": {"duration": 1.0, "sources": [{"type": "file", "source": "/a.wav"}]},
}


@pytest.mark.parametrize(
    ("cut", "rule"),
    [
        (CUT | {"type": "MixedCut"}, "cut c is a MixedCut: only MonoCut"),
        ({k: v for k, v in CUT.items() if k != "recording"}, "cut c has no recording"),
        (
            CUT | {"recording": {"sources": [{"type": "url", "source": "http://a"}]}},
            "cut c comes from url",
        ),
        (
            CUT | {"recording": CUT["recording"] | {"transforms": [{"name": "Speed"}]}},
            "cut c is changed by Speed",
        ),
        (
            CUT
            | {"recording": {"sources": [{"type": "file", "source": "/a", "channels": [0, 1]}]}},
            "channel=None: must be one of the file's channels=[0, 1]",
        ),
        (
            CUT | {"supervisions": {"id": "s"}},
            "supervisions={'id': 's'}: must be a list of objects",
        ),
        (CUT | {"supervisions": [{"text": ["a"]}]}, "supervision.text=['a']: must be a string"),
        (
            CUT | {"recording": CUT["recording"] | {"transforms": ["Speed"]}},
            "cut c is changed by Speed",
        ),
        (CUT | {"recording": {"sources": ["/a.wav"]}}, "sources=['/a.wav']: must be a list of"),
        (
            CUT | {"recording": {"sources": [{"type": "file", "source": "none.wav"}]}},
            "none.wav is in none of",
        ),
    ],
)
def test_lhotse_cuts_that_cannot_be_read_are_named(tmp_path, cut, rule):
    (tmp_path / "cuts.jsonl").write_text(json.dumps(cut) + "\n")
    refused(tmp_path / "cuts.jsonl", "lhotse", tmp_path / "out", rule)
    with gzip.open(tmp_path / "cuts_a.jsonl.gz", "wt") as file:
        file.write(json.dumps(cut) + "\n")
    refused(tmp_path / "cuts_a.jsonl.gz", "lhotse", tmp_path / "out", "cuts_a.jsonl.gz:1: ")


def test_lhotse_windows_of_a_supervision_get_ids_of_their_own(tmp_path):
    both = {"type": "file", "source": "https://a/b.wav", "channels": [3, 4]}
    spoken_in = {"supervisions": [{"id": "s", "text": "one", "duration": 1.0}], "channel": 4}
    cut = CUT | spoken_in | {"recording": {"duration": 1.0, "sources": [both]}}
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt", encoding="utf-8-sig") as file:
        file.writelines(json.dumps(cut | {"id": name}) + "\n" for name in "ab")
    found = imports(tmp_path / "cuts.jsonl.gz", "lhotse", tmp_path / "out")["cuts"]
    assert list(found) == ["s", "cuts-2-0"]
    assert [heard.channel for heard in found.values()] == [1, 1]


def test_lhotse_gzip_cut_off_is_named(tmp_path):
    content = gzip.compress(json.dumps(CUT).encode() * 100)
    (tmp_path / "cuts.jsonl.gz").write_bytes(content[:-20])
    refused(tmp_path / "cuts.jsonl.gz", "lhotse", tmp_path / "out", "is no whole gzip of text")


def table_of(path, told, **columns):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    sounds = [{"bytes": to_flac(wave), "path": f"{name}.flac"} for name, wave, _, _ in told]
    texts = [text for _, _, text, _ in told]
    table = arrow.table({"audio": sounds, "sentence": texts} | columns)
    parquet.write_table(table, path, row_group_size=2)


def test_parquet_files_come_back(tmp_path):
    told = spoken(5)
    speakers = [speaker for *_, speaker in told]
    data = tmp_path / "hub/data"
    table_of(data / "train-00000-of-00002.parquet", told[:3], speaker_id=speakers[:3])
    table_of(data / "train-00001-of-00002.parquet", told[3:], speaker_id=speakers[3:])
    lengths = [1.5, 2.5]
    table_of(data / "test-00000-of-00001.parquet", told[:2], duration=lengths, locale=["de", "fr"])
    found = imports(tmp_path / "hub", "parquet", tmp_path / "out")
    for name, wave, text, speaker in told:
        same(found["train"][name], wave, text, speaker)
    rows = [found["test"][name] for name, *_ in told[:2]]
    assert [(row.duration, row.language) for row in rows] == [(1.5, "de"), (2.5, "fr")]
    assert np.array_equal(load_utterance_wave(rows[1]), told[1][1])


def test_parquet_columns_are_named_by_flags(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    sounds = [to_flac(noise(n)) for n in range(2)] + [None]
    columns = {"wav": sounds, "png": [b"", b"", b""], "said": ["a", "b", None], "n": [7, 8, 9]}
    parquet.write_table(arrow.table(columns), tmp_path / "dev.parquet")
    path, out = tmp_path / "dev.parquet", tmp_path / "out"
    refused(path, "parquet", out, "the sound may be in wav or png: name it by --audio")
    refused(path, "parquet", out, "has no text in text or sentence", audio="wav")
    refused(path, "parquet", out, "has no column x of sound", audio="x", text="said")
    refused(path, "parquet", out, "has no column x of ids", audio="wav", text="said", id="x")
    refused(path, "parquet", out, "row 0: n=7: must be a string", audio="wav", text="n")
    found = imports(path, "parquet", out, audio="wav", text="said", id="n")["dev"]
    same(found["8"], noise(1), "b")
    assert (found["9"].text, found["9"].duration) == ("", 0.0)


def test_parquet_columns_of_samples_are_their_sound(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path, out = tmp_path / "dev.parquet", tmp_path / "out"
    bare = [noise(3), noise(4), None]
    held = [{"array": noise(n), "sampling_rate": 16_000, "path": "x.wav"} for n in range(2)]
    words = {"text": ["a", "b", "c"], "speaker": [7.0, float("nan"), 8.0]}
    parquet.write_table(arrow.table({"bare": bare, "nested": [bare] * 3} | words), path)
    refused(path, "parquet", out, "column bare is list", audio="bare")
    refused(path, "parquet", out, "does not say its Hz: give --rate", audio="bare")
    refused(path, "parquet", out, "rate=4000: must be from 8000", audio="bare", rate=4000)
    refused(path, "parquet", out, "needs sound files, {array, sampling_rate}", audio="nested")
    found = imports(path, "parquet", out, audio="bare", rate=16_000)["dev"]
    same(found["dev-0"], noise(3), "a", "7")
    same(found["dev-1"], noise(4), "b")
    assert found["dev-2"].duration == 0.0
    path = tmp_path / "test.parquet"
    parquet.write_table(arrow.table({"bare": bare, "audio": [*held, None]} | words), path)
    found = imports(path, "parquet", tmp_path / "structs")["test"]
    same(found["x"], noise(0), "a", "7")
    same(found["test-1"], noise(1), "b")  # its path is another's


def test_parquet_file_that_is_none_is_named(tmp_path):
    table_of(tmp_path / "train.parquet", spoken(4))
    content = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(content[:-30])
    refused(tmp_path, "parquet", tmp_path / "out", "train.parquet: is no parquet file")
    table_of(tmp_path / "a/train.parquet", spoken(1))
    refused(tmp_path, "parquet", tmp_path / "out", "split train is in several folders")


def test_import_refuses_what_makes_no_manifest(tmp_path):
    refused(tmp_path / "none", "nemo", tmp_path / "out", "none: is missing")
    refused(tmp_path, "jsonl", tmp_path / "out", "kind=jsonl: must be one of librispeech, kaldi")
    twice = [{"audio_filepath": "/a.wav", "text": "", "id": name} for name in "aba"]
    (tmp_path / "m.json").write_text("".join(json.dumps(row) + "\n" for row in twice))
    refused(tmp_path / "m.json", "nemo", tmp_path / "out", "m.json:3: id=a stands already at")
    refused(tmp_path / "m.json", "nemo", tmp_path / "out", "m.json:1: must be of its own")
    (tmp_path / "out/train.jsonl").write_text("{}\n")
    with pytest.raises(Mistake, match="holds train.jsonl already"):
        write_manifests.import_corpus(
            str(tmp_path / "m.json"), "nemo", epath.Path(tmp_path / "out")
        )


def test_place_of_a_source_is_absolute_and_of_a_bucket_as_it_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(absolute_path("corpus")) == f"{tmp_path}/corpus"
    assert str(absolute_path("gs://bucket/corpus")) == "gs://bucket/corpus"


def test_import_beside_its_sound_writes_paths_that_move_with_it(tmp_path):
    librispeech_tree(tmp_path / "root", "dev", 1)
    write_manifests.import_corpus(
        str(tmp_path / "root"), "librispeech", epath.Path(tmp_path / "root")
    )
    (tmp_path / "root").rename(tmp_path / "moved")
    heard = open_corpus(tmp_path / "moved", "dev")[0]
    assert np.array_equal(load_utterance_wave(heard), noise(0))


def test_splits_get_other_names_and_become_one(tmp_path):
    tables = {name: spoken(2) for name in ("train", "dev", "test")}
    commonvoice_tree(tmp_path / "de", tables)
    options = {"splits": ("train=dev", "held=test")}
    assert sorted(imports(tmp_path / "de", "commonvoice", tmp_path / "out", **options)) == [
        "held",
        "train",
    ]
