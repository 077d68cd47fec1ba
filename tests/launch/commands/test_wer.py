"""`melllm wer` reads both forms of file, matches by id, and names what is wrong in one line."""

import json

import pytest

from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.reject import Reject
from launch.cli import main as melllm
from launch.commands import transcribe, wer
from launch.evaluation import score_split
from launch.runs.transcriber import Transcript
from melllm_jax.errors import Mistake

pytest.importorskip("jiwer", reason="the extra eval brings the scorer")


@pytest.fixture
def file(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_wer_of_json_lines_against_tabs_in_another_order_matches_by_id(file, capsys):
    ref = file("ref", '{"id": "u1", "text": "a b c", "speaker": 3}\n{"id": "u2", "text": "d"}\n')
    hyp = file("hyp", "u2\td\nu1\ta x c\n")
    assert wer.main([ref, hyp, "--normalizer", "none", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["wer"], shown["substitutions"], shown["words"]) == (0.25, 1, 4)
    assert shown["normalizer"] == "none" and shown["scorer"].startswith("jiwer ")


def test_wer_without_json_prints_percent_counts_and_versions(file, capsys):
    ref = file("ref", "u1\tTwo cats.\nu2\tHmm.\n")
    hyp = file("hyp", "u1\t2 dogs\nu2\tno\n")
    assert wer.main([ref, hyp]) == 0
    shown = capsys.readouterr().out
    assert "WER 50.00 %: 1 substituted, 0 deleted, 0 inserted; 2 words in 1 utterances" in shown
    assert "1 left out" in shown and "whisper-normalizer 0." in shown


def test_wer_of_an_empty_hypothesis_line_counts_deletions(file, capsys):
    assert wer.main([file("ref", "u1\ta b\n"), file("hyp", "u1\t\n"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deletions"] == 2


def test_transcripts_with_mark_of_byte_order_windows_ends_and_blank_lines_are_read(tmp_path):
    (tmp_path / "ref").write_bytes(b"\xef\xbb\xbfu1\ta b\r\n\r\n \t \nu2\tc\r\n\t")
    assert wer.read_transcripts(tmp_path / "ref") == {"u1": "a b", "u2": "c"}


def test_wer_reads_what_evaluate_keeps_and_leaves_out_what_it_rejected(file, capsys):
    hypotheses = [EvalExample("u1", "a b", 1.0, {})], [Transcript("u1", "a\nb", 1.0, False, True)]
    lost = [Reject(0, "u2", "missing", "u2.flac: no such file")]
    hyp = file("hyp", score_split.hypothesis_lines(*hypotheses, lost))
    ref = file("ref", "u1\ta b\nu2\tc\n")
    assert wer.main([ref, hyp, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["wer"], shown["words"], shown["rejected"]) == (0, 2, 1)
    assert wer.main([ref, hyp]) == 0
    assert "1 left out, their sound was rejected" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_wer_reads_what_transcribe_prints_whatever_breaks_lines(file, capsys, monkeypatch, more):
    breaks = "a\nb\r\nc\rd\ve\ff\x1cg\x1dh\x1ei\x85j\u2028k\u2029l\tm"
    found = [Transcript("u1", breaks, 1.0, True, False), Transcript("u2", "n", 1.0, False, True)]
    monkeypatch.setattr(transcribe, "transcribe_files", lambda *_: found)
    assert transcribe.main(["--run", "run", "u1", "u2", *more]) == 0
    said = capsys.readouterr()
    if not more:
        assert said.out == "u1\ta b c d e f g h i j k l\tm\nu2\tn\n"
        assert said.err == "u1: stopped, because it repeated itself\nu2: cut off\n"
    ref = file("ref", "u1\ta b c d e f g h i j k l m\nu2\tn\n")
    assert wer.main([ref, file("hyp", said.out), "--normalizer", "none"]) == 0
    assert "WER 0.00 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text,words",
    [
        ("u1\ta\nonly words\n", "line 2: is neither JSON nor id, tab, text: 'only words'"),
        ('{"id": "u1", "text"\n', "line 1: is no JSON"),
        ('{"id": "u1"}\n', "line 1: text=None must be a string"),
        ('{"id": 1, "text": "a"}\n', "line 1: id=1 must be a string"),
        ("u1\ta\nu1\tb\n", "line 2: id 'u1' comes twice"),
    ],
)
def test_transcripts_with_a_bad_line_name_file_line_and_rule(file, text, words):
    path = file("ref", text)
    with pytest.raises(Mistake) as error:
        wer.main([path, path])
    assert words in str(error.value) and path in str(error.value)
    assert "\n" not in str(error.value)


def test_transcripts_that_are_no_text_file_name_it(tmp_path):
    (tmp_path / "latin").write_bytes("u1\tcafé".encode("latin-1"))
    for path, words in (
        (tmp_path / "none", "is no file"),
        (tmp_path, "is no file"),
        (tmp_path / "latin", "is no UTF-8 text: .* at byte 6"),
    ):
        with pytest.raises(Mistake, match=words):
            wer.read_transcripts(path)


def test_wer_of_files_with_other_ids_counts_them_and_names_the_first(file):
    many = file("many", "".join(f"u{number}\ta\n" for number in range(9)))
    one = file("one", "u5\ta\n")
    with pytest.raises(Mistake, match=r"many: 8 ids are not in .*one: u0, u1, u2, …$"):
        wer.main([many, one])
    with pytest.raises(Mistake, match=r"many: 8 ids are not in .*one: u0, u1, u2, …$"):
        wer.main([one, many])


def test_wer_from_the_command_line_ends_with_the_status_of_a_mistake(file, capsys):
    ref = file("ref", "u1\ta\n")
    assert melllm(["wer", ref]) == 2
    assert melllm(["wer", ref, ref, "--normalizer", "mine"]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 2 and "Traceback" not in told
    assert melllm(["wer", ref, ref]) == 0
