"""Makes a folder one process's own for as long as it writes there.

    claims/N     who held the folder as the N-th, or holds it: a record of a fixed number of bytes

A claim is made under the next number by an operation that one caller alone wins, over NFS too, and
numbers are never used again, because the last file stays: so of two that take over one dead claim
one wins, and none can win late. The holder writes its file again every `BEAT` seconds, and takes
its being gone, or a higher number, as the loss of the folder. Ages are differences of times that
one file server gave: clocks of hosts may differ. A bucket knows neither links nor appends, and gets
no claim: a run writes to a disk; what `files.create_text` does there could make one.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import datetime
import errno
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
from types import FrameType
from typing import Any

import jax

from launch.runtime import peer_watch, process_identity
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

BEAT = 15.0  # seconds between two signs of life of a holder
STALE = 180.0  # seconds without one after which a holder that cannot be looked up counts as gone
FOLDER = "claims"  # its name in the folder that is claimed
SIZE = 1024  # bytes of a record, filled up with blanks: written again in place it needs no space
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim as it is found."""

    path: pathlib.Path
    record: Mapping[str, Any]  # empty where it is not written yet, or damaged
    beat: float  # the last sign of life, by the clock of the file server

    @property
    def number(self) -> int:
        """Its place in the order of all claims on the folder."""
        return int(self.path.name)


def refuse_if_held(folder: str, work: str = "") -> None:
    """Raises Mistake, with nothing written, where a process holds `folder`: see `FolderClaim`."""
    found = None if "://" in folder else _newest(pathlib.Path(folder))
    if found is not None:
        _refuse_if_alive(folder, found, work)


class FolderClaim:
    """A context in which `folder` is this process's own.

    `work` names what is done in it, where something else already grants that to one process at a
    time: an earlier claim for the same work is then over. Entering raises Mistake where another
    process holds the folder, and Fault where it cannot be written. `end` ends this process, with a
    line, once it has lost the folder: it must not write one byte more.
    """

    def __init__(self, folder: str, work: str = "", end: Callable[[str], None] | None = None):
        self._name, self._folder, self._work = folder, pathlib.Path(folder), work
        self._end = end or end_process
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat_until_over, name="claim", daemon=True)
        self._path: pathlib.Path | None = None  # None: not held
        self._record: Mapping[str, Any] = {}
        self._missing: list[pathlib.Path] = []  # folders that the claim makes, innermost first
        self._beaten = time.time()
        self._handler: Any = None  # of SIGTERM, before this context

    def __enter__(self) -> "FolderClaim":
        if "://" not in self._name:
            self._take()
            self._heart.start()
            self._release_at_sigterm()
            peer_watch.BEFORE_EXIT.append(self.release)
        return self

    def __exit__(self, *_: Any) -> None:
        if "://" in self._name:
            return
        peer_watch.BEFORE_EXIT.remove(self.release)
        self._over.set()
        self._heart.join()
        self.release()
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def check(self) -> None:
        """To be called before anything is written: ends this process if it has lost the folder."""
        late = abs(time.time() - self._beaten) > 2 * BEAT  # it slept, or the disk does not answer
        if self._path is not None and not (self.beat() if late else self._is_newest()):
            raise Fault(self._lose())

    def beat(self) -> bool:
        """Give a sign of life: whether the folder is still this process's."""
        return self._rewrite(self._record) and self._is_newest()

    def release(self) -> None:
        """Let others have the folder, if it is still this process's."""
        if self._path is not None and self._is_newest():
            self._rewrite({**self._record, "ended": time.time()})
            self._remove_empty(self._path)
        self._path = None

    def _take(self) -> None:
        me = process_identity.current_process() | _job_start()
        self._record = me | {"work": self._work, "since": time.time()}
        for _ in range(100):  # each time another process has been faster
            found = _newest(self._folder)
            if found is not None:
                _refuse_if_alive(self._name, found, self._work)
            number = 1 if found is None else found.number + 1
            path = self._folder / FOLDER / f"{number}"
            self._missing = [x for x in (self._folder, *self._folder.parents) if not x.exists()]
            if files.create_text(path, _text(self._record)):
                for older in _numbers(self._folder):
                    if older < number:
                        path.with_name(f"{older}").unlink(missing_ok=True)
                self._path = path
                return
        raise Fault(f"{self._folder / FOLDER}: many processes claim the folder at once")

    def _remove_empty(self, path: pathlib.Path) -> None:
        """Leave nothing of a folder in which nothing came to be, before or since."""
        with contextlib.suppress(OSError):
            if path.name == "1" and os.listdir(self._folder) == [FOLDER]:
                path.unlink()
                for folder in (path.parent, *self._missing):
                    folder.rmdir()

    def _is_newest(self) -> bool:
        assert self._path is not None
        later = self._path.with_name(f"{int(self._path.name) + 1}")
        return self._path.exists() and not later.exists()

    def _rewrite(self, record: Mapping[str, Any]) -> bool:
        """Write the record in place of the claim's, which must be there: whether it was."""
        assert self._path is not None
        try:
            with self._path.open("r+b") as file:
                file.write(_text(record).encode())
        except OSError as error:  # others, as of a full disk, end what is done in the folder
            return error.errno not in GONE
        self._beaten = time.time()
        return True

    def _beat_until_over(self) -> None:
        while not self._over.wait(BEAT):
            if self._path is not None and not self.beat():
                self._lose()
                return

    def _lose(self) -> str:
        """End this process by a line, which is returned where a test goes on."""
        self._path = None
        found = _newest(self._folder)
        who = _process_name(found.record) if found else "somebody who removed its claim"
        line = (
            f"workdir={self._name}: taken over by {who}, because this process gave no sign of life "
            f"for {STALE:g} s or was declared dead: it stops here, and writes nothing more"
        )
        self._end(line)
        return line

    def _release_at_sigterm(self) -> None:
        """Where SIGTERM would end this process at once, let it release the folder first."""
        main = threading.current_thread() is threading.main_thread()
        # Of several processes JAX hears the signal, by a handler that Python does not know of.
        if not main or jax.distributed.is_initialized():
            return
        if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            return

        def release(number: int, _: FrameType | None) -> None:
            self.release()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        self._handler = signal.signal(signal.SIGTERM, release)


def end_process(line: str) -> None:
    """Say why and end at once, whatever other threads are writing."""
    sys.stdout.flush()
    os.write(2, f"melllm: error: {' '.join(line.split())}\n".encode())
    os._exit(1)


def _refuse_if_alive(name: str, claim: Claim, work: str) -> None:
    """Raises Mistake where the process that made a claim may still be at work."""
    record = claim.record
    if record.get("ended") or (work and record.get("work") == work) or _was_requeued(record):
        return
    seen = process_identity.runs_here(record) if record else None
    if seen is False:
        return
    age = max(_server_time(claim.path.parent) - claim.beat, 0.0) if seen is None else 0.0
    if age >= STALE:
        return
    began = record.get("since")
    since = f" since {_local_time(began)}" if began else ""
    if seen:
        heard, rule = f"at {_local_time(claim.beat)}", "wait until it ends, or end it"
    else:
        heard = f"{age:.0f} s ago"
        rule = (
            f"it cannot be seen from here, and counts as gone {STALE:g} s after its last sign of "
            f"life; if you know that it is gone, remove {claim.path}"
        )
    raise Mistake(
        f"workdir={name}: is in use by {_process_name(record)}{since}, last sign of life "
        f"{heard}: one process at a time may write there; {rule}"
    )


def _newest(folder: pathlib.Path) -> Claim | None:
    """The claim with the highest number; None where there is none. Raises Fault for an OSError."""
    try:
        while numbers := _numbers(folder):
            path = folder / FOLDER / f"{max(numbers)}"
            try:
                with path.open() as file:
                    return Claim(path, _record(file.read()), os.fstat(file.fileno()).st_mtime)
            except FileNotFoundError:
                continue  # taken over meanwhile
    except OSError as error:
        raise Fault(f"{folder / FOLDER}: cannot be read: {error.strerror}") from error
    return None


def _numbers(folder: pathlib.Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder / FOLDER) if name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _record(text: str) -> Mapping[str, Any]:
    try:
        record = json.loads(text)
    except ValueError:
        return {}
    whole = isinstance(record, dict) and {"host", "pid", "born"} <= record.keys()
    return record if whole else {}


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record).ljust(SIZE - 1) + "\n"


def _process_name(record: Mapping[str, Any]) -> str:
    return f"process {record['pid']} on {record['host']}" if record else "a process that just began"


def _local_time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds).astimezone()
    return moment.isoformat(sep=" ", timespec="seconds")


def _server_time(folder: pathlib.Path) -> float:
    """Now by the clock that gives files in `folder` their times."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now-") as file:
            file.write(b"now")
            file.flush()
            os.fsync(file.fileno())
            return os.stat(file.name).st_mtime
    except OSError as error:
        raise Fault(f"{folder}: cannot be written: {error.strerror}") from error


def _job_start() -> dict[str, Any]:
    """Slurm's job and how often it was requeued; its earlier starts are over when it starts."""
    job = os.environ.get("SLURM_JOB_ID", "")
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return {"job": job, "requeued": int(count) if count.isdecimal() else 0}


def _was_requeued(record: Mapping[str, Any]) -> bool:
    """Whether a record is of an earlier start of the Slurm job that this process belongs to."""
    mine = _job_start()
    same = bool(mine["job"]) and record.get("job") == mine["job"]
    return same and record.get("requeued", 0) < mine["requeued"]
