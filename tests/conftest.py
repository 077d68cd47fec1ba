import functools
import gc
import os
import shutil
import signal
import tempfile

from jaxlib import version as jaxlib_version
import jaxtyping

from tests.support import array_checks

# Before what is to be checked.
jaxtyping.jaxtyped = array_checks.where_arrays_are_named(jaxtyping.jaxtyped)

from launch.runtime import libtpu_env  # noqa: E402

gc.set_threshold(50_000, 20, 100)  # tracing makes many objects that live: a sixth of its time
# Before JAX: a libtpu that is here to plan for pods is loaded by no other test.
libtpu_env.set_environment()
# Before JAX, and for every process that a test starts. Most programs of the tests are compiled for
# one call: at level 0 in one piece that takes a quarter of the time without the newer emitters of
# fused loops, which jaxlib 0.12 is never without, and of which libtpu knows no flag.
# The workers of pytest-xdist import this file as well, after the process that starts them.
given = os.environ.setdefault("MELLLM_TESTS_XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
cpu_flags = libtpu_flags = given
if os.environ.get("MELLLM_TESTS_COMPILE") != "as users":
    quick = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    cpu_flags = libtpu_flags = f"{quick} {cpu_flags}"
    if jaxlib_version.__version_info__ < (0, 11):
        cpu_flags = f"--xla_cpu_use_fusion_emitters=false {cpu_flags}"
os.environ["XLA_FLAGS"] = cpu_flags
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # else libtpu ends all processes but one
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # a tenth of tracing and lowering
os.environ["XDG_CACHE_HOME"] = os.devnull  # no test finds what users compiled, or leaves some
# Where runs of one shape share what was compiled; see `runs.compiled_once` and `runs.started`.
made_here = "MELLLM_TESTS_COMPILED" not in os.environ
if made_here:
    os.environ["MELLLM_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="melllm-tests-compiled-")

from grain import experimental  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from tyro import _docstrings  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A pure function that takes 2 ms for an index of twelve, as it draws from 65,536 until one fits.
experimental.index_shuffle = functools.lru_cache(maxsize=None)(experimental.index_shuffle)
# Tyro reads the source of each class of flags anew at every command, half of what flags take.
tokenized = _docstrings._ClassTokenization
tokenized.make = staticmethod(functools.lru_cache(maxsize=None)(tokenized.make))
# A shell that starts pytest in the background has SIGINT ignored, which no test may depend on.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """What is imported by now lives to the end: no search for garbage looks through it."""
    gc.freeze()


def pytest_unconfigure():
    if made_here:
        shutil.rmtree(os.environ["MELLLM_TESTS_COMPILED"], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """All tests run in a process a core, of up to 3 GB each; those that are named, in this one."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(4, len(os.sched_getaffinity(0))) if whole else 0


@pytest.fixture
def mesh():
    """Eight CPU devices as replica 1, fsdp 4, seq 1, tp 2."""
    with jax.set_mesh(jax.make_mesh((1, 4, 1, 2), ("replica", "fsdp", "seq", "tp"))):
        yield


def pytest_collection_modifyitems(items):
    """Tests that load libtpu come last: JAX's profiler then crashes for want of a chip."""
    items.sort(key=lambda item: item.get_closest_marker("libtpu") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Where libtpu may be loaded, it finds no flag that it would end the process for."""
    if item.get_closest_marker("libtpu"):
        os.environ["XLA_FLAGS"] = libtpu_flags
    try:
        return (yield)
    finally:
        os.environ["XLA_FLAGS"] = cpu_flags
