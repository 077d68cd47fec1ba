import dataclasses

import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.encoders import Conformer
from melllm_jax.config.features import Mel
from melllm_jax.encoders import clip_windows, conformer, window_attention
from melllm_jax.errors import Mistake
from tests.support import models
from tests.support.models import Clip

MEL = Mel(kind="plain", m=8)
SIZES = Conformer(l=2, n=2, f=12, chunk=3, left=1, distance=4)
RUN = models.run(dataclasses.replace(models.MODEL, front="conformer", conformer=SIZES), mel=MEL)
PIECES = [[2, Clip(17), 1, Clip(41), Clip(8)], [1, Clip(30), Clip(3), 1], [Clip(64), 2]]


@pytest.fixture
def short(monkeypatch):
    """Windows of four positions, so that most clips have several."""
    for module in (clip_windows, conformer, window_attention):
        monkeypatch.setattr(module, "WINDOW", 4)


def heard(rows, t):
    """What the front end makes of rows of segments, on the mesh in force."""
    skeleton, values = models.made(RUN)
    batch = sharding.shard_batch(models.pack(rows, t, mel=MEL))
    apply = models.jitted(lambda weights, batch: skeleton.model(weights).front(batch))
    return np.asarray(apply(values, batch))


def parts():
    return [models.segment(*pieces, seed=i, mel=MEL) for i, pieces in enumerate(PIECES)]


@pytest.mark.parametrize("windows", ["whole", "short"])
def test_a_packed_clip_equals_the_clip_alone(windows, request):
    """Of windows of 500 positions a row is one block; of short ones, several blocks with room."""
    if windows == "short":
        request.getfixturevalue("short")
    rows = [parts()[:2], parts()[2:]]
    batch, cut = models.pack(rows, 24, mel=MEL), []
    for i in range(len(rows)):
        names = list(zip(batch.segments[i].tolist(), batch.clips[i].tolist(), strict=True))
        for name in dict.fromkeys(x for x in names if x[1]):
            here = [at for at, x in enumerate(names) if x == name]
            columns = {k: getattr(batch, k)[i, here] for k in parts()[0]}
            cut.append((i, here, columns | {"clips": np.ones(len(here), int)}))
    assert [len(here) for _, here, _ in cut] == [3, 6, 1, 4, 1, 8]
    with models.one_device():
        y = heard([*rows, *([columns] for *_, columns in cut)], 24)
    for (i, here, _), expected in zip(cut, y[len(rows) :], strict=True):
        # Sums of other lengths, in another order: 1e-6 of the largest, through two norms.
        np.testing.assert_allclose(y[i, here], expected[: len(here)], rtol=0, atol=2e-5)


@pytest.mark.parametrize("windows", ["whole", pytest.param("short", marks=pytest.mark.slow)])
def test_gradients_on_eight_devices_equal_those_on_one(windows, request):
    """Heads and widths are split, and time, which the blocks gather; sums in another order."""
    if windows == "short":
        request.getfixturevalue("short")
    batch = models.speech_rows(8, 32)
    with models.one_device():
        grads = models.graded_front(RUN, batch)
    with models.split_as("fsdp2-seq2-tp2"):
        split = models.graded_front(RUN, batch)
    for name, grad in grads.items():
        if name.endswith("k_bias"):  # all of a query's scores are shifted alike: it has none
            assert np.abs([grad, split[name]]).max() < 1e-4
        elif not name.endswith(("mean", "invstd")):
            assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-3, name
            np.testing.assert_allclose(split[name], grad, rtol=0, atol=2e-4 * np.abs(grad).max())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"c": 12}, "mesh.fsdp=8: does not divide model.c=12"),
        ({"conformer": dataclasses.replace(SIZES, f=9)}, "mesh.tp=2: does not divide model.conf"),
        ({"conformer": dataclasses.replace(SIZES, n=1)}, "does not divide model.conformer.n=1"),
    ],
)
def test_a_mesh_that_does_not_divide_the_encoder_is_refused(changes, says):
    run = dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, **changes))
    mesh = models.SPLITS["fsdp8" if "c" in changes else "fsdp4-tp2"]
    with pytest.raises(Mistake, match=says):
        sharding.check_mesh(run, sharding.make_mesh(mesh))


def test_heads_that_do_not_share_the_width_are_refused():
    with pytest.raises(Mistake, match="model.conformer.n=3: does not divide model.c=8"):
        dataclasses.replace(RUN.model, conformer=dataclasses.replace(SIZES, n=3))
