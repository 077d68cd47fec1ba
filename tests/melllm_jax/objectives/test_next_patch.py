"""The next patch: its targets and terms, and that no clip reaches another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.data import Source
from melllm_jax.config.overrides import override
from melllm_jax.config.speech_output import MelHead, SpeechLoss
from melllm_jax.errors import Mistake
from melllm_jax.objectives import next_patch
from melllm_jax.objectives.next_patch import NextPatch
from tests.support import models
from tests.support.models import MEL, Clip

HEAD = MelHead(prenet=12, hidden=12, channels=6, convolutions=3, taps=3)
MODEL = dataclasses.replace(models.MODEL, writes="speech", mel_head=HEAD)
RUN = dataclasses.replace(models.run(MODEL), speech_loss=SpeechLoss(kl_after=3))


def rows(b, t=32):
    """`b` packed rows in which one segment is read aloud, and one heard and answered aloud."""
    packed = []
    for i in range(b):
        first = models.segment(2, Clip(27 + i, written=True), 1, seed=10 * i)
        second = models.segment(2, Clip(13), 3, Clip(24, written=True), 1, seed=10 * i + 1)
        packed.append([first, second])
    return models.pack(packed, t)


def graded(batch, key=None):
    """Mean loss with all terms, its gradients and the sums, on the mesh in force."""
    skeleton, values = models.made(RUN)
    objective = NextPatch(RUN)
    step = jnp.int32(5)

    def loss(values, batch):
        sums = objective.loss(skeleton.model(values), batch, key)
        total = sums.loss / sums.weight
        for name, term in objective.terms(batch, step).items():
            total += term.scale * sums.terms[name] / term.weight
        return total, sums

    differentiate = models.jitted(jax.value_and_grad(loss, has_aux=True))
    (found, sums), grads = jax.device_get(differentiate(values, sharding.shard_batch(batch)))
    return found, sums, grads


@pytest.fixture(scope="module")
def single():
    with models.one_device():
        return graded(rows(8), jax.random.key(3))


def test_loss_and_gradients_on_eight_devices_equal_one(single):
    with models.split_as("fsdp2-seq2-tp2"):
        loss, _, grads = graded(rows(8), jax.random.key(3))
    assert loss == pytest.approx(single[0], rel=2e-6)
    for name, grad in single[2].items():
        largest = np.abs(grad).max()
        assert largest > 0, name
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=5e-5 * largest, err_msg=name)


def test_a_target_is_the_next_patch_of_the_same_clip():
    batch = rows(1)
    with models.one_device():
        targets = models.jitted(lambda batch: next_patch.patch_targets(batch, MEL.m))
        found = jax.device_get(targets(sharding.shard_batch(batch)))
    ids, clips, segments = found.clips[0], batch.clips[0], batch.segments[0]
    written = np.flatnonzero(clips < 0)
    np.testing.assert_array_equal(np.flatnonzero(ids), written - 1)
    np.testing.assert_array_equal(np.flatnonzero(found.last[0]), [4, 15])  # of 4 and of 3 patches
    np.testing.assert_array_equal(found.patch[0][written - 1], batch.patches[0][written])
    np.testing.assert_array_equal(found.weight[0][written - 1], batch.loss_weight[0][written])
    np.testing.assert_array_equal(np.flatnonzero(found.follows[0]), [2, 3, 4, 14, 15])
    assert len({(ids[i], segments[i]) for i in written - 1}) == len(set(ids[written - 1])) == 2
    cells = found.real[0][written - 1].sum(axis=-1)
    np.testing.assert_array_equal(cells, batch.frames[0][written] * MEL.m)


def test_terms_equal_those_worked_out_patch_by_patch():
    batch = rows(1)
    with models.one_device():
        skeleton, values = models.made(RUN)
        placed = sharding.shard_batch(batch)
        objective = NextPatch(RUN)

        def told(values, batch):
            model = skeleton.model(values)
            hidden = model(batch)
            written = model.mel_head.latent(hidden, None)
            targets = next_patch.patch_targets(batch, MEL.m)
            refined = model.mel_head.refine(written.patch, targets.clips, targets.frames)
            return (
                written,
                refined,
                objective.loss(model, batch),
                objective.terms(batch, jnp.int32(5)),
            )

        written, refined, sums, terms = jax.device_get(models.jitted(told)(values, placed))
    want = dict.fromkeys(("mel_l1", "mel_l2", "kl", "flux", "stop"), 0.0)
    reconstruction = weight = flux_weight = 0.0
    for t in np.flatnonzero(batch.clips[0] < 0) - 1:
        w, real = batch.loss_weight[0, t + 1], batch.frames[0, t + 1] * MEL.m
        y, before = batch.patches[0, t + 1, :real], batch.patches[0, t, :real]
        first, last = written.patch[0, t, :real] - y, refined[0, t, :real] - y
        mean, log_var = written.mean[0, t, :real], written.log_var[0, t, :real]
        l1, l2 = np.abs(last).mean(), np.square(last).mean()
        want["mel_l1"] += w * l1
        want["mel_l2"] += w * l2
        want["kl"] += w * (np.exp(log_var) + (mean - y) ** 2 - 1 - log_var).mean() / 2
        reconstruction += w * (l1 + l2 + np.abs(first).mean() + np.square(first).mean())
        weight += w
        if batch.clips[0, t] < 0:
            want["flux"] -= w * np.abs(mean - before).mean()
            flux_weight += w
        ends = batch.clips[0, t + 2] != batch.clips[0, t + 1]
        p = 1 / (1 + np.exp(-np.float64(written.stop[0, t])))
        want["stop"] -= w * (100 * np.log(p) if ends else np.log(1 - p))
    for name, value in want.items():
        assert sums.terms[name] == pytest.approx(value, rel=2e-5), name
    targets = (batch.segments[0, 1:] == batch.segments[0, :-1]) & (batch.segments[0, 1:] > 0)
    assert sums.weight == pytest.approx((batch.loss_weight[0, 1:] * targets).sum(), rel=1e-6)
    assert terms["kl"].weight == pytest.approx(weight, rel=1e-6)
    assert terms["flux"].weight == pytest.approx(flux_weight, rel=1e-6)
    assert sums.loss > reconstruction > 0  # the rest is the tokens' cross-entropy


def test_a_packed_clip_is_written_as_it_is_alone():
    """Sums over packed rows are those over rows of one segment each: nothing leaks.

    A convolution of the post-net reads eleven frames to each side, and between the first two clips,
    each the first of its segment, there is room for nine.
    """
    head = dataclasses.replace(HEAD, convolutions=2, taps=23)
    run = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, mel_head=head))
    segments = [
        models.segment(2, Clip(31, written=True), seed=1),
        models.segment(1, Clip(16, written=True), seed=2),
        models.segment(3, Clip(9), Clip(11, written=True), 2, seed=3),
    ]
    with models.one_device():
        skeleton, values = models.made(run)
        told = models.jitted(lambda values, b: NextPatch(run).loss(skeleton.model(values), b))
        together, alone = (
            jax.device_get(told(values, sharding.shard_batch(models.pack(rows, 32))))
            for rows in ([segments, [], []], [[segment] for segment in segments])
        )
    assert together.loss == pytest.approx(alone.loss, rel=1e-5)
    for name, total in alone.terms.items():
        assert together.terms[name] == pytest.approx(total, rel=2e-5), name


def test_a_causal_post_net_reads_no_later_frame_and_any_other_does():
    patches = np.random.default_rng(0).standard_normal((1, 4, MEL.p), dtype=np.float32)
    changed = patches.copy()
    changed[:, 2:] += 1.0

    def difference(causal):
        """How far the first two patches are apart where later ones are."""
        head = dataclasses.replace(HEAD, causal=causal)
        run = dataclasses.replace(RUN, model=dataclasses.replace(MODEL, mel_head=head))
        skeleton, values = models.made(run)
        ones = jnp.ones((1, 4), jnp.int32)
        refine = models.jitted(lambda x: skeleton.model(values).mel_head.refine(x, ones, ones * 8))
        return np.abs(refine(jnp.asarray(patches)) - refine(jnp.asarray(changed)))[:, :2].max()

    with models.one_device():
        assert difference(causal=True) < 1e-6
        assert difference(causal=False) > 1e-3


def test_the_divergence_counts_from_its_update_on():
    batch = rows(8)
    with models.one_device():
        placed = sharding.shard_batch(batch)
        scales = [float(NextPatch(RUN).terms(placed, jnp.int32(n))["kl"].scale) for n in (2, 3)]
    assert scales == [0.0, pytest.approx(0.05)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.writes": "text", "data.sources": [{"path": "a", "use": "tts"}]}, "use=tts: "),
        ({"model.front": "none", "data.sources": [{"path": "a", "use": "asr"}]}, "use=asr: "),
        ({"model.mel_head.taps": 4}, "model.mel_head.taps=4: must be an odd number"),
        ({"model.mel_head.dropout": 1.0}, "model.mel_head.dropout=1.0: must lie in"),
        ({"speech_loss.stop_positive": 0.0}, "speech_loss.stop_positive=0.0: must be above 0"),
    ],
)
def test_mistakes_name_the_field(changes, message):
    with pytest.raises(Mistake, match=message):
        override(RUN, changes)


def test_a_source_is_used_as_it_says_or_as_the_model_can():
    run = override(RUN, {"data.sources": [{"path": "a"}, {"path": "b", "use": "tts"}]})
    assert [run.source_use(i) for i in range(2)] == ["asr", "tts"]
    alone = override(RUN, {"model.front": "none", "data.sources": [{"path": "a"}]})
    assert alone.source_use(0) == "tts"
    assert alone.patch_width == MEL.p
    text = override(alone, {"model.writes": "text"})
    assert (text.source_use(0), text.patch_width) == ("text", 0)
    assert Source(path="a").use == "auto"
