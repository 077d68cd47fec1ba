"""A training step that learns to speak against the same decoder's ASR step of equal positions.

    python benchmarks/train_speech.py [--rounds 15] [--out FILE]

The decoder is that of preset `tts`, at a width where the head is what it is beside a real decoder:
d 768, 12 layers. One update each in turn, in one process; medians, and the ratio of each pair.
Beside them stands what the machine allows: an update's FLOPs over the rate of a large product.
"""

import argparse
import dataclasses
import os
import statistics
import time

from support.report import report

WIDER = {"model.d": 768, "model.n": 12, "model.k": 12, "model.h": 64, "model.f": 2048}
WIDER |= {"model.l": 12, "model.mel_head.channels": 256, "data.t": 512, "data.b": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()

    import jax

    from launch.bench.matmul_rate import measure_matmul_rate
    from launch.bench.random_batch import train_batch
    from launch.runs.model_loader import single_device_mesh
    from melllm_jax import flops, sharding
    from melllm_jax.config.overrides import override
    from melllm_jax.objectives.run_objective import objective_of
    from melllm_jax.presets import catalog
    from melllm_jax.training.train_step import Update

    speech = override(catalog.preset("tts"), WIDER)
    plain = dataclasses.replace(speech.mel, normalize="none")
    speech = dataclasses.replace(speech, mel=plain)
    runs = {"speech": speech}
    runs["asr"] = override(speech, {"model.writes": "text", "model.front": "linear"})
    steps, taken = {}, {name: [] for name in runs}
    with jax.set_mesh(single_device_mesh()):
        for name, run in runs.items():
            update = Update(objective_of(run))
            batch = sharding.shard_batch(train_batch(run))
            state = update.init_state()
            compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
            steps[name] = [compiled, state, batch]
        for turn in range(arguments.rounds + 2):
            for name, step in steps.items():
                began = time.perf_counter()
                step[1], metrics = step[0](step[1], step[2])
                jax.block_until_ready((step[1], metrics))
                if turn > 1:
                    taken[name].append(time.perf_counter() - began)
    rate = measure_matmul_rate("float32")
    ratio = statistics.median(s / a for s, a in zip(taken["speech"], taken["asr"], strict=True))
    what = f"training step, {speech.data.b} x {speech.data.t} positions, d {speech.model.d}"
    figures = {
        "seconds": {name: statistics.median(values) for name, values in taken.items()},
        "speech_over_asr": ratio,
        "rounds": arguments.rounds,
        "limit_seconds": {name: flops.update_flops(run) / rate for name, run in runs.items()},
        "threads": os.cpu_count(),
    }
    report(what, figures, arguments.out)


if __name__ == "__main__":
    main()
