"""`melllm train`: train a preset on prepared data, or go on where it stopped."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from data_pipelines import mel, pipeline, sources, text
from data_pipelines.audio import BadAudio
from data_pipelines.examples import Trial, Unfit, heard
from data_pipelines.screen import progress as tally
from data_pipelines.text import Tokenizer
from launch import compiled, heap, hosts
from launch.arguments import RunArguments, run_arguments
from launch.hosts import Hosts
from launch.progress import Bar
from launch.transcriber import Transcriber
from melllm_jax import config, layout, memory, presets, rundir, score, start
from melllm_jax.config import Run
from melllm_jax.decode import Decoding
from melllm_jax.errors import Fault, Mistake
from melllm_jax.model import SpeechLM
from melllm_jax.profile import Span, span
from melllm_jax.train import SILENT, Stop, train
from melllm_jax.update import State, Update

Score = Callable[[SpeechLM], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(RunArguments):
    """Train PRESET, or go on where it stopped: the same command resumes by itself."""

    workdir: str  # folder of the run: run.json, checkpoints, metrics
    hosts: Hosts = Hosts()
    compiled: str = compiled.FOLDER  # folder where what was compiled is kept; "" keeps nothing
    profile: str = ""  # FIRST:LAST, updates to trace into WORKDIR/profile for TensorBoard, Perfetto


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a training leaves: whatever scoring it needs, without reading it from the disk again."""

    run: Run  # completed
    tokenizer: Tokenizer
    update: Update
    state: State
    mesh: jax.sharding.Mesh
    lanes: Sequence[int]  # of the data whose rows this process holds


def main(argv: Sequence[str]) -> int:
    """`melllm train PRESET --data DIR --workdir DIR [--model.d 512 …]`."""
    arguments = run_arguments(
        Arguments, argv, _preset(argv), prog="melllm train", presets=presets.PRESETS
    )
    wanted = span(arguments.profile) if arguments.profile else None
    with hosts.joined(arguments.hosts, "melllm train"), compiled.kept(arguments.compiled):
        fit(arguments.run, arguments.workdir, profile=wanted)
    return 0


def _preset(argv: Sequence[str]) -> Callable[[str], Run]:
    """Presets by name; where `argv` says --init DIR, with the sizes of the model in DIR.

    They are the values that the other flags then change.
    """
    finder = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    finder.add_argument("--init", "--init.path", default="")
    try:
        folder = finder.parse_known_args(argv)[0].init
    except argparse.ArgumentError:  # no value: told in full when all flags are read
        folder = ""
    if not folder:
        return presets.preset
    return lambda name: start.adopted(presets.preset(name), folder)


def fit(
    run: Run,
    workdir: str,
    bar: Bar | None = None,
    profile: Span | None = None,
    stop: Stop | None = None,
) -> Fitted:
    """Train `run` in `workdir` on all devices here, its corpora read and its mistakes told first.

    `stop` tells afterwards whether a signal ended it before its last update.
    Raises Mistake for whatever of the run, its data or its folder does not fit together; nothing
    is written then.
    """
    heap.keep()
    if profile is not None:
        profile.check(0, run.optim.steps)
    run, tokenizer = completed(run)
    mesh = layout.make_mesh(run.mesh)
    layout.check(run, mesh)
    if run.model.front == "none":
        raise Mistake('model.front="none": training reads speech: choose linear or conv')
    lanes = layout.lanes(run, layout.owners(mesh), jax.process_index())
    if run.keep.score and jax.process_count() > 1:
        raise Mistake(
            f"keep.score={run.keep.score}: decoding runs in one process, not in "
            f"{jax.process_count()}: give 0, and use `melllm evaluate`"
        )
    if run.optim.train == "lora" and not run.init.path:
        raise Mistake('optim.train="lora": freezes an LLM: say which with --init DIR')
    scoring = dev_score(run, tokenizer) if run.keep.score else None
    begin: Callable[[Update], State] = Update.initial
    with jax.set_mesh(mesh):
        update = Update(run)
        memory.check(update, mesh)
        if run.init.path:
            begin = lambda update: start.state(update, run.init.path, mesh)
            start.check(update, run.init.path)
    say = lambda text: bar.say(text) if bar is not None else None
    batches = iter(pipeline.train_batches(run, tokenizer, lanes=lanes, say=say))
    claim(run, workdir, tokenizer)
    bar = bar or (Bar(run.optim.steps) if jax.process_index() == 0 else None)

    def changed() -> Mapping[str, Any]:
        """The mixture, where the run was resumed with another one."""
        if batches.change is None:
            return {}
        say(str(batches.change))
        return {"mixture": dataclasses.asdict(batches.change)}

    try:
        state = train(
            run,
            batches,
            pathlib.Path(workdir),
            mesh,
            sizes=batches.sizes,
            progress=bar or SILENT,
            score=scoring,
            rejected=lambda: tally(batches)["bad"],
            carried=lambda: batches.carried,
            changed=changed,
            start=begin,
            profile=profile,
            stop=stop,
        )
    finally:
        if bar is not None:
            bar.close()
        batches.close()
    return Fitted(run, tokenizer, update, state, mesh, lanes)


def claim(run: Run, workdir: str, tokenizer: Tokenizer) -> None:
    """Make `workdir` this run's, with its tokenizer: process 0 does, and the others wait for it."""
    if jax.process_index() == 0:
        rundir.claim(workdir, run)
        if run.text.tokenizer != "bytes":
            try:
                if run.init.path:  # templates and all travel on, to an export
                    beside = f"{run.init.path}/{rundir.TOKENIZER}"
                    shutil.copytree(beside, f"{workdir}/{rundir.TOKENIZER}", dirs_exist_ok=True)
                tokenizer.save(f"{workdir}/tokenizer")
            except OSError as error:
                raise Fault(f"{workdir}/tokenizer: cannot be written: {error.strerror}") from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("claimed")
        rundir.claimed(workdir, run)


def completed(run: Run) -> tuple[Run, Tokenizer]:
    """`run` with what it takes from its data and tokenizer filled in, and the tokenizer.

    That is the digests of both, and the mean and variance that "global" normalisation needs.
    """
    if not run.data.sources:
        raise Mistake("data: give at least one corpus with --data DIR")
    tokenizer = text.load(run.text.tokenizer)
    if tokenizer.size > run.model.v:
        raise Mistake(f"model.v={run.model.v}: the tokenizer has {tokenizer.size} ids")
    known = [
        dataclasses.replace(source, digest=sources.digest(source.path, "train"))
        for source in run.data.sources
    ]
    changes: dict[str, Any] = {"data.sources": known, "text.digest": tokenizer.digest()}
    for name, sounds in (("noises", run.data.augment.noises), ("rooms", run.data.augment.rooms)):
        if sounds.path:
            found = sources.digest(sounds.path, sounds.split)
            changes[f"data.augment.{name}.digest"] = found
    if run.init.path:
        changes["init.digest"] = start.digest(run.init.path)
    if run.mel.normalize == "global" and not run.mel.mean:
        changes |= dict(zip(("mel.mean", "mel.invstd"), statistics(run), strict=True))
    return config.override(run, changes), tokenizer


def statistics(run: Run, most: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and inverse deviation of each band, over `most` utterances spread over each corpus."""
    plain = dataclasses.replace(run.mel, normalize="none")

    def mels() -> Iterator[np.ndarray]:
        for source in run.data.sources:
            corpus = sources.open_source(source.path, "train")
            for index in range(0, len(corpus), -(-len(corpus) // most)):
                with contextlib.suppress(BadAudio, Unfit):  # counted when they come up in training
                    yield heard(corpus[index], plain, longest=run.data.longest)

    return mel.statistics(mels())


def dev_score(run: Run, tokenizer: Tokenizer, most: int = 200) -> Score:
    """WER on the first `most` utterances of the first corpus's dev split, as a function."""
    corpus = sources.open_source(run.data.sources[0].path, "dev")
    order = sources.by_length(corpus)[:most]
    trials = [
        trial
        for trial in pipeline.eval_examples(corpus, run, tokenizer, order=order)
        if isinstance(trial, Trial)
    ]

    transcriber: Transcriber | None = None

    def wer(model: SpeechLM) -> Mapping[str, Any]:
        nonlocal transcriber
        if transcriber is None:
            transcriber = Transcriber(model, tokenizer, run, Decoding())
        transcriber.decoder.take(model)
        found = [transcript.text for transcript in transcriber(trials, 50)]
        return {"wer": score.score([t.reference for t in trials], found, "none").wer}

    return wer
