"""A Slurm of the tests' own: munged, slurmctld and slurmd on this machine, in a folder."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import pytest

from tests.support.patience import HANG

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
SBIN = "/usr/sbin:/sbin"  # where Debian puts daemons, which is on root's path alone

# Requeued jobs wait until the credential of their last start has expired: 5 s is the shortest.
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=10
SlurmdTimeout=10
InactiveLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster(folder):
    """A context in which Slurm's commands reach a cluster of this one machine, with four cores.

    Skips where its programs are not installed.
    """
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing: apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("slurmd and munged in a folder of their own need root")
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    os.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    try:
        _start(folder)
        yield
    finally:
        for name in ("slurmctld", "slurmd", "munged"):
            _stop(folder / f"{name}.pid")
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def until(condition):
    """Wait until `condition()` holds; fails where it never does."""
    end = time.monotonic() + HANG
    while not (found := condition()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)
    return found


def _start(folder):
    folder.chmod(0o755)  # munged takes no folder that others may write to, nor one they cannot read
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in (one, other)]
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, host=host, ports=ports, user="root")
    )
    files = {"socket": "sock", "key-file": "key", "log-file": "log", "seed-file": "seed"}
    munged = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    for words in (
        ["munged", "--force", "--num-threads=1", f"--pid-file={folder}/munged.pid", *munged],
        ["slurmctld", "-i"],
        ["slurmd"],
    ):
        done = subprocess.run(words, capture_output=True, text=True, timeout=HANG)
        assert done.returncode == 0, f"{words[0]}: {done.stderr}"
    until(lambda: "idle" in _state())


def _state():
    return subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout


def _stop(pid: pathlib.Path):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        number = int(pid.read_text())
        os.kill(number, signal.SIGTERM)
        end = time.monotonic() + 10
        while pathlib.Path("/proc", str(number)).exists():
            time.sleep(0.05)
            if time.monotonic() > end:
                os.kill(number, signal.SIGKILL)
