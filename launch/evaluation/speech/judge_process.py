"""A judge that needs torch, asked from here: its process, which is started once for many sounds."""

import base64
from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import IO, Any, Literal

from jaxtyping import Float32
import numpy as np

JudgeName = Literal["mos", "similarity"]
MODULE = "launch.evaluation.speech.torch_judges"
ROOT = pathlib.Path(__file__).parents[3]
# The three that ask for what they do not need here, and what does not install.
INSTALL = (
    'pip install "melllm_jax[judge]" and then '
    "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0 Resemblyzer==0.1.4"
)


class JudgeError(Exception):
    """Why a judge scores no more; where `missing`, that its package is not installed."""

    def __init__(self, message: str, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing


@dataclasses.dataclass(frozen=True)
class JudgeAnswer:
    """The score of a sound, or why it has none."""

    value: float | None
    error: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class JudgeProcess:
    """A judge that is running."""

    name: JudgeName
    by: str  # its package and version
    _process: "subprocess.Popen[str]"
    _said: IO[str]  # its standard error

    def ask(
        self, wave: Float32[np.ndarray, " w"], voice: Float32[np.ndarray, " w"] | None = None
    ) -> JudgeAnswer:
        """Its score of a sound, for similarity with another. Raises JudgeError where it is dead."""
        request = {"wave": _encode(wave)} | ({} if voice is None else {"voice": _encode(voice)})
        with contextlib.suppress(BrokenPipeError):  # what killed it is told below
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = _read_answer(self.name, self._process, self._said)
        return JudgeAnswer(answer.get("value"), answer.get("error", ""))


@contextlib.contextmanager
def open_judge(name: JudgeName, python: str = "") -> Iterator[JudgeProcess]:
    """A context with the judge `name`, run by `python`, by default the one that runs this.

    Raises JudgeError where its package is not installed there, and where it does not start.
    """
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([known] if known else [])])
    with tempfile.TemporaryFile("w+", errors="replace") as said, contextlib.ExitStack() as stack:
        try:
            process = subprocess.Popen(
                [python or sys.executable, "-m", MODULE, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            raise JudgeError(f"{name}: {python} cannot be run: {error.strerror}") from error
        stack.callback(_end, process)
        first = _read_answer(name, process, said)
        if "missing" in first:
            raise JudgeError(f"{name}: {first['missing']}: {INSTALL}", missing=True)
        yield JudgeProcess(name, first["by"], process, said)


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends a process, which waits for more to judge or is amid it."""
    process.kill()
    with contextlib.suppress(BrokenPipeError):
        process.communicate()


def _read_answer(name: str, process: "subprocess.Popen[str]", said: IO[str]) -> dict[str, Any]:
    """The next line that a process answers. Raises JudgeError with its last words where it died."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if line.endswith("\n"):
        return dict(json.loads(line))
    status = process.wait()
    if status < 0:
        raise JudgeError(f"{name}: its process was killed by {signal.Signals(-status).name}")
    said.seek(0)
    words = [text for text in said.read().splitlines() if text.strip()]
    why = words[-1] if words else "said nothing"
    raise JudgeError(f"{name}: its process ended with status {status}: {why}")


def _encode(wave: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(wave, np.float32).tobytes()).decode()
