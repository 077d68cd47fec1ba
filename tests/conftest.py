import os

import jax
import pytest

from launch import platforms

os.environ["XDG_CACHE_HOME"] = os.devnull  # no test finds what another compiled, or leaves some
platforms.settle()  # a libtpu that is here to plan for pods asks no metadata server
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def mesh():
    """Eight CPU devices as replica 1, fsdp 4, seq 1, tp 2."""
    with jax.set_mesh(jax.make_mesh((1, 4, 1, 2), ("replica", "fsdp", "seq", "tp"))):
        yield
