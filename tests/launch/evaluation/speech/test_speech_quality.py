"""Speech is scored once, by a small Whisper and judges that stand in; what cannot be is refused."""

import contextlib
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from launch import api, cli
from launch.evaluation.speech import judge_process, measured_scores
from launch.evaluation.speech.cepstral_distortion import VARIANT
from launch.evaluation.speech.speech_quality import default_folder
from melllm_jax.evaluation.wer import score_transcripts
from tests.support import judge_packages, phi_files, whisper_files
from tests.support.corpora import write_corpus
from tests.support.runs import (
    compiled_once,
    compiled_quickly,
    everything,
    generated_once,
    refused,
)

pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
once = pytest.fixture(scope="module", autouse=True)(compiled_once)
held = pytest.fixture(scope="module", autouse=True)(generated_once)
quick = pytest.fixture(scope="module", autouse=True)(compiled_quickly)
NAMES = ("a", "b", "c")
PEAKS = {"a": 0.5, "b": 0.25, "c": 0.75}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A Whisper of random weights imported, `ours`, and the packages of the judges."""
    folder = tmp_path_factory.mktemp("speech")
    whisper_files.write(folder / "hf")
    phi_files.told("import", folder / "hf", folder / "ours")
    judge_packages.write(folder / "packages")
    return folder


@pytest.fixture(scope="module")
def made(models):
    """A manifest of three spoken files, scored; the first two have a recording, one the voice."""
    folder = models / "made"
    folder.mkdir()
    for name in NAMES:
        write_sound(folder / f"{name}.wav", PEAKS[name])
    rows = [{"id": x, "text": f"say {x} again", "audio_filepath": f"{x}.wav"} for x in NAMES]
    rows[0] |= {"reference": "a.wav", "voice": "a.wav", "flags": {"stopped": False}}
    rows[1] |= {"reference": "a.wav"}
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setenv("PYTHONPATH", str(models / "packages"))
        assert cli.main(words(folder, models)) == 0
    assert said.getvalue().startswith("hearing 3 of 3 files\n")
    return folder


@pytest.fixture
def place(made, models, tmp_path, monkeypatch):
    """The same sounds in a folder of their own, heard and not yet judged."""
    monkeypatch.setenv("PYTHONPATH", str(models / "packages"))
    for path in made.glob("*.*"):
        shutil.copy(path, tmp_path)
    kept = tmp_path / "set-scores/measured/speech.jsonl"
    kept.parent.mkdir(parents=True)
    lines = (made / "set-scores/measured/speech.jsonl").read_text().splitlines(keepends=True)
    kept.write_text("".join(line for line in lines if '"text"' in line))
    return tmp_path


def write_sound(path, peak):
    wave = np.random.default_rng(round(100 * peak)).uniform(-peak, peak, 8_000)
    wave[0] = peak  # what the judges that stand in judge by
    soundfile.write(path, wave, 16_000, subtype="FLOAT")


def words(place, models, *more):
    judge = ["--judge", str(models / "ours"), "--batch", "8"]
    return ["evaluate", "--speech", str(place / "set.jsonl"), *judge, *more]


def scored(place, models, capsys, *more, status=0):
    assert cli.main(words(place, models, "--json", *more)) == status
    said = capsys.readouterr()
    scores = json.loads(said.out)
    assert json.loads((place / "set-scores/scores.json").read_text()) == scores
    return scores, said.err


def test_every_score_is_there_with_what_gave_it(made, models):
    scores = json.loads((made / "set-scores/scores.json").read_text())
    rows = scores["rows"]
    heard = api.load(models / "ours").transcribe([str(made / f"{x}.wav") for x in NAMES], batch=8)
    assert [row["hypothesis"] for row in rows] == [" ".join(text.splitlines()) for text in heard]
    texts = [row["text"] for row in rows]
    pooled = score_transcripts(texts, [row["hypothesis"] for row in rows], "whisper")
    assert {**scores["wer"], "interval": None} == {**vars(pooled), "interval": None}
    assert sum(row["errors"] for row in rows) == round(pooled.wer * pooled.words)
    assert scores["wer"]["interval"]["low"] <= pooled.wer <= scores["wer"]["interval"]["high"]
    assert scores["cer"]["characters"] == sum(map(len, texts))
    assert scores["cer"]["cer"] == scores["cer"]["errors"] / scores["cer"]["characters"]
    assert [row["mos"] for row in rows] == pytest.approx([3.0, 2.0, 4.0])
    assert (scores["mos"]["by"], scores["mos"]["mean"]) == (judge_packages.MOS, pytest.approx(3))
    assert (scores["mos"]["interval"]["low"], scores["mos"]["files"]) == (pytest.approx(2), 3)
    close = [1, np.cos(0.25), None]
    assert [row["similarity"] for row in rows] == pytest.approx(close)
    assert scores["similarity"]["files"] == 2
    assert rows[0]["mcd"] == 0 < rows[1]["mcd"] and rows[2]["mcd"] is None
    assert scores["mcd"]["by"] == VARIANT
    assert rows[0]["failures"]["no_stop"] == 0.5 and rows[0]["flags"] == {"stopped": False}
    assert "no_stop" not in rows[1]["failures"]
    failures = scores["failures"]
    assert (failures["no_stop"], failures["rules"]["silent_share"]) == (1, 0.75)
    assert scores["judge"]["folder"] == str(models / "ours")


def test_the_table_has_each_score_and_its_files(place, models, capsys):
    assert cli.main(words(place, models, "--failures.spare", "0", "--failures.pace", "0.01")) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    heads = [line.split("  ")[0].strip() for line in lines]
    assert heads == [
        "score",
        "WER",
        "CER",
        "MOS",
        "speaker similarity",
        "MCD, dB",
        "failures",
        *heads[7:],
    ]
    assert lines[3].split()[:3] == ["MOS", "3.00", "2.00"]
    assert lines[3].endswith(judge_packages.MOS)
    assert [lines[7].split()[:3], lines[7].split()[4]] == [["no", "stop", "100.0%"], "3/3"]
    assert said.err.splitlines()[-1] == f"scores: {place}/set-scores/scores.json"


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again_unless_the_sound_changes(
    place, models, capsys, monkeypatch
):
    first, _ = scored(place, models, capsys)
    asked = list[int]()
    ask, load = judge_process.JudgeProcess.ask, measured_scores.load_recognizer
    count = lambda judge, wave, voice=None: (asked.append(judge.name), ask(judge, wave, voice))[1]
    monkeypatch.setattr(judge_process.JudgeProcess, "ask", count)
    monkeypatch.setattr(
        measured_scores, "mel_cepstral_distortion", lambda *_: asked.append("mcd") or 1.0
    )
    monkeypatch.setattr(
        measured_scores, "load_recognizer", lambda *how: asked.append("heard") or load(*how)
    )
    (place / "b.wav").rename(place / "other.wav")
    text = (place / "set.jsonl").read_text().replace("b.wav", "other.wav")
    (place / "set.jsonl").write_text(text)
    assert scored(place, models, capsys)[0] == first
    assert asked == []
    write_sound(place / "other.wav", 0.35)
    again, said = scored(place, models, capsys)
    assert asked == ["heard", "mos", "similarity", "mcd"]
    assert "hearing 1 of 3 files" in said
    assert again["rows"][0] == first["rows"][0]
    assert (again["rows"][1]["mos"], again["rows"][1]["mcd"]) == (pytest.approx(2.4), 1.0)
    text = text.replace('"reference": "a.wav"}', '"reference": "c.wav"}')
    (place / "set.jsonl").write_text(text)
    last, _ = scored(place, models, capsys)
    assert asked[4:] == ["similarity", "mcd"]
    assert last["rows"][1]["similarity"] == pytest.approx(np.cos(0.75 - 0.35))


def test_what_was_measured_before_an_end_amid_it_is_kept(place, models, capsys, monkeypatch):
    ask, asked = judge_process.JudgeProcess.ask, []

    def ask_twice(judge, wave, voice=None):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(judge.name)
        return ask(judge, wave, voice)

    monkeypatch.setattr(judge_process.JudgeProcess, "ask", ask_twice)
    assert cli.main(words(place, models)) == 130
    assert not (place / "set-scores/scores.json").exists()
    again = []
    monkeypatch.setattr(
        judge_process.JudgeProcess,
        "ask",
        lambda judge, *sounds: again.append(judge.name) or ask(judge, *sounds),
    )
    assert "hearing 0 of 3 files" in scored(place, models, capsys)[1]
    assert again == ["mos", "similarity", "similarity"]


def test_a_judge_that_dies_costs_no_other_score_and_is_a_fault(place, models, capsys):
    write_sound(place / "b.wav", 0.99)
    scores, said = scored(place, models, capsys, status=1)
    why = "mos: its process was killed by SIGKILL"
    assert said.splitlines()[-1] == f"melllm evaluate: error: {why}"
    assert scores["mos"]["error"] == why
    assert [row["mos"] for row in scores["rows"]] == [pytest.approx(3), None, None]
    assert scores["similarity"]["files"] == 2 and "wer" in scores
    write_sound(place / "b.wav", 0.25)
    assert "error" not in scored(place, models, capsys)[0]["mos"]


def test_without_its_package_a_score_is_left_out_and_said(place, models, capsys, monkeypatch):
    shutil.copytree(models / "packages", place / "packages")
    shutil.rmtree(place / f"packages/{judge_packages.MOS.replace(' ', '-')}.dist-info")
    monkeypatch.setenv("PYTHONPATH", str(place / "packages"))
    monkeypatch.setattr(judge_process, "INSTALL", "pip install it")
    assert cli.main(words(place, models)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "mos: distillmos is not installed: pip install it"


def test_a_file_without_sound_and_one_too_short_are_failures_and_no_end(place, models, capsys):
    soundfile.write(place / "b.wav", np.zeros(0), 16_000)
    soundfile.write(place / "c.wav", np.full(50, 0.5), 16_000, subtype="FLOAT")
    rows = scored(place, models, capsys, "--normalizer", "none")[0]["rows"]
    for row in rows[1:]:
        assert (row["hypothesis"], row["errors"]) == ("", 3)
        assert row["failures"] == {"silence": 1.0, "cut": 3}
    assert (rows[1]["mos"], rows[1]["mcd"], rows[2]["mos"]) == (None, None, pytest.approx(3))


def test_recordings_of_a_corpus_are_scored_beside_it(place, models, capsys):
    write_corpus(place / "spoken", 2, split="dev")
    more = ["--split", "dev", "--speech", str(place / "spoken")]
    assert cli.main(words(place, models, *more, "--json")) == 0
    scores = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in scores["rows"]] == ["id0", "id1"]
    assert not {"mcd", "similarity"} & scores.keys()
    assert (place / "spoken-scores/scores.json").exists()
    assert default_folder(".") == pathlib.Path.cwd().with_name(f"{pathlib.Path.cwd().name}-scores")


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["--judge", "PLACE"], "judge=PLACE: holds no Whisper, as `melllm convert import` does"),
        (["--judge", ""], "judge: --speech needs the folder of the Whisper that hears it"),
        (["--speech", "PLACE/none.jsonl"], "PLACE/none.jsonl: is no file"),
        (["--speech", "PLACE/empty.jsonl"], "speech=PLACE/empty.jsonl: has 0 lines"),
        (["--speech", "PLACE/gone.jsonl"], "PLACE/gone.jsonl line 1: PLACE/no.wav: no such file"),
        (["--speech", "PLACE/mute.jsonl"], "none of 1 references has a word"),
        (["--speech", "PLACE"], "split=test: PLACE has "),
        (["--batch", "0"], "batch=0: must be positive"),
        (["--run", "PLACE"], "run=PLACE: does not go with --speech"),
        (["--text", "PLACE"], "text=PLACE: does not go with --speech"),
        (["--failures.cut-share", "2"], "failures.cut_share=2.0: must lie in [0, 1]"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_cannot_be_scored_is_one_line_and_nothing_is_written(
    place, models, capsys, more, rule
):
    (place / "empty.jsonl").write_text("\n")
    row = {"id": "a", "text": "one", "audio_filepath": "no.wav"}
    (place / "gone.jsonl").write_text(json.dumps(row))
    (place / "mute.jsonl").write_text(json.dumps(row | {"text": "...", "audio_filepath": "a.wav"}))
    before = everything(place)
    given = [word.replace("PLACE", str(place)) for word in more]
    assert rule.replace("PLACE", str(place)) in refused(words(place, models, *given), capsys)
    assert everything(place) == before


def test_what_is_of_speech_needs_speech_and_all_else_a_run(models, capsys):
    assert "judge=x: goes with --speech" in refused(["evaluate", "--judge", "x"], capsys)
    assert "missing --run DIR" in refused(["evaluate", "--data", "x"], capsys)
