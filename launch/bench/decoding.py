"""`melllm bench decode`: times how much faster than real time a preset's model reads speech."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from launch.bench import random_batch, timing
from launch.bench.train_step import machine
from launch.terminal.flags import RunArguments, run_arguments
from melllm_jax import flops, sharding
from melllm_jax.config.run import Mesh
from melllm_jax.errors import Mistake
from melllm_jax.inference.generate import Decoder
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.models.parameters import init_model
from melllm_jax.objectives.run_objective import objective_of
from melllm_jax.presets import catalog
from melllm_jax.training import device_memory
from melllm_jax.training.train_step import Update


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeBenchArguments(RunArguments):
    """Decode random speech with random weights of PRESET (quickstart if none), on one device.

    Every row says the same number of tokens; compiling and the first run are not counted.
    """

    batch: tuple[int, ...] = (1, 32)  # utterances decoded at once
    seconds: float = 10.0  # of speech an utterance
    tokens: int = 40  # said of each: about 15 words
    rounds: int = 5  # each batch size in each; figures are medians
    json: bool = False  # print one JSON object on standard output and nothing else


def bench(argv: Sequence[str]) -> tuple[dict[str, Any], str, bool]:
    """Figures, the same as text, and whether JSON was asked for. Raises Mistake."""
    arguments = run_arguments(
        DecodeBenchArguments,
        argv,
        catalog.preset,
        prog="melllm bench decode",
        presets=catalog.PRESETS,
    )
    figures = measure(arguments)
    return figures, format_figures(figures), arguments.json


def measure(arguments: DecodeBenchArguments) -> dict[str, Any]:
    """The figures of a run's model."""
    run = arguments.run
    if run.model.front == "none":
        raise Mistake('model.front="none": decoding reads speech: choose linear or conv')
    for name, values in (("batch", arguments.batch), ("tokens", (arguments.tokens,))):
        if min(values, default=0) < 1:
            raise Mistake(f"{name}={values}: must be positive")
    mesh = sharding.make_mesh(Mesh(), jax.devices()[:1])
    size = 4 * flops.count_parameters(run).total
    device_memory.check_bytes_fit(run.name, size, mesh, "random weights in float32")
    with jax.set_mesh(mesh):
        update = Update(objective_of(run))
        model = update.skeleton.model(init_model(update.objective.build, run.seed)[1], update.dtype)
        decoder = Decoder(
            model, end=run.model.v, options=DecodingOptions(guard=False)
        )  # no row ends early
        actions = {}
        for rows in arguments.batch:
            prompt = random_batch.prompt_batch(run, rows, arguments.seconds)
            limits = np.full(rows, arguments.tokens)
            actions[str(rows)] = lambda p=prompt, x=limits: jax.block_until_ready(decoder(p, x))
        taken = timing.medians(timing.time_in_turns(actions, arguments.rounds))
    return {
        "what": "decode",
        "preset": run.name,
        **machine(mesh),
        "dtype": run.optim.compute,
        "utterance_seconds": arguments.seconds,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "compile_seconds": decoder.compile_seconds,
        "batches": [
            {
                "batch": rows,
                "seconds": taken[str(rows)],
                "rtfx": rows * arguments.seconds / taken[str(rows)],
                "tokens_per_second": rows * arguments.tokens / taken[str(rows)],
            }
            for rows in arguments.batch
        ],
    }


def format_figures(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{figures['preset']}: {figures['utterance_seconds']:g} s of speech, {figures['tokens']} "
        f"tokens, {figures['dtype']}, on one {figures['chip']}; compiled in "
        f"{figures['compile_seconds']:.1f} s; medians of {figures['rounds']}"
    ]
    lines += [
        f"batch {one['batch']:<5} RTFx {one['rtfx']:.1f}, {one['tokens_per_second']:.0f} tokens/s, "
        f"{one['seconds'] * 1e3:.1f} ms"
        for one in figures["batches"]
    ]
    return "\n".join(lines)
