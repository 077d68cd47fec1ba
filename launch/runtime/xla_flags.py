"""Whether XLA takes the flags of the environment: on one that it does not, it aborts the process.

What must hold: the names of flags are XLA's business, which changes with its version. So they are
given to its own parser, in a process that may be aborted, and only where there are any.
"""

import os
import re
import subprocess
import sys

from melllm_jax.errors import Mistake

VARIABLE = "XLA_FLAGS"
TAKEN = "MELLLM_XLA_FLAGS_TAKEN"  # those that XLA took: processes that this one starts need not ask
_PARSE = "from jaxlib import xla_client; xla_client.CompileOptions()"
_COMPLAINT = re.compile(r"^[EF]\d{4} \S+ +\d+ \S+\] (.*)$", re.MULTILINE)  # as Abseil logs it


def check_xla_flags() -> None:
    """Raises Mistake, with XLA's words, for flags of the environment that XLA does not take."""
    flags = os.environ.get(VARIABLE, "")
    if not flags.strip() or flags == os.environ.get(TAKEN):
        return
    done = subprocess.run([sys.executable, "-c", _PARSE], capture_output=True, text=True)
    said = _COMPLAINT.search(done.stderr)
    if done.returncode and said:
        where = "; flags of TPUs belong in LIBTPU_INIT_ARGS" if "--xla_tpu_" in said[1] else ""
        rule = "must hold flags that this XLA knows, or be unset"
        raise Mistake(f"{VARIABLE}={flags}: {rule} ({said[1].rstrip('.')}{where})")
    os.environ[TAKEN] = flags
