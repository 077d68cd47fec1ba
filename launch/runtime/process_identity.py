"""Names this process so that another can tell later, on this host, whether it still runs.

A number alone does not: it is given anew. What a record holds beside it is when the process began,
and the space in which its number counts, which is the boot of a machine and a container on it.
"""

from collections.abc import Mapping
import contextlib
import os
import pathlib
import socket
from typing import Any

import psutil


def current_process() -> dict[str, Any]:
    """This process as a record: `host`, `pid`, `born` and `space`."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "born": process_start(pid),
        "space": pid_space(),
    }


def runs_here(record: Mapping[str, Any]) -> bool | None:
    """Whether the process of a record still runs; None where that cannot be seen from here.

    It cannot on another host, in another container of this one, after another boot, which a host
    of the same name may have had, and where the system hides the processes of other users. Older
    records have no `space`: their host alone counts.
    """
    if record["host"] != socket.gethostname() or record.get("space") not in (None, pid_space()):
        return None
    start = process_start(record["pid"])
    if start is None and _is_hidden(record["pid"]):
        return None
    return _is_same_start(record["born"], start)


def pid_space() -> str | None:
    """What tells the numbers of processes here from those elsewhere; None where nothing does."""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def process_start(pid: int) -> str | None:
    """When a process of this host began, in seconds after the boot; None where there is none.

    Time since the boot does not move when the clock is set, as the time of day does. psutil adds
    the time of the boot to it, in whole seconds that a clock being corrected may change at any
    moment: what is taken off again must be what was added.
    """
    try:
        while True:
            boot = psutil.boot_time()
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            start = process.create_time() - boot
            if psutil.boot_time() == boot:
                return f"{start:.2f}"
    except psutil.NoSuchProcess:
        return None


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process of another user, of which /proc shows nothing."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not psutil.pid_exists(pid)
    except OSError:
        pass
    return False


def _is_same_start(born: str | None, start: str | None) -> bool:
    """Whether the process that began at `start` is the one recorded as `born`.

    Older ledgers hold BOOT:TICKS in place of seconds, the kernel's name of the boot and clock ticks
    after it, or "alive" of a system without /proc, where a number was all that was known.
    """
    if born is None or start is None:
        return False
    ticks = born.rpartition(":")[2]
    if ":" in born and ticks.isdigit():
        born = f"{int(ticks) / os.sysconf('SC_CLK_TCK'):.2f}"
    return born in (start, "alive")
