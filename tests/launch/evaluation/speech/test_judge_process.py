"""Judges in processes of their own, by packages that stand in for theirs: answers, and ends."""

import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest

from launch.evaluation.speech.judge_process import JudgeAnswer, JudgeError, open_judge
from tests.support import judge_packages

WAVE = np.array([0.0, 0.5, -0.75, 0.25], np.float32)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return judge_packages.write(tmp_path_factory.mktemp("judges") / "packages")


@pytest.fixture
def stand_ins(packages, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(packages))


def installed(name):
    return any(True for _ in importlib.metadata.distributions(name=name))


def test_one_process_judges_many_sounds_and_one_that_cannot_be_costs_no_other(stand_ins):
    with open_judge("mos") as judge:
        assert (judge.name, judge.by) == ("mos", judge_packages.MOS)
        assert judge.ask(WAVE) == JudgeAnswer(3.0)
        assert judge.ask(0 * WAVE) == JudgeAnswer(None, "cannot judge silence")
        assert judge.ask(WAVE * np.nan) == JudgeAnswer(None, "the score is nan")
        assert judge.ask(0.5 * WAVE) == JudgeAnswer(2.0)
    assert judge._process.returncode is not None


def test_similarity_is_the_cosine_of_two_voices(stand_ins):
    with open_judge("similarity") as judge:
        assert judge.by == judge_packages.SIMILARITY
        assert judge.ask(WAVE, WAVE).value == pytest.approx(1)
        assert judge.ask(WAVE, 0.5 * WAVE).value == pytest.approx(np.cos(0.25))
        assert judge.ask(WAVE, 0 * WAVE) == JudgeAnswer(None, "no voice is heard in it")


@pytest.mark.parametrize(
    ("peak", "why"),
    [
        (1.0, "mos: its process was killed by SIGKILL"),
        (0.92, "mos: its process ended with status 1: out of memory"),
    ],
)
def test_a_judge_that_dies_is_an_error_in_a_line(stand_ins, peak, why):
    with open_judge("mos") as judge, pytest.raises(JudgeError) as dead:
        judge.ask(np.array([peak], np.float32))
    assert (str(dead.value), dead.value.missing) == (why, False)


def test_a_package_that_does_not_load_is_told_by_its_last_words(packages, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{packages}")
    with open_judge("mos") as judge, pytest.raises(JudgeError, match=r"libtorch.so: cannot open$"):
        judge.ask(WAVE)


@pytest.mark.skipif(installed("distillmos"), reason="distillmos is installed")
def test_a_package_that_is_not_installed_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(JudgeError) as missing, open_judge("mos"):
        pass
    assert missing.value.missing
    assert str(missing.value).startswith("mos: distillmos is not installed: pip install ")


def test_a_python_that_is_none_is_an_error_in_a_line():
    with (
        pytest.raises(JudgeError, match=r"^mos: nowhere/python cannot be run: No such file"),
        open_judge("mos", "nowhere/python"),
    ):
        pass


def test_judges_import_nothing_of_ours_and_nothing_of_ours_imports_torch():
    names = "[x for x in sys.modules if x.partition('.')[0] in ('jax', 'melllm_jax', 'torch')]"
    code = f"import sys, launch.evaluation.speech.torch_judges; print({names})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
