"""The processes of one job: which of them this one is, and how it meets the others.

One process a host, or a GPU, over `jax.distributed`. Flags say who they are, or JAX's environment
variables, or a launcher that JAX knows: Slurm, TPU pods, Kubernetes, Open MPI. Where none does, the
command is one process. Its coordinator's client has no public name, hence the imports of jax._src.
"""

import atexit
from collections.abc import Iterator
import contextlib
import dataclasses
import os
import socket
import sys
import tempfile
import time
from typing import IO
import warnings

import jax
from jax._src import clusters, distributed
from jax.experimental import multihost_utils

from launch.runtime.peer_watch import SILENCE_LIMIT, AbortHandler, PeerWatch
from melllm_jax.errors import Fault, Mistake

VARIABLES = {
    "coordinator": ("JAX_COORDINATOR_ADDRESS",),
    "count": ("JAX_NUM_PROCESSES",),
    "number": ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"),  # the latter: indexed Kubernetes jobs
}


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes that train together; without flags, what the launcher says."""

    coordinator: str = ""  # ADDRESS:PORT of process 0, the same for all
    count: int = 0  # processes in all
    number: int = -1  # which of them this is, from 0
    wait: int = 300  # seconds within which all must have come


@dataclasses.dataclass(frozen=True)
class JobProcess:
    """One process of a job."""

    coordinator: str
    count: int
    number: int
    devices: list[int] | None = None  # which of the host's are its own; None: all


@contextlib.contextmanager
def join_job(asked: Hosts, prog: str) -> Iterator[None]:
    """A context in which this process is one of its job's, if it is of any.

    To be entered before any device is asked for. Where one process ends in trouble, all do: with
    its status, and a line that names it. Raises Mistake for flags and variables that do not fit
    together, Fault where the coordinator is not reached or its port is taken.
    """
    place = _job_process(asked)
    if place is None or place.count == 1:
        yield
        return
    with AbortHandler(os.dup(2)) as aborting:
        lost = f"{prog}: error: process {place.number} on {socket.gethostname()}: "
        aborting.line = (
            f"{lost}hosts.coordinator={place.coordinator}: the {place.count} processes did not "
            f"all come within {asked.wait} s\n"
        )
        _initialize(place, asked.wait)
        aborting.line = (
            f"{lost}the runtime gave up, most likely because process 0, the coordinator at "
            f"{place.coordinator}, ended; what was saved stays\n"
        )
        watch = PeerWatch(distributed.global_state.client, place.number, place.count, prog)
        watch.start()
        try:
            yield
            multihost_utils.sync_global_devices("the end")  # some still write when others are done
        except (Mistake, Fault) as trouble:
            status = 2 if isinstance(trouble, Mistake) else 1
            watch.over()
            watch.tell(status, f"ended: {trouble}")
            watch.linger()
            atexit.register(os._exit, status)  # before JAX waits for the others to end as well
            raise type(trouble)(f"{watch.name_here}: {trouble}") from trouble
        except BaseException as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                watch.join(
                    SILENCE_LIMIT + 15
                )  # a collective that broke, if a process is gone: it knows
            watch.over()
            watch.tell(1, f"ended: {type(error).__name__}: {error}"[:300])
            watch.linger()
            atexit.register(os._exit, 130 if isinstance(error, KeyboardInterrupt) else 1)
            raise
        watch.over()
        jax.distributed.shutdown()


def _job_process(asked: Hosts) -> JobProcess | None:
    """Where in which job this process is. Raises Mistake for what does not fit together."""
    given = {
        "coordinator": asked.coordinator,
        "count": str(asked.count) if asked.count else "",
        "number": str(asked.number) if asked.number >= 0 else "",
    }
    names = {name: f"hosts.{name}" for name in given}
    if not any(given.values()):
        for name, variables in VARIABLES.items():
            names[name] = next((v for v in variables if v in os.environ), variables[0])
            given[name] = os.environ.get(names[name], "")
        if given["count"] == "":  # the index alone is any Kubernetes job's
            found = _launcher_process(given["coordinator"] or None)
            if found is not None or given["coordinator"] == "":
                return found
    missing = [names[name] for name, value in given.items() if not value]
    said = ", ".join(f"{names[name]}={value}" for name, value in given.items() if value)
    if missing:
        raise Mistake(f"{said}: {' and '.join(missing)} must be given as well")
    address, _, port = given["coordinator"].rpartition(":")
    if not (address and port.isdigit() and int(port) < 2**16):
        raise Mistake(f"{names['coordinator']}={given['coordinator']}: must be ADDRESS:PORT")
    for name in ("count", "number"):
        if not given[name].isdigit():
            raise Mistake(f"{names[name]}={given[name]}: must be a number")
    count, number = int(given["count"]), int(given["number"])
    if number >= count:
        raise Mistake(f"{names['number']}={number}: must be below {names['count']}={count}")
    return JobProcess(given["coordinator"], count, number)


def _launcher_process(coordinator: str | None) -> JobProcess | None:
    """What a launcher that JAX knows says, if one started this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in Kubernetes, that its package is not installed
        try:
            address, count, number, devices = (
                clusters.ClusterEnv.auto_detect_unset_distributed_params(
                    coordinator, None, None, None, None, 60
                )
            )
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            raise Fault(f"the launcher does not say who takes part: {error}") from error
    if address is None or count is None or number is None:
        return None
    return JobProcess(address, count, number, None if devices is None else list(devices))


def _initialize(place: JobProcess, wait: int) -> None:
    if place.number:
        _wait_for_coordinator(place.coordinator, wait)
    with _buffer_stderr() as said:
        try:
            jax.distributed.initialize(
                place.coordinator,
                place.count,
                place.number,
                local_device_ids=place.devices,
                cluster_detection_method="deactivate",
                initialization_timeout=wait,
                shutdown_timeout_seconds=60,
            )
        except RuntimeError as error:
            said.truncate(0)
            why = str(error).splitlines()[0]
            raise Fault(f"hosts.coordinator={place.coordinator}: {why}") from error


def _wait_for_coordinator(coordinator: str, wait: int) -> None:
    """Wait until process 0 listens: JAX itself would abort without a word that says so."""
    address, _, port = coordinator.rpartition(":")
    end = time.monotonic() + wait
    while True:
        try:
            with socket.create_connection((address.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise Fault(
                    f"hosts.coordinator={coordinator}: not reached within {wait} s: {error}"
                ) from error
            time.sleep(0.2)


@contextlib.contextmanager
def _buffer_stderr() -> Iterator[IO[bytes]]:
    """What is written to standard error, by C++ too, comes after; nothing where we abort."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            said.seek(0)
            os.write(2, said.read())
