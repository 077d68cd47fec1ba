"""Joins this process to the others of its job, one a host or a GPU, by `jax.distributed`.

Which processes there are is said by flags, by JAX's environment variables, or by a launcher that
JAX knows: Slurm, TPU pods, Kubernetes, Open MPI. Where none of them says so, the command is one
process. The coordinator's client has no public name, hence the imports of jax._src.
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

    coordinator: str  # ADDRESS:PORT
    count: int  # processes of the job
    index: int  # which of them this is
    devices: list[int] | None = None  # which of the host's are its own; None: all


@contextlib.contextmanager
def join_job(hosts: Hosts, prog: str) -> Iterator[None]:
    """A context in which this process is one of its job's, if it belongs to any.

    To be entered before any device is asked for. Where one process ends in trouble, all do: with
    its status, and a line that names it. Raises Mistake for flags and variables that do not fit
    together, Fault where the coordinator is not reached or its port is taken.
    """
    process = _job_process(hosts, prog)
    if process is None or process.count == 1:
        yield
        return
    with AbortHandler(os.dup(2)) as handler:
        begin = f"{prog}: error: process {process.index} on {socket.gethostname()}: "
        handler.line = (
            f"{begin}hosts.coordinator={process.coordinator}: the {process.count} processes did "
            f"not all come within {hosts.wait} s\n"
        )
        _initialize(process, hosts.wait)
        handler.line = (
            f"{begin}the runtime gave up, most likely because process 0, the coordinator at "
            f"{process.coordinator}, ended; what was saved stays\n"
        )
        watch = PeerWatch(distributed.global_state.client, process.index, process.count, prog)
        watch.start()
        try:
            yield
            multihost_utils.sync_global_devices("the end")  # some still write when others are done
        except (Mistake, Fault) as trouble:
            status = 2 if isinstance(trouble, Mistake) else 1
            watch.stop()
            watch.report_end(status, f"ended: {trouble}")
            watch.linger()
            atexit.register(os._exit, status)  # before JAX waits for the others to end as well
            raise type(trouble)(f"{watch.process_name}: {trouble}") from trouble
        except BaseException as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                # A collective broke: if a process is gone, the watch ends this one with its name.
                watch.join(SILENCE_LIMIT + 15)
            watch.stop()
            watch.report_end(1, f"ended: {type(error).__name__}: {error}"[:300])
            watch.linger()
            atexit.register(os._exit, 130 if isinstance(error, KeyboardInterrupt) else 1)
            raise
        watch.stop()
        jax.distributed.shutdown()


def leads() -> bool:
    """Whether this is process 0 of its job; asked of JAX itself, it would take the devices."""
    return int(distributed.global_state.process_id) == 0


def _job_process(hosts: Hosts, prog: str = "melllm") -> JobProcess | None:
    """This process's part in its job, None where there is no job.

    Raises Mistake for flags or variables that do not fit together.
    """
    given = {
        "coordinator": hosts.coordinator,
        "count": str(hosts.count) if hosts.count else "",
        "number": str(hosts.number) if hosts.number >= 0 else "",
    }
    names = {name: f"hosts.{name}" for name in given}
    if not any(given.values()):
        for name, variables in VARIABLES.items():
            names[name] = next((v for v in variables if v in os.environ), variables[0])
            given[name] = os.environ.get(names[name], "")
        if given["count"] == "":  # the index alone is any Kubernetes job's
            found = _launcher_process(given["coordinator"] or None, prog)
            if found is not None or given["coordinator"] == "":
                return found
    missing = [names[name] for name, value in given.items() if not value]
    known = ", ".join(f"{names[name]}={value}" for name, value in given.items() if value)
    if missing:
        raise Mistake(f"{known}: {' and '.join(missing)} must be given as well")
    address, _, port = given["coordinator"].rpartition(":")
    if not (address and port.isdigit() and int(port) < 2**16):
        raise Mistake(f"{names['coordinator']}={given['coordinator']}: must be ADDRESS:PORT")
    for name in ("count", "number"):
        if not given[name].isdigit():
            raise Mistake(f"{names[name]}={given[name]}: must be a number")
    count, index = int(given["count"]), int(given["number"])
    if index >= count:
        raise Mistake(f"{names['number']}={index}: must be below {names['count']}={count}")
    return JobProcess(given["coordinator"], count, index)


def _launcher_process(coordinator: str | None, prog: str) -> JobProcess | None:
    """This process's part by the word of a launcher that JAX knows; None where none started it.

    A launcher that is there but tells nothing, as Kubernetes does in a pod without a token, rights
    or an owner, has started a process alone: a line says so.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in Kubernetes, that its package is not installed
        try:
            address, count, index, devices = (
                clusters.ClusterEnv.auto_detect_unset_distributed_params(
                    coordinator, None, None, None, None, 60
                )
            )
        except Exception as error:  # of whatever library the launcher is asked by
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(
                f"{prog}: the launcher does not say who takes part ({why}): one process alone; "
                "several are named by --hosts",
                file=sys.stderr,
            )
            return None
    if address is None or count is None or index is None:
        return None
    return JobProcess(address, count, index, None if devices is None else list(devices))


def _initialize(process: JobProcess, wait: int) -> None:
    """Connect to the coordinator. Raises Fault where that fails."""
    if process.index:
        _wait_for_coordinator(process.coordinator, wait)
    with _buffer_stderr() as buffer:
        try:
            jax.distributed.initialize(
                process.coordinator,
                process.count,
                process.index,
                local_device_ids=process.devices,
                cluster_detection_method="deactivate",
                initialization_timeout=wait,
                shutdown_timeout_seconds=60,
            )
        except RuntimeError as error:
            buffer.truncate(0)
            why = str(error).splitlines()[0]
            raise Fault(f"hosts.coordinator={process.coordinator}: {why}") from error


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
    """Holds back what is written to standard error, by C++ too, until the context ends.

    Nothing of it is shown where the process is aborted meanwhile.
    """
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield buffer
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            buffer.seek(0)
            os.write(2, buffer.read())
