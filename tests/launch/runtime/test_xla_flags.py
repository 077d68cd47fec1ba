import os

import pytest

from launch.runtime.xla_flags import TAKEN, check_xla_flags
from melllm_jax.errors import Mistake


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--xla_nothing=3", r"\(Unknown flag in XLA_FLAGS: --xla_nothing=3\)"),
        ("--xla_tpu_x=1", "--xla_tpu_x=1; flags of TPUs belong in LIBTPU_INIT_ARGS"),
        ("--xla_cpu_enable_fast_math=a", "interpret value a for flag xla_cpu_enable_fast_math"),
    ],
)
def test_flags_on_which_xla_would_abort_are_a_mistake_with_its_words(monkeypatch, flags, said):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(Mistake, match=rf"^XLA_FLAGS={flags}: must hold flags.*{said}"):
        check_xla_flags()


def test_flags_that_xla_takes_are_asked_about_once_for_all_processes(monkeypatch):
    monkeypatch.setenv(TAKEN, "")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    check_xla_flags()
    assert os.environ[TAKEN] == "--xla_force_host_platform_device_count=2"
    monkeypatch.setattr("subprocess.run", None)
    check_xla_flags()
    monkeypatch.setenv("XLA_FLAGS", " ")
    check_xla_flags()
