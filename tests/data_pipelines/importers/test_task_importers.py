"""Corpora that ask about sound: small trees in their layout, imported and read as tasks."""

import json

import pytest
from scipy.io import wavfile

from data_pipelines.audio.file_io import to_flac
from data_pipelines.corpora.corpus import load_utterance_wave
from data_pipelines.text.turns import CLIP
from tests.data_pipelines.importers.test_importers import imports, noise, refused


def write_wav(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, 16_000, (noise(number) * 32768).astype("<i2"))


def asked(heard):
    """What a row asks of one clip: the instruction, the answers, the options, the metric."""
    user, assistant = heard.turns
    clip, instruction = user.parts
    assert (clip, assistant.words) == (CLIP, heard.text)
    assert not heard.flaw
    assert load_utterance_wave(heard).size
    return instruction, heard.answers, heard.options, heard.metric


def esc50_tree(root, header="filename,fold,target,category,esc10,src_file,take"):
    lines = ["1-1-A-0.wav,1,0,dog,True,1,A", "1-2-A-1.wav,2,1,vacuum_cleaner,False,2,A"]
    for number, line in enumerate(lines):
        write_wav(root / "audio" / line.split(",")[0], number)
    (root / "meta").mkdir()
    (root / "meta/esc50.csv").write_text("\n".join([header, *lines]) + "\n")


def test_esc50_folds_ask_for_one_of_the_categories(tmp_path):
    esc50_tree(tmp_path / "ESC-50")
    found = imports(tmp_path / "ESC-50", "esc50", tmp_path / "out")
    assert list(found) == ["fold1", "fold2"]
    heard = found["fold2"]["1-2-A-1"]
    instruction, answers, options, metric = asked(heard)
    assert "sound" in instruction
    assert (answers, metric) == (("vacuum cleaner",), "choice")
    assert options == ("dog", "vacuum cleaner")
    assert (heard.task, heard.source, heard.duration > 0) == ("esc50", "ESC-50", True)


def test_esc50_without_its_table_or_a_column_is_refused(tmp_path):
    refused(tmp_path, "esc50", tmp_path / "out", "has no meta/esc50.csv")
    esc50_tree(tmp_path / "tree", header="filename,fold,target,label,esc10,src_file,take")
    refused(tmp_path / "tree", "esc50", tmp_path / "out", "has no column category")


EVALUATION = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]
C-E2:\tExcited;\t()

[14.0 - 15.0]\tSes01F_impro01_M002\txxx\t[2.5000, 2.5000, 2.5000]
"""


def iemocap_tree(root, text=EVALUATION):
    folder = root / "Session1/dialog/EmoEvaluation"
    (folder / "Categorical").mkdir(parents=True)
    (folder / "Ses01F_impro01.txt").write_text(text)
    (folder / "._Ses01F_impro01.txt").write_bytes(b"\0\5\26\7")
    for number, turn in enumerate(("F000", "M001")):
        name = f"Ses01F_impro01_{turn}.wav"
        write_wav(root / "Session1/sentences/wav/Ses01F_impro01" / name, number)


def test_iemocap_turns_have_one_of_four_emotions(tmp_path):
    iemocap_tree(tmp_path / "IEMOCAP")
    rows = imports(tmp_path / "IEMOCAP", "iemocap", tmp_path / "out")["session1"]
    assert {name: (x.text, x.speaker) for name, x in rows.items()} == {
        "Ses01F_impro01_F000": ("neutral", "Ses01F"),
        "Ses01F_impro01_M001": ("happy", "Ses01M"),
    }
    instruction, _, options, metric = asked(rows["Ses01F_impro01_M001"])
    assert instruction.endswith("Answer with one of: angry; happy; neutral; sad.")
    assert (options, metric) == (("angry", "happy", "neutral", "sad"), "choice")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("[1.0 - 2.0]\tSes01F_impro01_F000\tcat\t[1, 1, 1]\n", "emotion cat: must be one of ang"),
        ("[1.0 - x]\tSes01F_impro01_F000\n", "must be [START - END], a turn and its emotion"),
    ],
)
def test_iemocap_line_that_is_wrong_is_named(tmp_path, line, rule):
    refused(tmp_path, "iemocap", tmp_path / "out", "has no Session1/dialog/EmoEvaluation")
    iemocap_tree(tmp_path / "tree", line)
    refused(tmp_path / "tree", "iemocap", tmp_path / "out", f"Ses01F_impro01.txt:1: {rule}")


def test_gtzan_folds_are_neighbours_and_ask_for_the_genre(tmp_path):
    for number in (0, 9, 10):
        write_wav(tmp_path / f"gtzan/genres_original/blues/blues.000{number:02d}.wav", number)
    write_wav(tmp_path / "gtzan/genres_original/rock/rock.00000.wav")
    found = imports(tmp_path / "gtzan", "gtzan", tmp_path / "out")
    assert {split: list(rows) for split, rows in found.items()} == {
        "fold1": ["blues.00000", "blues.00009", "rock.00000"],
        "fold2": ["blues.00010"],
    }
    _, answers, options, metric = asked(found["fold2"]["blues.00010"])
    assert (answers, options, metric) == (("blues",), ("blues", "rock"), "choice")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "gtzan", tmp_path / "no", "has no genres_original/GENRE/")


TABLE = (
    "client_id\tpath\tsentence\tage\tgender\n"
    "s1\ta.flac\thi\ttwenties\tfemale_feminine\n"
    "s2\tb.flac\tho\t\tmale\n"
    "s3\tc.flac\the\tfourties\tother\n"
)


def commonvoice_tree(root, table=TABLE):
    (root / "clips").mkdir(parents=True)
    for number, name in enumerate("abc"):
        (root / f"clips/{name}.flac").write_bytes(to_flac(noise(number)))
    (root / "test.tsv").write_text(table)


def test_gender_and_age_are_of_speakers_who_tell_them(tmp_path):
    commonvoice_tree(tmp_path / "en")
    genders = imports(tmp_path / "en", "gender", tmp_path / "genders")["test"]
    assert {name: x.text for name, x in genders.items()} == {"a": "female", "b": "male"}
    assert asked(genders["a"])[1:] == (("female",), ("female", "male"), "choice")
    ages = imports(tmp_path / "en", "age", tmp_path / "ages")["test"]
    assert {name: x.text for name, x in ages.items()} == {"a": "25", "c": "45"}
    assert asked(ages["a"])[1:] == (("25",), (), "mae")
    assert (ages["a"].speaker, ages["a"].task) == ("s1", "age")


def test_age_that_is_no_decade_and_missing_columns_are_named(tmp_path):
    commonvoice_tree(tmp_path / "en", TABLE.replace("twenties", "young"))
    refused(tmp_path / "en", "age", tmp_path / "out", "test.tsv:2: age=young: must be one of teens")
    commonvoice_tree(tmp_path / "de", TABLE.replace("\tgender", "\tsex"))
    refused(tmp_path / "de", "gender", tmp_path / "out", "test.tsv:2: has no column gender")


QUESTION = {
    "id": "q1",
    "audio_id": "./test-mini-audios/x.wav",
    "question": "What is heard?",
    "choices": ["a bell", "a cat"],
    "answer": "a cat",
    "task": "sound",
}


def test_mmau_question_is_asked_with_its_choices(tmp_path):
    write_wav(tmp_path / "mmau/test-mini-audios/x.wav")
    (tmp_path / "mmau/mmau-test-mini.json").write_text(json.dumps([QUESTION]))
    heard = imports(tmp_path / "mmau", "mmau", tmp_path / "out")["test-mini"]["q1"]
    said = "What is heard? Answer with one of: a bell; a cat."
    assert asked(heard) == (said, ("a cat",), ("a bell", "a cat"), "choice")
    assert heard.task == "mmau-sound"


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"answer": ""}, "item 0: lacks answer"),
        ({"answer": "a dog"}, "item 0: answer='a dog': must be one of a bell, a cat"),
        ({"choices": "a bell"}, "item 0: choices='a bell': must be a list of texts"),
    ],
)
def test_mmau_question_that_is_wrong_is_named(tmp_path, fields, rule):
    (tmp_path / "mmau-test.json").write_text(json.dumps([QUESTION | fields]))
    refused(tmp_path, "mmau", tmp_path / "out", rule)


@pytest.mark.parametrize("as_lines", [False, True])
def test_spoken_questions_in_json_hold_any_of_their_answers(tmp_path, as_lines):
    write_wav(tmp_path / "qa/audio/q.wav")
    rows = [
        {"question_audio": "audio/q.wav", "answers": ["Paris", "the city of Paris"]},
        {"question_audio": {"path": "audio/q.wav"}, "answer": {"text": ["7"]}, "id": "n"},
    ]
    text = "\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows)
    (tmp_path / f"qa/test.json{'l' * as_lines}").write_text(text)
    found = imports(tmp_path / "qa", "spoken-qa", tmp_path / "out")["test"]
    assert list(found) == ["test-0", "n"]
    said = "Answer the question in the recording."
    assert asked(found["test-0"]) == (said, ("Paris", "the city of Paris"), (), "contains")
    assert found["n"].text == "7"


@pytest.mark.parametrize("answer", [1, "B", "four"])
def test_spoken_mmlu_in_parquet_is_a_choice_by_text_letter_or_number(tmp_path, answer):
    arrow = pytest.importorskip("pyarrow", reason="the extra parquet brings it")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {
        "question_audio": {"bytes": to_flac(noise(1)), "path": "q.flac"},
        "choices": ["three", "four"],
        "answer": answer,
        "subject": "algebra",
    }
    (tmp_path / "mmlu").mkdir()
    parquet.write_table(
        arrow.Table.from_pylist([row]), tmp_path / "mmlu/test-00000-of-00001.parquet"
    )
    found = imports(tmp_path / "mmlu", "spoken-qa", tmp_path / "out")["test"]
    (heard,) = found.values()
    assert asked(heard)[1:] == (("four",), ("three", "four"), "choice")
    assert (heard.task, heard.duration > 0) == ("spoken-qa-algebra", True)


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"audio": "q.wav"}, "test.jsonl:1: lacks answers or answer or target: has audio"),
        ({"audio": "q.wav", "answers": []}, "test.jsonl:1: instruction="),
        ({"audio": 5, "answer": "a"}, "test.jsonl:1: audio=5: must be a path"),
        ({"answer": "a"}, "test.jsonl:1: lacks question_audio or audio"),
        ({"audio": "q.wav", "answer": "C", "choices": ["x", "y"]}, "answer='C': must be one of x"),
    ],
)
def test_spoken_question_that_is_wrong_is_named(tmp_path, row, rule):
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    refused(tmp_path, "spoken-qa", tmp_path / "out", rule)
