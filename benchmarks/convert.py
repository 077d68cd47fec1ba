"""Import and export of a full-size Phi-4-mini of random bfloat16 numbers, beside `cp -r`.

    python benchmarks/convert.py --rounds 5 --out benchmarks/results/convert.json

In each round cp -r, import and export take their turn, each in a process of its own, on files that
the round before left in the page cache; what they wrote is removed after each. Memory is the
largest resident set of the process (ru_maxrss), its start and libraries included.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import ml_dtypes
import numpy as np

from melllm_jax.convert import safetensors_files

D, F, V, LAYERS = 3072, 8192, 200_064, 32
CONFIG = {
    "model_type": "phi3",
    "hidden_size": D,
    "intermediate_size": F,
    "vocab_size": V,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "partial_rotary_factor": 0.75,
    "max_position_embeddings": 131_072,
    "original_max_position_embeddings": 4096,
    "sliding_window": 262_144,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [32.0] * 48},
}
LIBRARIES = ("jax", "flax", "orbax-checkpoint", "tensorstore", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"of the model ({LAYERS})")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--folder", type=pathlib.Path, help="where to work: needs 3 times its size")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file to write the figures to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        make(folder / "hf", arguments.layers)
        size = sum(path.stat().st_size for path in (folder / "hf").iterdir())
        print(f"{size / 1e9:.2f} GB of random numbers", file=sys.stderr, flush=True)
        rounds = [measured(folder) for _ in range(arguments.rounds)]
    seconds = {name: [x[name][0] for x in rounds] for name in rounds[0]}
    ratios = {
        name: statistics.median(ours / cp for ours, cp in zip(times, seconds["cp"], strict=True))
        for name, times in seconds.items()
        if name != "cp"
    }
    report = {
        "what": f"Phi-4-mini of {arguments.layers} layers, random bfloat16",
        "command": " ".join(["python", *sys.argv]),
        "bytes": size,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
        "times_cp": ratios,
        "peak_gib": {name: max(x[name][1] for x in rounds) for name in seconds},
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} threads",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    print(json.dumps(report, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def make(folder: pathlib.Path, layers: int) -> None:
    """A checkpoint in Hugging Face's layout: signs and mantissas random, sizes 2^-7 to 2^-4."""
    folder.mkdir()
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(layers):
        block = f"model.layers.{i}."
        shapes |= {
            f"{block}self_attn.qkv_proj.weight": (5120, D),
            f"{block}self_attn.o_proj.weight": (D, D),
            f"{block}mlp.gate_up_proj.weight": (2 * F, D),
            f"{block}mlp.down_proj.weight": (D, F),
            f"{block}input_layernorm.weight": (D,),
            f"{block}post_attention_layernorm.weight": (D,),
        }
    shapes["model.norm.weight"] = (D,)
    draw, bfloat16 = np.random.default_rng(0), np.dtype(ml_dtypes.bfloat16)
    with safetensors_files.SafetensorsWriter(
        folder, {name: (bfloat16, x) for name, x in shapes.items()}
    ) as writer:
        for name, shape in shapes.items():
            step = max(1, (1 << 24) // int(np.prod(shape[1:])))
            for start in range(0, shape[0], step):
                part = (min(step, shape[0] - start), *shape[1:])
                bits = draw.integers(0, 1 << 16, part, dtype=np.uint16) & 0x81FF | 0x3C00
                writer.write(name, start, bits.view(bfloat16))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))


def measured(folder: pathlib.Path) -> dict[str, tuple[float, float]]:
    """Seconds and GiB of each contestant, once."""
    melllm = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main())"]
    convert = [*melllm, "convert"]
    hf, ckpt, back, copy = (folder / name for name in ("hf", "ckpt", "back", "copy"))
    found = {"cp": timed(["cp", "-r", hf, copy])}
    shutil.rmtree(copy)
    found["import"] = timed([*convert, "import", hf, ckpt])
    found["export"] = timed([*convert, "export", ckpt, back])
    shutil.rmtree(ckpt)
    shutil.rmtree(back)
    print({name: f"{x[0]:.1f} s, {x[1]:.2f} GiB" for name, x in found.items()}, file=sys.stderr)
    return found


def timed(command: list[Any]) -> tuple[float, float]:
    """Seconds and the largest resident set in GiB of a command, which must succeed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{command}: exit status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) / 2**30


if __name__ == "__main__":
    main()
