"""Environment variables for a libtpu that is installed without a TPU, to plan for one.

Without them it asks a metadata server that is not there, and waits and complains. Imports no JAX:
this must run before JAX looks for devices.
"""

import glob
import importlib.util
import os

NO_TPU_ENVIRONMENT = {  # what libtpu would ask a TPU VM's metadata server for, and complain of
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is shared: several processes may compile at once
}


def set_environment() -> None:
    """Tell libtpu that there is no TPU, where it is installed and no chip is seen.

    JAX itself is kept from loading it: once loaded, its profiler crashes on a missing chip. What is
    set already stays as it is.
    """
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if importlib.util.find_spec("libtpu") is None or chips:
        return
    for name, value in NO_TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    gpu = glob.glob("/dev/nvidia[0-9]*") and any(map(importlib.util.find_spec, plugins))
    os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if gpu else "cpu")
