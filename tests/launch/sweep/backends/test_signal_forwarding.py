"""A cell's end as the shell around it tells it, told to stop or not."""

import subprocess
import sys

import pytest

from launch.sweep.backends.signal_forwarding import RUN_FORWARDING_SIGTERM
from tests.support.patience import HANG

SHELLS = ("sh", "bash")
TOLD = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit({})); print(1, flush=True)"


def ended(shell, code, told):
    """What `told` and `status` are after a cell that runs this Python, and says a line first."""
    script = RUN_FORWARDING_SIGTERM.replace("sleep 1", "sleep 0.1")
    words = [shell, "-c", f'{script}echo "told=$told status=$status"', "cell"]
    with subprocess.Popen(
        [*words, sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        if told:
            process.stdout.readline()
            process.terminate()
        return process.communicate(timeout=HANG)[0].strip()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("code", "status"),
    [("pass", 0), ("raise SystemExit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_end_of_a_cell_left_alone_is_its_own(shell, code, status):
    assert ended(shell, code, told=False) == f"told= status={status}"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("status", [0, 1])
def test_end_of_a_cell_told_to_stop_is_its_own_however_soon_it_comes(shell, status):
    for _ in range(3):  # a shell that is told, and whose cell ends at once, may see both together
        assert ended(shell, f"{TOLD.format(status)}; time.sleep(60)", told=True) == (
            f"told=1 status={status}"
        )


@pytest.mark.parametrize("shell", SHELLS)
def test_end_of_a_cell_that_saves_for_a_while_is_waited_for(shell):
    code = f"{TOLD.format('time.sleep(0.3) or 5')}; time.sleep(60)"
    assert ended(shell, code, told=True) == "told=1 status=5"


@pytest.mark.parametrize("shell", SHELLS)
def test_end_of_a_cell_that_knows_no_signal_is_the_signals(shell):
    code = "import time; print(1, flush=True); time.sleep(60)"
    assert ended(shell, code, told=True) == "told=1 status=143"
