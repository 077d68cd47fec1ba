"""A task in a process of its own, so that a file that crashes or hangs a decoder costs one line.

The process notes the line that it is about to read in a file of eight bytes. Where it dies of a
fault in compiled code, or stands still, that line becomes a reject and the task is done again
without it: sound that brings a decoder down does so each time, so the result stays a function of
the input. It ends with whoever started it, as their pipe closes.
"""

from collections.abc import Iterator
import contextlib
import json
import mmap
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

from data_pipelines.prepare.shard_task import stage_task
from data_pipelines.prepare.tasks import Job, Task, decode_task, encode_task
from melllm_jax.errors import Fault, Mistake

STALL_SECONDS = 300.0  # seconds on one line: an hour of sound takes a few
MARK_SUFFIX = ".at"  # suffix of the file with the number of the line
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
ERROR_PREFIX = "trouble: "  # the last line of a process that could not do its task
_LINE = struct.Struct("<Q")  # number of the line under way, from 1; 0 is none yet


def run_isolated(task: Task, job: Job) -> None:
    """`stage_task` in a process of its own. Raises as it does, and Fault where that is killed."""
    skip: dict[int, str] = {}
    while True:
        with _mark_file(task, job) as mark:
            code, said = _run(task, job, skip, mark)
            line = read_mark(mark)
        if code == 0:
            return
        last = said.strip().rpartition("\n")[2]  # decoders say things too
        if code in (1, 2) and last.startswith(ERROR_PREFIX):
            kind, message = json.loads(last.removeprefix(ERROR_PREFIX))
            raise {"Mistake": Mistake, "Fault": Fault}[kind](message)
        if code is None and line and line - 1 not in skip:
            skip[line - 1] = f"kept its decoder busy for {STALL_SECONDS:g} s"
        elif code is not None and -code in CRASHES and line and line - 1 not in skip:
            skip[line - 1] = f"crashes its decoder ({signal.Signals(-code).name})"
        else:
            raise Fault(f"{task.name}: its process ended with {code}: {said.strip()[-2000:]}")


def read_mark(mark: pathlib.Path) -> int:
    """Lines begun by a process, as its mark says."""
    return int(_LINE.unpack(mark.read_bytes())[0])


def _run(task: Task, job: Job, skip: dict[int, str], mark: pathlib.Path) -> tuple[int | None, str]:
    """Exit status of the process, None where it stood still; and what it said."""
    known = [path for path in sys.path if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(known)}
    words = [sys.executable, "-m", "data_pipelines.prepare.crash_isolation"]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            text=True,
            env=environment,
            start_new_session=True,  # an interrupt is for whoever started it, whose end it sees
        ) as process,
    ):
        try:
            assert process.stdin is not None
            line = [encode_task(task, job), sorted(skip.items()), os.fspath(mark)]
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(line) + "\n")
                process.stdin.flush()
            code = _wait(process, mark)
        finally:
            process.kill()
        said.seek(0)
        return code, said.read()


def _wait(process: "subprocess.Popen[str]", mark: pathlib.Path) -> int | None:
    seen, since = -1, time.monotonic()
    while True:
        try:
            return process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            now = read_mark(mark)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > STALL_SECONDS:
                return None


@contextlib.contextmanager
def _mark_file(task: Task, job: Job) -> Iterator[pathlib.Path]:
    remote = "://" in job.work
    handle, path = tempfile.mkstemp(MARK_SUFFIX, task.name + "+", None if remote else job.work)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_LINE.pack(0))
        yield pathlib.Path(path)
    finally:
        pathlib.Path(path).unlink(missing_ok=True)


def _main() -> int:
    words, skip, mark = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task, job = decode_task(words)
    with open(mark, "r+b") as file, mmap.mmap(file.fileno(), _LINE.size) as line:
        try:
            mark_line = lambda n: _LINE.pack_into(line, 0, n + 1)
            stage_task(task, job, skip=dict(skip), progress=mark_line)
        except (Mistake, Fault) as error:
            kind = Mistake if isinstance(error, Mistake) else Fault
            print("\n" + ERROR_PREFIX + json.dumps([kind.__name__, str(error)]), flush=True)
            return 2 if kind is Mistake else 1
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()  # nothing more is written: it returns when the other end is gone
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
