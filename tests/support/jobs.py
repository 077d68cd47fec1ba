"""Jobs of several real processes on this machine, over `jax.distributed`."""

import contextlib
import json
import socket

from tests.support.patience import HANG
from tests.support.runs import losses, reached, started

DEVICE = {"JAX_NUM_CPU_DEVICES": "1"}


def flags(count):
    """The flags of each of so many processes, with a coordinator's port that is free now."""
    if count == 1:
        return [[]]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    several = ["--hosts.coordinator", address, "--hosts.count", str(count)]
    return [[*several, "--hosts.number", str(number)] for number in range(count)]


@contextlib.contextmanager
def job(words, count=2, each=None, **environment):
    """Processes of `melllm WORDS`; `each` gives further words by number. None outlives this."""
    more = each or {}
    found = [
        started([*words, *mine, *more.get(number, [])], **(DEVICE | environment))
        for number, mine in enumerate(flags(count))
    ]
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.wait()


def ended(processes):
    """Statuses and standard errors of processes that end by themselves."""
    said = [process.communicate(timeout=HANG)[1] for process in processes]
    return [process.returncode for process in processes], said


def until(processes, workdir, update):
    """Wait until the job is past that update."""
    reached(processes[0], lambda: max(losses(workdir), default=0) >= update)


def lanes(workdir, step):
    """The saved places of all lanes, by file."""
    files = (workdir / f"checkpoints/{step}/data").glob("lane-*.json")
    return {path.name: json.loads(path.read_text()) for path in files}
