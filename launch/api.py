"""The library from Python: `from launch import api`, for notebooks and scripts.

    model = api.load("runs/digits")
    model.transcribe("seven.wav")

Thin functions over what the commands call, and the one place where names of other modules are
handed on: what `__all__` lists is what examples need. Whatever a user can mend raises `Mistake`,
with the line that the command would print; trouble from outside, such as a full disk, is `Fault`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import types
from typing import Any, Literal

import jax

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.corpora.manifest import write_manifest
from data_pipelines.importers.manifest_row import make_row
from data_pipelines.importers.write_manifests import import_corpus
from data_pipelines.loader import pipeline
from data_pipelines.loader.lanes import Lanes
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.text.tokenizer import Tokenizer
from launch.evaluation.score_split import SplitScore, score_split
from launch.runs import model_loader
from launch.runs.fit import fit
from launch.runs.loaded_model import LoadedModel, LoadedWhisper
from launch.runs.run_inputs import complete_run
from launch.runs.transcriber import Transcript
from launch.runtime import compile_cache, libtpu_env
from melllm_jax.batch import Batch, BatchStream
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.data import Source
from melllm_jax.config.overrides import override
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.errors import Fault, Mistake
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.objectives.objective import Companion, LossSums, Objective, Term
from melllm_jax.objectives.run_objective import any_objective_of, objective_of
from melllm_jax.presets.catalog import ALL as PRESETS
from melllm_jax.presets.catalog import any_preset as preset
from melllm_jax.sharding import shard_batch
from melllm_jax.training.preemption import StopRequest
from melllm_jax.training.run_start import run_from
from melllm_jax.training.train_step import Update

__all__ = [
    "PRESETS",
    "Batch",
    "BatchStream",
    "Companion",
    "DecodingOptions",
    "Fault",
    "LoadedModel",
    "LoadedWhisper",
    "LossSums",
    "Mistake",
    "NextToken",
    "Objective",
    "Run",
    "Source",
    "SplitScore",
    "Term",
    "Tokenizer",
    "Training",
    "Transcript",
    "Update",
    "batches",
    "configure",
    "import_corpus",
    "load",
    "make_row",
    "objective_of",
    "open_corpus",
    "override",
    "prepare",
    "preset",
    "score_split",
    "shard_batch",
    "train",
    "write_manifest",
]

# As `melllm` begins; JAX read its environment when it was imported, so it is told again.
libtpu_env.set_environment()
if jax.config.values["jax_platforms"] is None:
    jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS"))

Path = str | os.PathLike[str]
# A folder, several of equal share, or folders with their shares; a Source says all of it.
Corpora = Path | Source | Sequence[Path | Source] | Mapping[str, float]
NO_CHANGES: Mapping[str, Any] = types.MappingProxyType({})


def load(
    folder: Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    devices: Sequence[jax.Device] | None = None,
) -> LoadedModel | LoadedWhisper:
    """The newest checkpoint in the folder of a run, or of `melllm convert import`.

    Its weights, and the products of `logits`, are in `dtype`; a run transcribes in its own
    optim.compute, or in bfloat16 where that is `dtype`. They are laid out over `devices`, by
    default all that are here, which must divide model.d. An imported Whisper transcribes, and
    refuses all else. Raises Mistake for a folder without a model or a whole checkpoint.
    """
    place = pathlib.Path(folder)
    whisper = run_folder.read_whisper(str(place))
    if whisper is not None:
        mesh = model_loader.mesh_for(whisper, devices)
        with jax.set_mesh(mesh):
            step, model = model_loader.restore_whisper(place, whisper, dtype)
            return LoadedWhisper(place, model, mesh, step)
    mesh = model_loader.mesh_for(run_folder.read_spec(str(place)), devices)
    with jax.set_mesh(mesh):
        return LoadedModel(model_loader.load_model(place, dtype), mesh)


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` leaves."""

    folder: pathlib.Path  # of the run: checkpoints, metrics.jsonl; `load` reads it
    run: BaseRun  # with all that it took from its data
    steps: int  # updates made in all, those of earlier starts included
    loss: float | None  # of the last update, in nats a target; None where there was none
    stopped: bool  # whether SIGTERM ended it before its last update


def train(
    run: BaseRun | str,
    data: Corpora | None,
    workdir: Path,
    overrides: Mapping[str, Any] = NO_CHANGES,
    *,
    init: Path = "",
    front: Path = "",
    teacher: Path = "",
    objective: Callable[[Any], Objective[Any]] = any_objective_of,
) -> Training:
    """Train a run in `workdir` on all devices here, or go on where it stopped.

    `run`, `data`, `overrides`, `init`, `front` and `teacher` are those of `configure`; `objective`
    makes what is learnt from the complete run. The same call resumes; it does what `melllm train`
    does, in one process: on several machines use the command. Raises Mistake for whatever of the
    run, its data or its folder does not fit together, and nothing is written then; Fault where the
    loss is not finite or the disk does not take a checkpoint.
    """
    wanted = configure(run, data, overrides, init=init, front=front, teacher=teacher)
    folder, stop = pathlib.Path(workdir), StopRequest()
    with compile_cache.use_folder(compile_cache.FOLDER):
        left = fit(wanted, str(folder), stop=stop, objective=objective)
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    loss = json.loads(lines[-1])["loss"] if lines else None
    return Training(folder, left.run, int(left.state.step), loss, stop.requested)


def batches(
    run: BaseRun | str,
    data: Corpora | None = None,
    overrides: Mapping[str, Any] = NO_CHANGES,
) -> Iterator[Batch]:
    """The batches that training sees, from the first on: NumPy arrays [b t ...], see `Batch`.

    Arguments are those of `configure`. Endless, unless data.epochs says how often each corpus is
    drawn; what reads ahead ends with the iterator, also where a loop over it is left. Raises
    Mistake for data that is missing or does not suit the run, and while it runs where a larger
    share of examples than data.max_reject_share cannot be used.
    """
    inputs = complete_run(configure(run, data, overrides))
    return _closing(pipeline.train_batches(inputs.run, inputs.tokenizer))


def configure(
    run: BaseRun | str,
    data: Corpora | None = None,
    overrides: Mapping[str, Any] = NO_CHANGES,
    *,
    init: Path = "",
    front: Path = "",
    teacher: Path = "",
) -> BaseRun:
    """The run that `melllm train RUN --data … --init … --FIELD VALUE …` trains.

    `run` is a run or the name of a preset. `data` is a folder of manifests or shards, a list of
    folders, or a dict of folders and their shares; None keeps the run's own. `overrides` are dotted
    fields, {"model.d": 512}. `init` is the folder of a run or an import, whose sizes, mel,
    tokenizer and weights the run takes over; `front` that of a run or an imported encoder, whose
    front end it takes over, weights and mel; `teacher` one whose encoder it learns from. Raises
    Mistake for names and fields that do not exist, and for values that they do not take.
    """
    found = preset(run) if isinstance(run, str) else run
    found = run_from(found, os.fspath(init), os.fspath(front), os.fspath(teacher))
    sources = {} if data is None else {"data.sources": _sources(data)}
    return override(found, {**sources, **overrides})


def _sources(data: Corpora) -> list[Source | dict[str, Any]]:
    if isinstance(data, Mapping):
        return [{"path": os.fspath(path), "weight": share} for path, share in data.items()]
    several = [data] if isinstance(data, str | os.PathLike | Source) else data
    return [x if isinstance(x, Source) else Source(os.fspath(x)) for x in several]


def _closing(stream: Lanes) -> Iterator[Batch]:
    with contextlib.closing(iter(stream)) as running:
        yield from running
