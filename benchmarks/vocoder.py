"""HiFi-GAN and Vocos on one core: ours beside their torch references, in one run on the same mel.

    python benchmarks/vocoder.py [--vocos vocos-0.1.0-py3-none-any.whl] [--out FILE]

Published sizes, random weights, 4 s of mel, a row alone. Each side has a process of its own, tied
to the same core, with one thread; they take their turns, so that a slow moment of the machine meets
both alike. Prints the medians in seconds of sound a second, their ratio, and beside them what the
core allows: the vocoder's products alone at the rate of a large one. Vocos is compared where
--vocos names the package's wheel, which is not installed: what it needs of torchaudio and encodec,
which no part of this uses, is stood in for.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when the libraries load: before the imports below
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import argparse
from collections.abc import Callable
import statistics
import subprocess
import sys
import time
import types

import numpy as np
from support.report import report

SECONDS = 4
RATES = {"hifi_gan": 16_000, "vocos": 24_000}
HOP = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocos", default="", help="the wheel of the package vocos")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (7)")
    parser.add_argument("--out", default="", help="where to write the result as JSON")
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*arguments.worker, arguments.vocos)
        return
    kinds = ["hifi_gan", *["vocos"] * bool(arguments.vocos)]
    found = {kind: compare(kind, arguments.vocos, arguments.repeats) for kind in kinds}
    what = f"{SECONDS} s of mel to sound by {' and '.join(kinds)}, one core"
    report(what, found, arguments.out, ("jax", "flax", "torch", "transformers", "numpy"))


def compare(kind: str, wheel: str, repeats: int) -> dict[str, float]:
    """Medians of both sides, which work in turns, in seconds of sound a second, and the ratio."""
    workers = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--worker", side, kind, "--vocos", wheel],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in ("ours", "theirs")
    }
    taken: dict[str, list[float]] = {side: [] for side in workers}
    for turn in range(repeats + 1):
        for side, worker in workers.items():
            print(file=worker.stdin, flush=True)
            seconds = float(worker.stdout.readline())
            if turn:  # the first compiles
                taken[side].append(seconds)
    for worker in workers.values():
        worker.communicate()
    found = {side: SECONDS / statistics.median(times) for side, times in taken.items()}
    return {**found, "ratio": found["ours"] / found["theirs"], "limit": limit(kind)}


def limit(kind: str) -> float:
    """Seconds of sound a second, were there nothing but products, each as fast as a large one."""
    from launch.bench.matmul_rate import measure_matmul_rate
    from melllm_jax import vocoder_flops
    from melllm_jax.config.overrides import override
    from melllm_jax.presets import catalog

    preset = catalog.any_preset(f"vocoder_{kind}")
    run = override(preset, {"data.t": SECONDS * RATES[kind] // HOP})
    flops = sum(layer.flops for layer in vocoder_flops.generator_layers(run))
    return SECONDS * measure_matmul_rate("float32") / flops


def work(side: str, kind: str, wheel: str) -> None:
    """Makes the sound once for each line that comes in, and prints the seconds of the processor.

    The processor's time, as both have one thread: other programs on the core do not use it up.
    """
    frames = SECONDS * RATES[kind] // HOP
    m = 80 if kind == "hifi_gan" else 100
    mel = np.random.default_rng(0).normal(size=(1, frames, m)).astype(np.float32)
    run = ours(kind, mel) if side == "ours" else theirs(kind, mel, wheel)
    for _ in sys.stdin:
        began = time.process_time()
        run()
        print(time.process_time() - began, flush=True)


def ours(kind: str, mel: np.ndarray) -> Callable[[], object]:
    import jax

    from melllm_jax.config.features import Mel
    from melllm_jax.config.run import Mesh
    from melllm_jax.config.vocoder import VocoderSpec
    from melllm_jax.models.parameters import init_model
    from melllm_jax.sharding import make_mesh
    from melllm_jax.vocoders.stored_vocoder import make_vocoder

    own = Mel("speecht5" if kind == "hifi_gan" else "vocos", m=mel.shape[2], normalize="none")
    spec = VocoderSpec(kind, own)
    jax.set_mesh(make_mesh(Mesh(fsdp=1), jax.devices()[:1]))
    skeleton, weights = init_model(lambda rngs: make_vocoder(rngs, spec), seed=0)
    run = jax.jit(lambda weights, mel: skeleton.model(weights)(mel))
    return lambda: np.asarray(run(weights, mel))


def theirs(kind: str, mel: np.ndarray, wheel: str) -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.tensor(mel)
    if kind == "hifi_gan":
        import transformers

        net = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig()).eval()
    else:
        names = ["torchaudio", "torchaudio.functional", "torchaudio.functional.functional"]
        sys.modules |= {name: types.ModuleType(name) for name in names}
        sys.modules[names[2]]._hz_to_mel = sys.modules[names[2]]._mel_to_hz = None
        sys.modules["encodec"] = types.ModuleType("encodec")
        sys.modules["encodec"].EncodecModel = None
        sys.path.insert(0, wheel)
        from vocos.heads import ISTFTHead
        from vocos.models import VocosBackbone

        net = torch.nn.Sequential(
            VocosBackbone(100, 512, 1536, 8), ISTFTHead(512, 1024, HOP, "center")
        ).eval()
        x = x.transpose(1, 2).contiguous()

    def run() -> object:
        with torch.inference_mode():
            return net(x).numpy()

    return run


if __name__ == "__main__":
    main()
