"""What every result says beside its figures: where, when and with what they were taken."""

from collections.abc import Sequence
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from typing import Any

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def report(what: str, figures: dict[str, Any], out: str, libraries: Sequence[str] = LIBRARIES):
    """Print a result, and write it to `out` where that is said."""
    words = list(sys.argv)
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    result = {
        "what": what,
        "command": " ".join(["python", "benchmarks/" + pathlib.Path(words[0]).name, *words[1:]]),
        **figures,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} threads",
        "load": [round(x, 1) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }
    print(json.dumps(result, indent=1))
    if out:
        pathlib.Path(out).write_text(json.dumps(result, indent=1) + "\n")


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
