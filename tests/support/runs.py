"""Training runs that compile in seconds, in this process and in others."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import pytest

from data_pipelines.loader import pipeline
from data_pipelines.text.load_tokenizer import load_tokenizer
from launch import cli
from launch.runs.run_inputs import complete_run
from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.overrides import override
from melllm_jax.inference import compiled
from melllm_jax.models.parameters import init_model, init_weights
from melllm_jax.objectives.run_objective import any_objective_of
from melllm_jax.telemetry.progress import SILENT, SilentProgress
from melllm_jax.training import train_step
from melllm_jax.training.loop import Telemetry, train
from tests.support import models
from tests.support.corpora import run_over, write_corpus
from tests.support.paths import ROOT
from tests.support.patience import HANG

# `melllm train digits` with these is as small as it gets; 8 rows and d = 16 suit eight devices.
SMALL = {
    "model.d": "16",
    "model.n": "2",
    "model.k": "1",
    "model.h": "8",
    "model.f": "16",
    "model.l": "1",
    "data.t": "64",
    "data.b": "8",
    "data.bins": "2",
    "data.threads": "1",
    "data.augment.mask": "0",
    "mel.kind": "plain",
    "mel.m": "8",
    "optim.warmup": "1",
    "optim.kind": "adamw",  # traced and compiled faster than muon
}
TINY = [word for name, value in SMALL.items() for word in (f"--{name}", value)]
COMPILED = {  # what JAX reads in another process, as `compiled_once` in this one
    "JAX_COMPILATION_CACHE_DIR": os.environ["MELLLM_TESTS_COMPILED"],
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
ANEW = dict.fromkeys(COMPILED)  # for `started` and `done`: nothing is shared
MAIN = "import sys; from launch.cli import main; sys.exit(main(sys.argv[1:]))"


def compiled_once():
    """A fixture: runs of one shape share what was compiled, most of a tiny run's time.

    First weights are drawn without a program.
    """
    settings = {
        "jax_compilation_cache_dir": os.environ["MELLLM_TESTS_COMPILED"],
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    train_step.init_model, train_step.init_weights = _drawn, _drawn_of
    yield
    train_step.init_model, train_step.init_weights = init_model, init_weights
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def _drawn(build, seed):
    """As `init_model`, whose program takes longer to compile than an update of a tiny run."""
    return models.drawn(build, seed, spread=0)


def _drawn_of(build, seed, names):
    """As `init_weights`."""
    return {name: x for name, x in _drawn(build, seed)[1].items() if name in set(names)}


@functools.cache
def update_of(run):
    """The update of a run that starts at random, traced once in however many trainings of it."""
    return train_step.Update(any_objective_of(run))


def compiled_quickly():
    """A fixture: compiling without optimisations takes half the time, and each runs a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def one_device():
    """A fixture: commands in this process find one device, on which a tiny run costs half."""
    with pytest.MonkeyPatch.context() as patch:
        find_one_device(patch)
        yield


def find_one_device(patch):
    """Commands in this process find one device of the eight from here on."""
    devices = jax.devices()[:1]
    patch.setattr(jax, "devices", lambda *_, **__: devices)
    patch.setattr(jax, "device_count", lambda *_, **__: 1)


def traced_once():
    """A fixture: the update of one run is traced and lowered once here, half of a tiny run's time.

    For tests that change nothing of what is traced.
    """
    apart = {"checkpoints.every": 1, "metrics.every": 1, "scoring.every": 0, "data.epochs": 0}
    kept = {}

    def key(update):
        return type(update.objective), override(update.run, apart), id(update.warm)

    def digest(update):
        kept.setdefault(key(update), update)  # else JAX forgets it with its first run
        return hash(key(update))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step.Update, "__hash__", digest)
        same = lambda one, other: isinstance(other, train_step.Update) and key(one) == key(other)
        patch.setattr(train_step.Update, "__eq__", same)
        yield


def generated_once():
    """A fixture: what generation runs is traced and lowered once here for models of one shape.

    Each command loads a model and compiles for it: JAX then finds the function that it knows.
    """
    with pytest.MonkeyPatch.context() as patch:
        once = types.SimpleNamespace(partial=functools.cache(functools.partial))
        patch.setattr(compiled, "functools", once)
        yield


def tiny(folder, steps=6, every=2, score=0, log=1):
    """A run over the corpus in `folder`, for one device."""
    return override(
        run_over(folder, t=64, b=2, wire="float32"),
        {
            "optim.steps": steps,
            "optim.warmup": 1,
            "optim.compute": "float32",
            "checkpoints.every": every,
            "scoring.every": score,
            "metrics.every": log,
            "model.remat": "none",
            "model.scan": False,
            "data.max_reject_share": 0.9,
        },
    )


def batches_of(run):
    return iter(pipeline.train_batches(run, load_tokenizer("bytes")))


def trained(run, workdir, progress=SILENT, *, stream=None, warm=None, **telemetry):
    """Train in this process, on one device: the last state."""
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:1])
    telemetry = Telemetry(progress, **telemetry)
    with contextlib.closing(stream or batches_of(run)) as stream, jax.set_mesh(mesh):
        update = train_step.Update(any_objective_of(run), warm) if warm else update_of(run)
        return train(update, stream, workdir, telemetry)


def two_updates(folder):
    """Write a corpus, `data`, and a `run` of two updates over one like it; the run as it says."""
    shutil.copytree(_two_updates(), folder, dirs_exist_ok=True)
    return run_folder.read_run(str(folder / "run"))


@functools.cache
def _two_updates():
    """That of this process: the run is copied wherever it is asked for."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=os.environ["MELLLM_TESTS_COMPILED"]))
    cfg = complete_run(tiny(corpus(folder / "data"), steps=2)).run
    run_folder.claim(str(folder / "run"), cfg)
    trained(cfg, folder / "run")
    return folder


def saved(folder, cfg, values):
    """A run's folder with these weights, as training writes them."""
    run_folder.claim(str(folder), cfg)
    step = {"step": jnp.int32(1)}
    with Checkpoints(str(folder / run_folder.CHECKPOINTS), cfg.checkpoints) as checkpoints:
        checkpoints.save(1, values, step, step)


class At(SilentProgress):
    """Calls a function with each update that is told of."""

    def __init__(self, does):
        self.said, self._does = [], does

    def log(self, text):
        self.said.append(text)

    def step(self, step, metrics):
        self._does(step)


def ask_to_stop_at(wanted):
    return At(lambda step: signal.raise_signal(signal.SIGTERM) if step == wanted else None)


class ListStream:
    """A `BatchStream` of given batches, of one source; it saves nothing but how many it gave."""

    sizes, carried, change = (), (), None

    def __init__(self, batches):
        self._batches, self._given = list(batches), 0

    def __iter__(self):
        return self

    def __next__(self):
        if self._given == len(self._batches):
            raise StopIteration
        self._given += 1
        return self._batches[self._given - 1]

    def get_state(self):
        return {"given": self._given}

    def set_state(self, state):
        self._given = state["given"]

    async def save(self, directory):
        state = json.dumps(self.get_state())

        async def write():
            (await directory.await_creation() / "given.json").write_text(state)

        return write()

    async def load(self, directory):
        async def read():
            self.set_state(json.loads((directory / "given.json").read_text()))

        return read()

    def counts(self):
        return {"bad": {}}

    def close(self):
        pass


def lines(workdir):
    """The whole lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    written = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in written]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir)}


def steps_on_disk(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def everything(folder):
    """Every file below a folder, with its content: what "untouched" compares."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def arguments(corpus, workdir, *more, steps=6, every=2):
    """The words of `melllm train` for a tiny run."""
    given = ["--data", str(corpus), "--workdir", str(workdir), "--steps", str(steps)]
    return ["train", "digits", *TINY, *given, "--save-every", str(every), *map(str, more)]


def started(words, **environment):
    """`melllm WORDS` as another process, its messages in its pipe.

    It shares what such processes compiled, each start's longest part, but for `ANEW`. What is None
    in its environment is left out of it.
    """
    environment = os.environ | COMPILED | environment
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        cwd=ROOT,
        env={name: value for name, value in environment.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(words, **environment):
    """`melllm WORDS` to its end in another process: status, standard output and error."""
    process = started(words, **environment)
    out, err = process.communicate(timeout=HANG)
    return process.returncode, out, err


def reached(process, condition):
    """Wait until `condition()` holds while the process lives; fails where it never does."""
    end = time.monotonic() + HANG
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def refused(words, capsys, status=2):
    """The one line that `melllm WORDS` says in this process, which must end with `status`."""
    capsys.readouterr()
    found = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    assert (found, said.out) == (status, ""), said.err
    assert "Traceback" not in said.err
    last = said.err.rstrip("\n").split("\n")[-1]
    assert last.startswith(f"melllm {words[0]}: error: ")
    return last.removeprefix(f"melllm {words[0]}: error: ")


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """A file system of that size at `folder`, to be filled; skips where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def corpus(folder, count=12, **more):
    """A folder with a train split of noise; see `write_corpus`."""
    return pathlib.Path(write_corpus(folder, count, **{"seconds": 0.3} | more))
