"""Command lines made at random end in one line: no traceback, no hang, nothing half-written.

They run in this process, up to where a command would begin to work: there it is refused.
"""

import contextlib
import io
import random
import re
import shutil
import socket

import pytest

from launch import cli
from launch.terminal import subcommands
from melllm_jax.errors import Mistake
from tests.support.fuzzing import COMMAND_LINES, SEED, outcome
from tests.support.runs import TINY, corpus, everything

# Where each command would begin what takes long, starts processes or asks the network.
BEGINNINGS = (
    "melllm_jax.sharding.make_mesh",
    "launch.runs.model_loader.make_mesh",
    "launch.bench.data_loading._stage_figures",
    "launch.commands.plan.plan_run",
    "launch.commands.plan.search_plans",
    "launch.commands.quickstart._run",
    "launch.commands.sweep.run.submit",
    "launch.commands.sweep.run.measure_matmul_rate",
    "launch.commands.data.export_tfds.export_dataset",
    "launch.evaluation.checkpoint_parity.compare",
    "data_pipelines.prepare.prepare_corpus._work_folder",
    "data_pipelines.synthetic.synthetic_shards.write_utterances",
    "data_pipelines.text.tokenizer_training.train_sentencepiece",
)
# A line of each command that means something; PATH, OUT and WORD are drawn.
LINES = (
    "train digits --data PATH --workdir OUT",
    "train digits --data PATH --workdir OUT --init PATH --data.augment.noises.path PATH",
    "train mel_llm_asr --data PATH=WORD --workdir OUT --text.tokenizer PATH --profile WORD",
    "quickstart --workdir PATH --fresh",
    "prepare PATH --out OUT --kind KIND --runner inline --tokenizer PATH",
    "data import PATH --out OUT --kind KIND --splits WORD",
    "data inspect PATH --out OUT --json",
    "data bench PATH --preset digits",
    "data tokenizer PATH --size WORD --out OUT",
    "data export-tfds PATH --out OUT --name WORD",
    "data speak OUT --train WORD --noise WORD WORD",
    "data speak OUT --text PATH --words WORD WORD --voices WORD --train WORD",
    "evaluate --run PATH --data PATH --split WORD",
    "evaluate --checkpoint PATH --text PATH --window WORD",
    "transcribe --run PATH PATH PATH",
    "generate --checkpoint PATH --file PATH --tokens WORD WORD",
    "convert import PATH OUT --lora WORD",
    "convert export PATH OUT --front WORD",
    "convert check PATH PATH --audio PATH",
    "logits --checkpoint PATH --tokens PATH --out OUT",
    "plan digits --topology WORD --slices WORD --search",
    "sweep run PATH --workdir OUT --data PATH --set WORD --topology WORD --dry-run",
    "sweep resume PATH",
    "sweep status PATH --once --json",
    "sweep cancel PATH",
    "sweep report PATH",
    "sweep cell PATH WORD",
    "scaling fit PATH --out OUT",
    "scaling predict PATH --flops WORD --json",
    "bench train digits",
    "bench decode digits --batch WORD",
    "bench checkpoint digits --folder PATH",
    "bench data digits --data PATH",
    "wer PATH PATH --json",
)
KINDS = ("librispeech", "kaldi", "nemo", "commonvoice", "parquet", "webdataset", "lhotse", "jsonl")
WORDS = (
    *("0", "1", "2", "-1", "1e21", "-0.5", "nan", "inf", "1" * 30, "0x10", "1_000", "", " ", "-"),
    *("true", "None", "train", "v5p:4x4x4", "v5e:1x1", "h100:0x8", "optim.lr=1e-3", "model.d=x"),
    *("=", ":", "3:5", "5:3", "a=b=c", "0:", "drop", "keep", "é", "\n", "\udcff", "%s", "{}", "~"),
    *("../..", "/", "x" * 5000, "file:///etc", "gs://b/x", "nope://x", "--", "--json", "-h"),
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A folder of what a path may turn out to be, and the paths of all of it."""
    folder = tmp_path_factory.mktemp("paths")
    corpus(folder / "corpus", 2)
    found = {
        "text": b"a\tone two\nb\tthree\n",
        "empty": b"",
        "bytes": bytes(range(256)) * 5,
        "some.json": b'{"a": [1, 2], "b": NaN}',
        "spec.py": b"def cells():\n    return [{'preset': 'digits', 'optim.steps': 3}]\n",
        "bad.py": b"def cells(:\n",
        "runs.csv": b"params,tokens,loss\n1e6,2e7,3.5\n2e6,4e7,x\n",
        "array.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<i4'",
        "config.json": b"[]",
    }
    for name, content in found.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    (folder / "lang=en").mkdir()
    (folder / "run").mkdir()
    (folder / "run/run.json").write_text("{}")
    (folder / "run/config.json").write_text('{"model_type": "phi3"}')
    (folder / "run/sweep.json").write_text('{"version": 1}')
    (folder / "link").symlink_to(folder / "corpus")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "closed").mkdir(mode=0)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
    names = [path.name for path in folder.iterdir()]
    more = ["missing", "missing/deeper", "text/below", "n" * 300, "corpus/train.jsonl"]
    yield folder, [str(folder / name) for name in (*names, *more)] + ["", "."]
    (folder / "closed").chmod(0o700)


def beginnings(monkeypatch):
    """Refuses what takes long, and what is not this machine's."""

    def refuse(*_, **__):
        raise Mistake("stub=1: no command of this test begins to work")

    for name in BEGINNINGS:
        monkeypatch.setattr(name, refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def flags():
    """The flags of every command, by its first words, as its help has them."""
    found = {}
    for line in LINES:
        words = line.split()
        count = 2 if isinstance(subcommands.COMMANDS[words[0]], subcommands.CommandGroup) else 1
        preset = words[count] in ("digits", "mel_llm_asr")
        command = tuple(words[: count + preset])
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            cli.main([*command, "--help"])
        found[line] = sorted(set(re.findall(r"(?<![\w.-])--[a-z][\w.-]*", said.getvalue())))
    return found


class Lines:
    """An endless stream of command lines from a seed."""

    def __init__(self, seed, paths, out, known):
        self._draw, self._paths, self._out, self._known = random.Random(seed), paths, out, known

    def __next__(self):
        draw = self._draw
        line = draw.choice(LINES)
        words = [self._filled(word) for word in line.split()]
        for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
            at = draw.randrange(1, len(words) + 1)
            how = draw.randrange(6)
            if how == 0:  # missing
                del words[at - 1 : at]
            elif how == 1:  # doubled
                words[at:at] = words[max(at - draw.choice((1, 2)), 1) : at]
            elif how == 2:  # of the wrong type
                words[at : at + 1] = [self._value()]
            elif how == 3 and self._known[line]:  # another flag of the command
                words += [draw.choice(self._known[line]), self._value()]
            elif how == 4:  # misspelt
                words[at - 1] = words[at - 1][:-1] + draw.choice("x-=. ")
            else:
                words[at:at] = draw.choice((TINY[:8], [self._value()], ["--model.front", "none"]))
        return words

    def _value(self):
        return self._draw.choice((*WORDS, self._draw.choice(self._paths), self._out))

    def _filled(self, word):
        draws = {"PATH": self._paths, "OUT": (self._out,), "WORD": WORDS, "KIND": KINDS}
        for name, choices in draws.items():
            if name in word:
                return word.replace(name, self._draw.choice(choices))
        return word


@pytest.mark.parametrize(
    ("seed", "count"),
    [(0, 120), pytest.param(SEED, COMMAND_LINES, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_fuzzed_command_lines_end_in_a_line_and_write_nothing(
    paths, tmp_path, monkeypatch, capsys, seed, count
):
    known = flags()  # which imports what is to be replaced
    beginnings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder, names = paths
    lines = Lines(seed, names, str(tmp_path / "out"), known)
    there = everything(folder)
    for number in range(count):
        words = next(lines)
        status, said = outcome(words, capsys)
        what = f"seed {seed}, line {number}: melllm {words}: {status}, {said}"
        assert status in (0, 1, 2), what
        assert "Traceback" not in said, what
        if status:  # an empty folder may be left, but nothing that could be taken for a result
            last = said.rstrip("\n").rpartition("\n")[2]
            assert last.startswith("melllm"), what
            assert not everything(tmp_path), what
            assert everything(folder) == there, what
        else:  # what it was asked to write
            there = everything(folder)
            for path in tmp_path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
