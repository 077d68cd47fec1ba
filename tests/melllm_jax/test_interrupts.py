import os
import signal
import threading
import time

import pytest

from melllm_jax import interrupts
from melllm_jax.convert import block_copy


def control_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # Python's handlers run between two of its instructions


def test_control_c_takes_effect_when_the_block_ends():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.defer_interrupts():
        control_c()
        control_c()
        done.append("the rest")
    assert done == ["the rest"]
    with pytest.raises(KeyboardInterrupt):
        control_c()


def test_without_control_c_nothing_changes_and_errors_pass():
    usual = signal.getsignal(signal.SIGINT)
    with interrupts.defer_interrupts():
        assert signal.getsignal(signal.SIGINT) != usual
    assert signal.getsignal(signal.SIGINT) == usual
    with pytest.raises(OSError, match="full"), interrupts.defer_interrupts():
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) == usual


def test_where_control_c_is_ignored_it_stays_ignored():
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.defer_interrupts():
            control_c()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)


def test_threads_other_than_the_main_one_may_hold_it_back():
    def inside():
        with interrupts.defer_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    seen = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("start", [1, 2, 3])
def test_no_block_is_moved_after_a_start_of_threads_was_interrupted(monkeypatch, start):
    """The signal comes while a thread starts, when its pool does not know of it yet."""
    starts, moved = [], []
    plain = threading.Thread.start

    def started(thread):
        plain(thread)
        starts.append(thread)
        if len(starts) == start:
            control_c()

    def move(item):
        time.sleep(0.005)
        moved.append(item)
        return 1

    monkeypatch.setattr(threading.Thread, "start", started)
    with pytest.raises(KeyboardInterrupt):
        block_copy.run_in_threads(move, iter(range(1000)), lambda count: None)
    count = len(moved)
    time.sleep(0.05)
    assert len(moved) == count < 1000
    assert not any(thread.is_alive() for thread in starts)
