import glob
import importlib.util
import json
import os

import pytest

from launch.runtime import libtpu_env


@pytest.fixture
def settled(monkeypatch):
    """A function that settles a machine with these: what of ALONE its environment then has."""
    before = dict(os.environ)

    def settled(*, libtpu, chip="", **environment):
        for name in libtpu_env.NO_TPU_ENVIRONMENT:
            os.environ.pop(name, None)
        os.environ.update(environment)
        found = {"libtpu": json.__spec__ if libtpu else None}
        monkeypatch.setattr(importlib.util, "find_spec", found.get)
        there = lambda pattern: [chip] * (pattern.split("*")[0].split("[")[0] in chip)
        monkeypatch.setattr(glob, "glob", lambda pattern: there(pattern) if chip else [])
        libtpu_env.set_environment()
        return {
            name: os.environ[name] for name in libtpu_env.NO_TPU_ENVIRONMENT if name in os.environ
        }

    yield settled
    for name in libtpu_env.NO_TPU_ENVIRONMENT:
        os.environ.pop(name, None)
        os.environ.update({name: before[name]} if name in before else {})


def test_libtpu_without_a_chip_is_told_that_it_is_alone(settled):
    assert settled(libtpu=True) == libtpu_env.NO_TPU_ENVIRONMENT


def test_without_libtpu_nothing_is_set(settled):
    assert settled(libtpu=False) == {}


@pytest.mark.parametrize("chip", ["/dev/accel0", "/dev/vfio/0"])
def test_where_a_chip_is_seen_nothing_is_set(settled, chip):
    assert settled(libtpu=True, chip=chip) == {}


def test_what_is_set_already_stays(settled):
    told = settled(libtpu=True, TPU_ACCELERATOR_TYPE="v5e-4")
    assert told == libtpu_env.NO_TPU_ENVIRONMENT | {"TPU_ACCELERATOR_TYPE": "v5e-4"}
