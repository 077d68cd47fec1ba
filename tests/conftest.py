import os

from launch import platforms

platforms.settle()  # a libtpu that is here to plan for pods is loaded by no other test; before JAX

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


LAST = (  # they load libtpu, and from then on JAX's profiler crashes for want of a chip
    "compiler",
    "estimate",
    "links",
    "plan",
    "plan_command",
    "pods",
    "program",
)


def pytest_collection_modifyitems(items):
    """Tests that load libtpu come after all others."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") in LAST)
