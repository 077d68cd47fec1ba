"""One measurement of one system: a `melllm evaluate` in a process of its own, done once.

What must hold: no other measurement runs beside it, and none before it leaves memory behind, so
that speed and peak are its own. `evaluate` writes its summary last and whole: where that lies under
the name of the same arguments, weights and data, the measurement is done.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

from launch.evaluation.system import System
from melllm_jax import __version__
from melllm_jax.errors import Fault
from melllm_jax.json_text import parse_json

ROOT = pathlib.Path(__file__).parents[2]
FOLDER, LOCK = "measured", "lock"


@dataclasses.dataclass(frozen=True)
class Material:
    """What systems are measured on."""

    data: str  # folder of a corpus
    split: str
    digest: str  # of the split


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A system on a material at a batch size."""

    system: System
    digests: Sequence[str]  # of its weights
    material: Material
    batch: int
    flags: Sequence[str]  # further ones of evaluate

    @property
    def words(self) -> list[str]:
        """The words after `melllm evaluate`, but for where its files go."""
        llm = ["--llm", self.system.llm] if self.system.llm else []
        material = ["--data", self.material.data, "--split", self.material.split]
        shape = ["--batch", str(self.batch)]
        return ["--run", self.system.run, *llm, *material, *shape, *self.flags]

    @property
    def name(self) -> str:
        """Of its files: of the same arguments, weights and data alone, in this release."""
        folders = [os.path.realpath(folder) for folder in self.system.folders]
        corpus = (os.path.realpath(self.material.data), self.material.split, self.material.digest)
        what = [folders, self.digests, corpus, self.batch, self.flags, __version__]
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
        names = [pathlib.Path(folder).name for folder in folders]
        corpus_name = f"{pathlib.Path(corpus[0]).name}-{self.material.split}"
        return f"{'+'.join(names)}-{corpus_name}-b{self.batch}-{key}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a measurement left."""

    summary: Mapping[str, Any]  # evaluate's
    hypotheses: pathlib.Path


def find_measured(measurement: Measurement, out: pathlib.Path) -> Measured | None:
    """What was measured before; None where nothing whole is there."""
    hypotheses = out / FOLDER / f"{measurement.name}.jsonl"
    summary = hypotheses.with_suffix(".json")
    if not (summary.exists() and hypotheses.exists()):
        return None
    return Measured(parse_json(summary.read_bytes()), hypotheses)


def measure(measurement: Measurement, out: pathlib.Path, lock: int) -> Measured:
    """Run the measurement in a process of its own, which holds the open file `lock` too.

    Raises Fault, with the last line that the process said, where it fails.
    """
    place = ["--out", str(out / FOLDER), "--name", measurement.name]
    why = run_evaluate([*measurement.words, *place], lock)
    found = find_measured(measurement, out)
    if why or found is None:
        raise Fault(why or "left no figures")
    return found


def run_evaluate(words: Sequence[str], lock: int) -> str:
    """Run `melllm evaluate WORDS --json` to its end: why it failed, or nothing."""
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([known] if known else [])])
    ended = subprocess.run(
        [sys.executable, "-m", "launch", "evaluate", *words, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=(lock,),
    )
    if ended.returncode < 0:
        return f"killed by {signal.Signals(-ended.returncode).name}"
    if ended.returncode == 0:
        return ""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else f"ended with status {ended.returncode} and said nothing"
    return last.removeprefix("melllm evaluate: error: ")


@contextlib.contextmanager
def sole_use(out: pathlib.Path) -> Iterator[int]:
    """A context in which nobody else measures in `out`: the open file that says so.

    It waits for another that does, and for what one that was killed has left running. Raises Fault
    where the folder cannot be written.
    """
    try:
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        file = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise Fault(f"out={out}: cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another measurement in {out}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)
