"""Measures the rate of a large matrix product on this machine's first device, in a child process.

A process that has asked JAX for an accelerator keeps it: one that goes on to start trainings on
this machine must not.
"""

import functools
import os
import pathlib
import subprocess
import sys

from launch.bench import matmul, timing
from melllm_jax.errors import Fault

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT = 300.0  # seconds: a device that another process holds may never answer


@functools.cache
def measure_matmul_rate(dtype: str) -> float:
    """FLOP/s of products of that dtype: the best of three. Raises Fault where none is made."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "launch.bench.matmul_rate", dtype]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise Fault(f"no matrix product came within {TIMEOUT:g} s: give --topology") from error
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise Fault(f"no matrix product could be made here: {last}: give --topology")
    return float(done.stdout.split()[-1])


def _main(dtype: str) -> None:
    product = matmul.compile_matmul(dtype)
    print(product.flops / min(timing.time_in_turns({"product": product.run}, 3)["product"]))


if __name__ == "__main__":
    _main(sys.argv[1])
