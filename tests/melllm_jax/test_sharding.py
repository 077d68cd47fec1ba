import dataclasses

import jax
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.distillation import Distill
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.config.run import Mesh, ScoreInterval
from melllm_jax.errors import Mistake
from tests.support import models


def test_a_weight_is_split_as_its_letters_say():
    assert sharding.w("d n h") == jax.P("fsdp", "tp", None)
    assert sharding.w("v d") == jax.P("tp", "fsdp")
    assert sharding.w("x y c") == jax.P(None, None, None)


def test_an_activation_is_split_as_its_letters_say():
    assert sharding.a("b t d") == jax.P(("replica", "fsdp"), "seq", None)
    assert sharding.a("b t k g h") == jax.P(("replica", "fsdp"), "seq", "tp", None, None)
    assert sharding.a("b k g t s") == jax.P(("replica", "fsdp"), "tp", None, "seq", None)


def test_an_axis_that_would_split_two_dimensions_is_refused():
    with pytest.raises(ValueError, match="one mesh axis splits two dimensions of 'n f'"):
        sharding.w("n f")


def test_a_mesh_without_fsdp_takes_the_devices_that_are_left():
    mesh = sharding.make_mesh(Mesh(seq=2, tp=2))
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 2, "seq": 2, "tp": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}


@pytest.mark.parametrize("cfg", [Mesh(fsdp=4), Mesh(tp=3), Mesh(tp=16)])
def test_a_mesh_of_another_size_than_the_devices_is_refused(cfg):
    with pytest.raises(Mistake) as caught:
        sharding.make_mesh(cfg)
    message = str(caught.value)
    assert f"tp={cfg.tp}" in message and "the product must be the 8 devices here" in message
    assert "\n" not in message


FSDP8, TP2, SEQ2 = Mesh(fsdp=8), Mesh(tp=2), Mesh(seq=2)


@pytest.mark.parametrize(
    ("mesh", "model", "data", "message"),
    [
        (FSDP8, {"d": 36}, {}, "mesh.fsdp=8: does not divide model.d=36"),
        (TP2, {"n": 3, "k": 3}, {}, "mesh.tp=2: does not divide model.n=3"),
        (TP2, {"k": 1}, {}, "mesh.tp=2: does not divide model.k=1"),
        (TP2, {"f": 49}, {}, "mesh.tp=2: does not divide model.f=49"),
        (TP2, {"v": 65}, {}, "mesh.tp=2: does not divide model.v=65"),
        (SEQ2, {}, {"t": 33}, "mesh.seq=2: does not divide data.t=33"),
        (FSDP8, {}, {"b": 12}, "mesh replica=1 × fsdp=8: does not divide the 12 rows of data.b=12"),
        (FSDP8, {}, {"b": 8, "micro": 2}, "the 4 rows of data.b=8 / optim.micro=2"),
    ],
)
def test_a_mesh_that_does_not_divide_what_it_splits_is_refused(mesh, model, data, message):
    run = models.run(dataclasses.replace(models.MODEL, **model), **data)
    with pytest.raises(Mistake) as caught:
        sharding.check_mesh(run, sharding.make_mesh(mesh))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("mesh", "sizes", "message"),
    [
        (FSDP8, {"d": 12}, "mesh.fsdp=8: does not divide distill.whisper.d=12"),
        (TP2, {"n": 3}, "mesh.tp=2: does not divide distill.whisper.n=3"),
        (TP2, {"f": 25}, "mesh.tp=2: does not divide distill.whisper.f=25"),
        (SEQ2, {"positions": 25}, "mesh.seq=2: does not divide distill.whisper.positions=25"),
    ],
)
def test_a_mesh_that_does_not_divide_a_teacher_is_refused(mesh, sizes, message):
    whisper = Whisper(**{"d": 48, "n": 2, "f": 24, "l": 2} | sizes)
    run = models.run(mel=Mel(kind="whisper", normalize="none"))
    cfg = Distill(teacher="whisper", whisper=whisper)
    with pytest.raises(Mistake) as caught:
        sharding.check_mesh(dataclasses.replace(run, distill=cfg), sharding.make_mesh(mesh))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", models.SPLITS)
def test_a_mesh_that_divides_everything_passes(name):
    sharding.check_mesh(models.run(), sharding.make_mesh(models.SPLITS[name]))


def test_a_placed_batch_is_split_by_rows_and_time():
    batch = models.speech_rows(8, 32)
    with models.split_as("fsdp2-seq2-tp2"):
        placed = sharding.shard_batch(batch)
    for name, x in placed._asdict().items():
        np.testing.assert_array_equal(x, getattr(batch, name))
        assert x.sharding.shard_shape(x.shape)[:2] == (4, 16), name


def test_scoring_on_a_mesh_that_splits_time_is_refused():
    run = dataclasses.replace(models.run(), scoring=ScoreInterval(every=10))
    with pytest.raises(Mistake, match=r"scoring.every=10: decoding needs mesh.seq=1, not 2"):
        sharding.check_mesh(run, sharding.make_mesh(SEQ2))
