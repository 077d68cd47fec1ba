"""Runs a task in a process of its own, so that a file that crashes a decoder costs one line.

The process writes the index of the line that it is about to read to a file of eight bytes. Where it
dies of a fault in compiled code, or hangs, that line becomes a reject and the task is done again
without it: sound that crashes a decoder does so each time, so the result stays a function of the
input. The process ends with the one that started it, when the pipe between them closes.
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

STALL_SECONDS = 300.0  # on one line until it counts as hung: an hour of sound takes a few
MARK_SUFFIX = ".at"  # of the file with the line being read
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
ERROR_PREFIX = "trouble: "  # the last line of a process that could not do its task
_LINE = struct.Struct("<Q")  # the line being read, counted from 1; 0: none yet


def run_isolated(task: Task, job: Job) -> None:
    """Does a task in another process. Raises as `stage_task`, and Fault where that is killed."""
    skip: dict[int, str] = {}
    while True:
        with _mark_file(task, job) as mark:
            code, output = _run(task, job, skip, mark)
            line = read_mark(mark)
        if code == 0:
            return
        last = output.strip().rpartition("\n")[2]  # decoders print too
        if code in (1, 2) and last.startswith(ERROR_PREFIX):
            kind, message = json.loads(last.removeprefix(ERROR_PREFIX))
            raise {"Mistake": Mistake, "Fault": Fault}[kind](message)
        if code is None and line and line - 1 not in skip:
            skip[line - 1] = f"kept its decoder busy for {STALL_SECONDS:g} s"
        elif code is not None and -code in CRASHES and line and line - 1 not in skip:
            skip[line - 1] = f"crashes its decoder ({signal.Signals(-code).name})"
        else:
            raise Fault(f"{task.name}: its process ended with {code}: {output.strip()[-2000:]}")


def read_mark(mark: pathlib.Path) -> int:
    """How many lines a process has begun, from its mark file."""
    return int(_LINE.unpack(mark.read_bytes())[0])


def _run(task: Task, job: Job, skip: dict[int, str], mark: pathlib.Path) -> tuple[int | None, str]:
    """The exit status of the process, None where it hung, and its output."""
    paths = [path for path in sys.path if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "data_pipelines.prepare.crash_isolation"]
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            env=environment,
            start_new_session=True,  # an interrupt is for the parent, whose end it sees
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
        output.seek(0)
        return code, output.read()


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
    encoded, skip, mark = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task, job = decode_task(encoded)
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
    sys.stdin.read()  # nothing more is written: it returns when the parent is gone
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
