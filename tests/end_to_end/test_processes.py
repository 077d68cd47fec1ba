"""Two processes of four devices each, over `jax.distributed`: the same numbers as one device."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.support import models
from tests.support.paths import ROOT
from tests.support.patience import HANG

pytestmark = pytest.mark.slow  # each of the two compiles four times


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes computed: loss and gradients of each split."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [sys.executable, "-m", "tests.support.worker", address]
    both = [
        subprocess.Popen(
            [*words, str(number), str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=HANG)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    return {split: dict(np.load(folder / f"{split}.npz")) for split in models.SPLITS}


@pytest.fixture(scope="module")
def single():
    with models.one_device():
        return jax.device_get(models.graded(models.run(), models.speech_rows(8, 32)))


@pytest.mark.parametrize("split", models.SPLITS)
def test_loss_and_gradients_of_two_processes_equal_one_device(found, single, split):
    """float32 sums over 256 positions in another order: within 5e-5 of each gradient's largest."""
    loss, grads = single
    assert found[split].pop("loss") == pytest.approx(loss, rel=1e-6)
    assert found[split].keys() == grads.keys()
    for name, grad in grads.items():
        largest = np.abs(grad).max()
        assert largest > 0, name
        np.testing.assert_allclose(found[split][name], grad, rtol=0, atol=5e-5 * largest)
