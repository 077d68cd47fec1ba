import dataclasses

import jax
import numpy as np
import pytest

from melllm_jax import chips, flops, sharding
from melllm_jax.config.data import Source
from melllm_jax.telemetry import goodput
from melllm_jax.telemetry.goodput import Goodput
from melllm_jax.telemetry.throughput import ThroughputMeter
from tests.support.runs import tiny


class Clock:
    """Seconds that pass as they are told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(goodput.time, "perf_counter", lambda: self.now)


def numbers(examples, tokens=64.0, audio=3.0):
    floats = {"loss": 2.0, "tokens": tokens, "speech": tokens / 4, "audio": audio}
    arrays = {name: np.float32(value) for name, value in floats.items()}
    return arrays | {"examples": np.array(examples), "finite": np.bool_(True)}


@pytest.fixture
def run():
    run = tiny("a")
    sources = (Source("a"), Source("b"))
    return dataclasses.replace(run, data=dataclasses.replace(run.data, sources=sources))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def spent(tmp_path, clock):
    return Goodput(tmp_path)


def made(run, spent, seen=(0, 0), chips=1):
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:chips])
    spent.switch_to("update")
    return ThroughputMeter(run, mesh, [10, 4], np.array(seen), spent)


def test_meter_divides_by_the_seconds_between_two_readings(run, spent, clock):
    counted = made(run, spent)
    with spent.charge_wait(lambda: False):
        clock.now += 0.5
    clock.now += 1.5
    read = counted.read(numbers([3, 2]))
    assert read["seconds"] == 2.0
    assert (read["tokens_per_second"], read["audio_seconds_per_second"]) == (32.0, 1.5)
    assert (read["tokens"], read["speech_share"]) == (64.0, 0.25)
    assert read["data_wait"] == 0.25
    assert (read["loss"], read["finite"], read["mfu"]) == (2.0, True, None)
    clock.now += 4.0
    read = counted.read(numbers([3, 2]))
    assert (read["seconds"], read["data_wait"]) == (4.0, 0.0)


def test_meter_counts_examples_and_epochs_of_each_source_on(run, spent, clock):
    counted = made(run, spent, seen=(7, 6))
    clock.now += 1.0
    counted.read(numbers([3, 2]))
    clock.now += 1.0
    read = counted.read(numbers([5, 0]))
    assert read["examples"] == 23
    assert (read["examples/a"], read["examples/b"]) == (15, 8)
    assert (read["epoch/a"], read["epoch/b"]) == (1.5, 2.0)
    assert counted.seen.tolist() == [15, 8]


@pytest.mark.parametrize("kind", ["setup", "checkpoint", "score"])
def test_meter_leaves_out_of_an_update_what_was_spent_otherwise(run, spent, clock, kind):
    counted = made(run, spent)
    with spent.charge_to(kind):
        clock.now += 60.0
    clock.now += 1.0
    read = counted.read(numbers([1, 1]))
    assert read["seconds"] == 1.0
    assert read["spent"][kind] == 60.0


@pytest.mark.parametrize("count", [1, 2])
def test_meter_gives_the_share_of_all_known_chips(run, spent, clock, monkeypatch, count):
    chip = dataclasses.replace(chips.CHIPS["H100"], flops=1e9)
    monkeypatch.setitem(chips.CHIPS, "cpu", chip)
    counted = made(run, spent, chips=count)
    clock.now += 2.0
    assert counted.read(numbers([1, 1]))["mfu"] == flops.update_flops(run) / 2.0 / (count * 1e9)
