"""Every production preset compiled for its pod on this machine: what `melllm plan` says of each.

    python benchmarks/plans.py --out benchmarks/results/plans.json

Presets named on the command line are planned anew, and the others of the file stay. No other
software is measured: the limits are the chips' own, as their makers state them.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

from support.report import report

from melllm_jax.planning import topology
from melllm_jax.presets import catalog


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="*", default=[], help="names (all that have a pod)")
    parser.add_argument("--out", default="")
    arguments = parser.parse_args()
    known = [name for name in catalog.PRESETS if catalog.preset(name).mesh.topology]
    found: dict[str, Any] = {}
    if arguments.out and pathlib.Path(arguments.out).exists():
        found = json.loads(pathlib.Path(arguments.out).read_text())["plans"]
    for name in arguments.presets or known:
        mesh = catalog.preset(name).mesh
        if not topology.has_compiler(topology.parse_pod(mesh.topology, mesh.slices)):
            print(f"{name}: nothing here compiles for {mesh.topology}: left out", file=sys.stderr)
            continue
        start = "import sys; from launch.cli import main; sys.exit(main())"
        words = [sys.executable, "-c", start, "plan", name, "--json"]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout)
        ordered = {name: found[name] for name in known if name in found}
        report("plans of the production presets: estimates", {"plans": ordered}, arguments.out)


if __name__ == "__main__":
    main()
