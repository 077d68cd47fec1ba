"""The small Phi that train_step.py and decode.py time, here and in transformers, and the pairing.

8 layers, d 512, 8 heads of 64, MLP 2048, vocabulary 8192, tied head: 38 M parameters, float32.
"""

import argparse
from collections.abc import Callable, Sequence
import datetime
import importlib.metadata
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

BATCH, TIME, VOCABULARY = 8, 256, 8192


def ours(steps: int = 1000) -> Any:
    """The Run of the small Phi; its patches are 8 wide and never read, since all is text."""
    from melllm_jax.config.data import Data
    from melllm_jax.config.features import Mel
    from melllm_jax.config.model import Model
    from melllm_jax.config.run import Optim, Run

    return Run(
        name="phi_small",
        model=Model(d=512, n=8, k=8, h=64, f=2048, l=8, v=VOCABULARY, remat="none", scan=False),
        mel=Mel(kind="plain", m=8, r=1),
        data=Data(t=TIME, b=BATCH, wire="float32"),
        optim=Optim(steps=steps, lr=1e-4, warmup=0, b2=0.999, compute="float32"),
    )


def text_batch(rows: int, length: int, v: int = VOCABULARY, p: int = 8) -> Any:
    """Random tokens, one segment a row, every one of them a target."""
    import numpy as np

    from melllm_jax.batch import Batch

    whole = lambda value: np.full((rows, length), value, np.int32)
    tokens = np.random.default_rng(0).integers(3, v, (rows, length), dtype=np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    patches, weight = np.zeros((rows, length, p), np.float32), np.ones((rows, length), np.float32)
    zero, one = whole(0), whole(1)
    return Batch(tokens, patches, zero, zero, one, positions, weight, zero)


def theirs() -> Any:
    """The same model in transformers, on two threads."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    return Phi3ForCausalLM(config)


def serve(action: Any) -> None:
    """Do `action` once a line of standard input, and answer with its milliseconds."""
    action()
    action()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        action()
        print((time.perf_counter() - began) * 1e3, flush=True)


def compare(
    script: str, about: str, ours: Callable[[], None], torch: Callable[[], None], what: str
) -> None:
    """A benchmark without options of its own: both workers timed in turns, and the report."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--worker", choices=("ours", "torch"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    if arguments.worker:
        {"ours": ours, "torch": torch}[arguments.worker]()
        return
    taken = paired(script, ("ours", "torch"), arguments.rounds)
    command = f"python benchmarks/{pathlib.Path(script).name} --rounds {arguments.rounds}"
    report(what, command, taken, arguments.out)


def paired(script: str, workers: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each worker's action, taken in turns, so that noise falls on all alike."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, script, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in workers
    }
    for name, process in processes.items():
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line.strip() != "ready":
            pass
        if not line:
            raise SystemExit(f"{script}: the worker {name} died")
    taken: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, process in processes.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            taken[name].append(float(process.stdout.readline()))
    for process in processes.values():
        process.kill()
    return taken


def report(
    what: str, command: str, taken: dict[str, list[float]], out: str, **more: Any
) -> dict[str, Any]:
    """Print medians and our speed against the other's, write them as JSON, and give them back."""
    medians = {name: statistics.median(values) for name, values in taken.items()}
    pairs = zip(taken["torch"], taken["ours"], strict=True)
    ratio = statistics.median(t / o for t, o in pairs)
    result = {
        "what": what,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {_processor()}, 2 threads",
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "flax", "optax", "torch", "transformers")
        },
        "dtype": "float32",
        "milliseconds": medians,
        "rounds": len(taken["ours"]),
        "speed_against_torch": ratio,
    } | more
    print(json.dumps(result, indent=1))
    if out:
        pathlib.Path(out).write_text(json.dumps(result, indent=1) + "\n")
    return result


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo")
    names = [s.split(":")[1].strip() for s in lines.read_text().splitlines() if "model name" in s]
    return names[0] if names else platform.processor()
