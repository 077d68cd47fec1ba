import os

from launch.runtime import libtpu_env

# Before JAX: a libtpu that is here to plan for pods is loaded by no other test.
libtpu_env.set_environment()

import jax  # noqa: E402
import pytest  # noqa: E402

os.environ["XDG_CACHE_HOME"] = os.devnull  # no test finds what another compiled, or leaves some
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def mesh():
    """Eight CPU devices as replica 1, fsdp 4, seq 1, tp 2."""
    with jax.set_mesh(jax.make_mesh((1, 4, 1, 2), ("replica", "fsdp", "seq", "tp"))):
        yield


def pytest_collection_modifyitems(items):
    """Tests that load libtpu come last: JAX's profiler then crashes for want of a chip."""
    items.sort(key=lambda item: item.get_closest_marker("libtpu") is not None)
