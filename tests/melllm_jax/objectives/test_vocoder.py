import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.checkpoints import run_folder
from melllm_jax.checkpoints.checkpointer import Checkpoints
from melllm_jax.config.features import Mel
from melllm_jax.config.vocoder import HifiGan, VocoderSpec, Vocos
from melllm_jax.config.vocoder_run import GENERATOR
from melllm_jax.models.parameters import init_model
from melllm_jax.objectives.vocoder import (
    VocoderObjective,
    crop_mels,
    mel_distance,
)
from melllm_jax.telemetry.progress import SilentProgress
from melllm_jax.training.train_step import Update
from tests.support.corpora import write_corpus
from tests.support.models import jitted, one_device
from tests.support.runs import compiled_once, losses, trained, update_of
from tests.support.vocoders import crops, vocoder_run

RUN = vocoder_run()


class StopAt(SilentProgress):
    """Asks to stop at an update."""

    def __init__(self, wanted):
        self._wanted = wanted

    def step(self, step, metrics):
        if step == self._wanted:
            signal.raise_signal(signal.SIGTERM)


once = pytest.fixture(scope="module", autouse=True)(compiled_once)
TERMS = ("adversarial", "feature", "discriminator")
SPECS = {
    "phi4-hifi": VocoderSpec(
        "hifi_gan", Mel("phi4", 80, 1, "none"), HifiGan(rates=(10, 16), kernels=(20, 32))
    ),
    "phi4-vocos": VocoderSpec("vocos", Mel("phi4", 80, 1, "none"), vocos=Vocos(n_fft=320, hop=160)),
    "whisper-hifi": VocoderSpec(
        "hifi_gan", Mel("whisper", 80, 1, "none"), HifiGan(rates=(160,), kernels=(160,))
    ),
    "whisper-vocos": VocoderSpec(
        "vocos", Mel("whisper", 80, 1, "none"), vocos=Vocos(n_fft=320, hop=160)
    ),
    "plain-same": VocoderSpec(
        "vocos", Mel("plain", 80, 1, "none"), vocos=Vocos(n_fft=320, hop=160, padding="same")
    ),
    "speecht5-hifi": VocoderSpec("hifi_gan", Mel("speecht5", 80, 1, "none")),
    "vocos-vocos": VocoderSpec("vocos", Mel("vocos", 100, 1, "none")),
}


@pytest.fixture(scope="module")
def drawn():
    with one_device():
        return init_model(VocoderObjective(RUN).build, 0)


@pytest.fixture(scope="module")
def gradients(drawn):
    """What each term moves: by its name, the largest gradient of each weight."""
    skeleton, weights = drawn
    objective = VocoderObjective(RUN)

    def totals(weights, batch):
        sums = objective.loss(skeleton.model(weights), batch)
        return {"mel": sums.loss, **sums.terms}

    def each(weights, batch):
        sums, pull = jax.vjp(lambda w: totals(w, batch), weights)
        # One backward pass compiled for all of them.
        each = lambda _, one: (None, jax.tree.map(lambda x: jnp.abs(x).max(), pull(one)[0]))
        most = jax.lax.scan(each, None, dict(zip(sums, jnp.eye(len(sums)), strict=True)))[1]
        return {term: {name: x[i] for name, x in most.items()} for i, term in enumerate(sums)}

    with one_device():
        batch = sharding.shard_batch(crops(RUN))
        return jax.tree.map(float, jax.device_get(jitted(each)(weights, batch)))


def test_a_term_moves_what_it_is_for_and_nothing_else(gradients):
    moved = lambda name, own: {x > 0 for k, x in gradients[name].items() if own(k)}
    generator = lambda name: name.startswith(GENERATOR)
    judges = lambda name: not generator(name)
    for name in ("mel", "adversarial", "feature"):
        assert moved(name, judges) == {False}
        assert True in moved(name, generator)
    assert moved("discriminator", generator) == {False}
    assert moved("discriminator", judges) == {True}
    assert len(gradients["mel"]) > 20


@pytest.mark.parametrize("name", SPECS)
def test_frames_of_a_crop_are_those_that_make_as_many_samples(name):
    spec = SPECS[name]
    waves = np.random.default_rng(0).normal(0, 0.1, (2, 12 * spec.hop)).astype(np.float32)
    # A click lies in the frame whose samples are made around it.
    waves[1] = np.arange(12 * spec.hop) == 6 * spec.hop + spec.hop // 2
    mels = jax.jit(lambda x: crop_mels(x, spec))(waves)
    assert spec.samples(mels.shape[1]) == waves.shape[1]
    assert int(mels[1].mean(1).argmax()) in (5, 6, 7)


@pytest.mark.parametrize("kind,m", [("phi4", 80), ("whisper", 80), ("plain", 80), ("speecht5", 80)])
def test_distance_is_the_log_of_a_factor_of_loudness_whatever_the_extractor(kind, m):
    network = {"kind": "hifi_gan", "hifi_gan": HifiGan(rates=(160,), kernels=(160,))}
    mel = Mel(kind, m, 1, "none")
    spec = VocoderSpec(mel=mel, **network) if mel.hop == 160 else VocoderSpec("hifi_gan", mel)
    wave = np.random.default_rng(0).normal(0, 0.1, (1, 4000 // spec.hop * spec.hop))

    @jax.jit
    def apart(wave):
        mels = crop_mels(jnp.concatenate([wave, wave * 2.0]), spec)
        return mel_distance(mels[:1], mels[1:], spec)

    np.testing.assert_allclose(apart(np.float32(wave)), np.log(2.0), rtol=2e-3)


def test_what_lies_behind_a_short_clip_counts_for_nothing(drawn):
    skeleton, weights = drawn
    real = [8, 3, 0, 8, 8, 1, 8, 5]
    objective = VocoderObjective(RUN)
    sums = jitted(lambda w, x: objective.loss(skeleton.model(w), x))
    with one_device():
        batch = crops(RUN, real)
        found = sums(weights, sharding.shard_batch(batch))
        assert float(found.weight) == sum(real)
        terms = objective.terms(sharding.shard_batch(batch), jnp.int32(0))
        assert {float(term.weight) for term in terms.values()} == {7.0}
        fewer = jax.tree.map(
            lambda x: np.where(np.arange(8).reshape(8, *[1] * (x.ndim - 1)) == 2, x, 0 * x), batch
        )
        nothing = sums(weights, sharding.shard_batch(fewer))
    assert float(nothing.loss) == float(nothing.weight) == 0.0
    assert {float(x) for x in nothing.terms.values()} == {0.0}
    assert all(float(x) > 0 for x in found.terms.values())


def test_discriminators_count_from_their_first_update_on():
    objective = VocoderObjective(
        vocoder_run(**{"adversarial.start": 3, "adversarial.feature": 2.0})
    )
    batch = crops(RUN)
    scales = [
        {name: float(term.scale) for name, term in objective.terms(batch, jnp.int32(i)).items()}
        for i in (2, 3)
    ]
    assert scales[0] == dict.fromkeys(TERMS, 0.0)
    assert scales[1] == {"adversarial": 1.0, "feature": 2.0, "discriminator": 1.0}


@pytest.mark.slow
def test_an_update_is_the_same_on_eight_devices_and_in_parts(drawn, mesh):
    batch = crops(RUN, [8, 3, 8, 8, 8, 1, 8, 5])
    figures = []
    for run, where in ((RUN, one_device), (vocoder_run(**{"optim.micro": 2}), None)):
        update = Update(VocoderObjective(run))
        context = where() if where else jax.set_mesh(jax.sharding.get_mesh())
        with context:
            state = update.state_from(init_model(VocoderObjective(run).build, 0)[1])
            state, metrics = jitted(update)(state, sharding.shard_batch(batch))
            figures.append({k: float(x) for k, x in metrics.items() if x.ndim == 0})
            last = jax.device_get(state.trained)
    assert figures[0] == pytest.approx(figures[1], rel=2e-4)
    assert figures[0]["loss"] == pytest.approx(45 * figures[0]["mel"], rel=1e-5)
    assert all(np.isfinite(x).all() for x in last.values())


@pytest.mark.slow
def test_a_run_that_goes_on_is_one_that_never_stopped_and_loads_on_eight_devices(tmp_path, mesh):
    corpus = write_corpus(tmp_path / "data", 20)
    run = vocoder_run(corpus)
    straight = trained(run, tmp_path / "straight")
    run_folder.claim(str(tmp_path / "parts"), run)
    trained(run, tmp_path / "parts", StopAt(3))
    resumed = trained(run, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    for name, x in straight.trained.items():
        np.testing.assert_array_equal(x, resumed.trained[name], err_msg=name)
    assert run_folder.read_any_run(str(tmp_path / "parts")) == run
    update = update_of(run)
    shapes = update.shapes(jax.sharding.get_mesh())
    with Checkpoints(str(tmp_path / "parts/checkpoints"), run.checkpoints) as checkpoints:
        step, weights = checkpoints.restore_weights(shapes.trained)
    assert step == 6
    np.testing.assert_array_equal(
        weights["generator.magnitude"], straight.trained["generator.magnitude"]
    )
    line = json.loads((tmp_path / "straight/metrics.jsonl").read_text().splitlines()[-1])
    assert {"mel", *TERMS} <= line.keys()
