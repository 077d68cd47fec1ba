import dataclasses
import math

from etils import epath
from grain import experimental
import numpy as np
import pytest

from data_pipelines.audio.file_io import to_flac
from data_pipelines.audio.spec_augment import RandomStreams
from data_pipelines.corpora.corpus import load_utterance_wave, open_corpus, split_digest
from data_pipelines.examples.asr_example import ExampleMaker, reject_reasons
from data_pipelines.examples.wave_augment import (
    Effects,
    change_speed,
    mix_noise,
    reverberate,
)
from data_pipelines.loader.pipeline import train_batches
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.reject import Reject, Unusable
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.config.data import Augment, Sounds
from melllm_jax.errors import Mistake
from tests.support.corpora import MEL, run_over, write_corpus
from tests.support.paths import LIBRISPEECH

BYTES = load_tokenizer("bytes")
RATE = 16_000
READ = LIBRISPEECH
ONE_BY_ONE = {"bins": 1, "t": 64, "lanes": 1}


def white(samples, seed=0, level=0.1):
    return np.random.default_rng(seed).normal(0.0, level, samples).astype(np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


def draws(seed=0):
    return RandomStreams(rng(seed))


def decibels(wave, under):
    return 10 * math.log10(float(np.mean(np.square(wave)) / np.mean(np.square(under))))


def response():
    """A room: 100 samples on the way, an inverted direct sound, then a tail of 0.25 s."""
    tail = white(4000) * np.exp(-np.arange(4000) / 800).astype(np.float32)
    return np.concatenate([np.zeros(100, np.float32), np.float32([-0.9]), 0.3 * tail])


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("speech"), 100)  # Grain shuffles fewer slowly


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noises")
    return write_corpus(folder, 5, split="noise", first=70, seconds=0.2)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("rooms"), 2, seconds=0.2)
    for file in (folder / "audio").iterdir():
        file.write_bytes(to_flac(response()))
    return folder


def every(noises, rooms):
    """All augmentations of sound at once."""
    return Augment(
        speed=1.0,
        reverb=1.0,
        rooms=Sounds(str(rooms)),
        noise=1.0,
        noises=Sounds(str(noises), split="noise"),
        volume=1.0,
    )


def all_at_once(noises, rooms):
    """All augmentations, of mel too."""
    on_mel = {"warp": 1.0, "warp_width": 3, "mask": 1.0, "time_share": 0.2, "shift": 7}
    return dataclasses.replace(every(noises, rooms), **on_mel)


def test_published_defaults_stand_in_the_config():
    """Ko et al. 2015; Kaldi's egs/voxceleb/v2/run.sh and perturb_data_dir_volume.sh."""
    cfg = Augment()
    assert cfg.speeds == (0.9, 1.0, 1.1)
    assert cfg.snrs == (15.0, 10.0, 5.0, 0.0)
    assert (cfg.quietest, cfg.loudest) == (1 / 8, 2.0)
    assert cfg.waveform_fields == ()


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.05])
def test_sped_changes_duration_and_pitch_by_the_factor(factor):
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    out = change_speed(tone, factor)
    assert out.dtype == np.float32
    assert out.size == pytest.approx(RATE / factor, abs=1)
    inner = out[1000:-1000] * np.hanning(out.size - 2000)
    peak = np.abs(np.fft.rfft(inner, 8 * RATE)).argmax() / 8  # Hz, in steps of 1/8
    assert peak == pytest.approx(1000 * factor, abs=0.2)
    assert np.abs(out[1000:-1000]).max() == pytest.approx(1.0, abs=0.01)


def test_sped_by_one_is_the_sound_itself():
    wave = white(1000)
    assert np.array_equal(change_speed(wave, 1.0), wave)


@pytest.mark.parametrize("snr", [20.0, 15.0, 0.0, -5.0])
@pytest.mark.parametrize("noise_size", [700, 8000, 30_000])
def test_mixed_noise_lies_as_far_below_the_speech_as_asked(snr, noise_size):
    wave, noise = white(8000, 1, 0.05), white(noise_size, 2, 0.3)
    out = mix_noise(wave, noise, snr, rng())
    assert out.dtype == np.float32
    assert out.shape == wave.shape
    assert decibels(wave, out - wave) == pytest.approx(snr, abs=0.01)


def test_mixed_noise_that_is_shorter_is_repeated():
    wave = white(1000, 1)
    added = mix_noise(wave, white(300, 2), 0.0, rng()) - wave
    np.testing.assert_allclose(added[300:600], added[:300], atol=1e-6)
    np.testing.assert_allclose(added[900:], added[:100], atol=1e-6)


def test_mixed_noise_that_is_longer_is_cut_at_any_place():
    wave = white(50, 1)
    noise = np.arange(1, 61, dtype=np.float32)
    starts = set()
    for seed in range(200):
        added = mix_noise(wave, noise, 0.0, rng(seed)) - wave
        step = (added[-1] - added[0]) / 49
        starts.add(round(float(added[0] / step)))
        np.testing.assert_allclose(np.diff(added), step, rtol=0.05)
    assert starts == set(range(1, 12))


def test_mixed_with_silence_on_either_side_is_the_sound_itself():
    wave, silence = white(1000), np.zeros(1000, np.float32)
    assert mix_noise(wave, silence, 0.0, rng()) is wave
    assert mix_noise(silence, wave, 0.0, rng()) is silence


@pytest.mark.parametrize("size", [300, 4000, 60_000])
def test_reverberated_is_the_convolution_from_the_direct_path_on(size):
    wave, room = white(size, 3), response()
    out = reverberate(wave, room)
    wet = np.convolve(wave.astype(np.float64), room.astype(np.float64))[100 : 100 + size]
    wet *= np.sqrt(np.sum(np.square(wave, dtype=np.float64)) / np.sum(np.square(wet)))
    np.testing.assert_allclose(out, wet, atol=1e-6)  # float32: 1e-7 of a level of 0.1, summed
    assert out.dtype == np.float32
    assert out.shape == wave.shape


def test_reverberated_click_stays_where_it_was():
    wave = np.zeros(8000, np.float32)
    wave[3000] = 0.5
    out = reverberate(wave, response())
    assert np.abs(out).argmax() == 3000
    np.testing.assert_allclose(out[:3000], 0.0, atol=1e-6)
    assert decibels(out, wave) == pytest.approx(0.0, abs=1e-3)


def test_reverberated_silence_or_by_silence_is_the_sound_itself():
    wave, silence = white(1000), np.zeros(1000, np.float32)
    assert reverberate(wave, silence) is wave
    assert reverberate(silence, response()) is silence


def test_effects_that_are_off_give_the_sound_itself():
    wave = white(1000)
    assert Effects(Augment())(wave, draws()) is wave


def test_volume_is_drawn_evenly_between_its_ends():
    wave = white(1000)
    effects = Effects(Augment(volume=1.0))
    factors = np.array([effects(wave, draws(seed))[0] / wave[0] for seed in range(1000)])
    assert 0.125 <= factors.min() < 0.2
    assert 1.9 < factors.max() <= 2.0
    assert factors.mean() == pytest.approx(1.0625, abs=0.07)  # four standard errors
    assert np.corrcoef(np.sort(factors), np.linspace(0, 1, 1000))[0, 1] > 0.95


def test_speed_is_each_of_its_factors_a_third_of_the_time():
    effects = Effects(Augment(speed=1.0))
    sizes = [effects(white(900), draws(seed)).size for seed in range(300)]
    assert set(sizes) == {818, 900, 1000}
    assert all(60 <= sizes.count(size) <= 140 for size in set(sizes))


@pytest.mark.parametrize("name", ["speed", "reverb", "noise", "volume"])
def test_share_of_a_half_changes_half_of_the_sounds(name, noises, rooms):
    cfg = dataclasses.replace(every(noises, rooms), speed=0.0, reverb=0.0, noise=0.0, volume=0.0)
    cfg = dataclasses.replace(cfg, speeds=(0.9, 1.1))  # by 1 gives the sound itself
    effects = Effects(dataclasses.replace(cfg, **{name: 0.5}))
    wave = white(900)
    changed = sum(effects(wave, draws(seed)) is not wave for seed in range(400))
    assert changed == pytest.approx(200, abs=40)  # four standard deviations


def test_noise_of_the_corpus_is_any_of_it_at_any_ratio(noises):
    cfg = Augment(noise=1.0, noises=Sounds(str(noises), split="noise"))
    effects, wave = Effects(cfg), white(800, 9)
    corpus = [load_utterance_wave(utterance) for utterance in open_corpus(noises, "noise")]
    found = set()
    for seed in range(200):
        added = effects(wave, draws(seed)) - wave
        near = [np.abs(np.correlate(noise, added, "valid")).max() for noise in corpus]
        near = [x / np.linalg.norm(noise) for x, noise in zip(near, corpus, strict=True)]
        found.add((int(np.argmax(near)), round(decibels(wave, added))))
    assert found == {(noise, snr) for noise in range(5) for snr in (15, 10, 5, 0)}


@pytest.mark.parametrize("off", ["speed", "reverb", "noise", "volume"])
def test_draws_of_one_effect_do_not_depend_on_another(off, noises, rooms, monkeypatch):
    """What the others are given by chance is the same, with one on or off."""
    cfg = every(noises, rooms)
    seen = {}

    class Recorded(RandomStreams):
        def __getitem__(self, name):
            generator = super().__getitem__(name)
            seen[name] = generator
            return generator

    def ends(cfg):
        """State of each generator after its draws, over the same length of sound."""
        seen.clear()
        Effects(cfg)(white(4000), Recorded(rng(5)))
        return {name: generator.bit_generator.state["state"] for name, generator in seen.items()}

    cfg = dataclasses.replace(
        cfg, speeds=(1.0,)
    )  # the length of the sound bounds where noise starts
    left = ends(dataclasses.replace(cfg, **{off: 0.0}))
    both = ends(cfg)
    assert left.keys() == both.keys() - {off}
    assert left == {name: both[name] for name in left}


@pytest.mark.parametrize(("corpus", "reason"), [("noises", "bad noise"), ("rooms", "bad room")])
def test_bad_noise_is_a_reject_that_names_it(speech, tmp_path, corpus, reason):
    changes = {0: {"audio_filepath": "gone.flac", "id": "hiss"}}
    bad = write_corpus(tmp_path, 1, changes=changes)
    share = {"noises": "noise", "rooms": "reverb"}[corpus]
    run = run_over(speech, augment=Augment(**{share: 1.0, corpus: Sounds(str(bad))}))
    effects = Effects(run.data.augment)
    with pytest.raises(Unusable, match=r"gone.flac: no such file"):
        effects(white(1000), draws())
    utterance = open_corpus(speech, "train")[0]
    reject = ExampleMaker(run, BYTES, effects).train((2, utterance), rng())
    assert isinstance(reject, Reject)
    assert (reject.source, reject.id, reject.reason) == (2, "id0", reason)
    assert "gone.flac" in reject.detail
    assert reason in reject_reasons(run.data)


def test_run_over_bad_noises_is_stopped_and_says_why(speech, tmp_path):
    bad = write_corpus(tmp_path, 2, changes=dict.fromkeys((0, 1), {"audio_filepath": "gone.flac"}))
    run = run_over(
        speech, augment=Augment(noise=1.0, noises=Sounds(str(bad))), max_reject_share=0.1
    )
    with pytest.raises(Mistake, match="bad noise"):
        next(iter(train_batches(run, BYTES)))


def test_example_of_slowed_speech_that_leaves_its_row_is_a_reject(speech):
    utterance = open_corpus(speech, "train")[0]
    slow = Augment(speed=1.0, speeds=(0.5,))
    run = run_over(
        speech, t=len(ExampleMaker(run_over(speech), BYTES).train((0, utterance), rng())["tokens"])
    )
    assert "tokens" in ExampleMaker(run, BYTES).train((0, utterance), rng())
    reject = ExampleMaker(run, BYTES, Effects(slow)).train((0, utterance), rng())
    assert reject.reason == f"longer than the row of t={run.data.t}"
    assert reject.reason in reject_reasons(run.data)


def test_example_without_augmentation_has_the_mel_of_the_sound_bit_by_bit(speech):
    run = run_over(speech, wire="float32")
    corpus = open_corpus(speech, "train")
    for utterance in map(corpus.__getitem__, range(12)):
        columns = ExampleMaker(run, BYTES, Effects(run.data.augment)).train((0, utterance), rng())
        trial = ExampleMaker(run, BYTES).eval_example(utterance).columns
        t = len(trial["tokens"])
        assert np.array_equal(columns["patches"][:t], trial["patches"])


def test_augmented_stream_is_the_same_for_any_threads_and_changes_with_the_epoch(
    speech, noises, rooms
):
    changed = all_at_once(noises, rooms)

    def patches(augment=changed, **data):
        run = run_over(speech, augment=augment, **ONE_BY_ONE | data)
        batches = iter(train_batches(run, BYTES))
        return [next(batches).patches.tobytes() for _ in range(3)]

    alone = patches(threads=0, ahead=0)
    assert patches(threads=3, ahead=2) == alone
    assert len(set(alone)) == 3
    assert patches(Augment())[0] != alone[0]


def test_augmented_stream_stopped_at_any_batch_goes_on_alike(speech, noises, rooms):
    run = run_over(speech, augment=all_at_once(noises, rooms), **ONE_BY_ONE)
    batches = experimental.LimitIterDataset(train_batches(run, BYTES), 2)
    experimental.assert_equal_output_after_checkpoint(batches)


def test_ready_mel_cannot_be_sped_up_or_mixed(speech, noises, tmp_path):
    prepare(speech, tmp_path / "mel", mel=dataclasses.replace(MEL, r=1))
    augment = Augment(
        speed=0.5, noise=0.1, noises=Sounds(str(noises), split="noise"), mask=1.0, shift=3
    )
    with pytest.raises(Mistake, match=r"data.augment: speed, noise: .*mel holds ready mel"):
        train_batches(run_over(tmp_path / "mel", augment=augment), BYTES)
    of_mel = dataclasses.replace(augment, speed=0.0, noise=0.0)
    next(iter(train_batches(run_over(tmp_path / "mel", augment=of_mel), BYTES)))


def test_noises_of_ready_mel_are_refused(speech, tmp_path):
    prepare(speech, tmp_path / "mel", mel=dataclasses.replace(MEL, r=1))
    with pytest.raises(Mistake, match=r"data.augment.noises.path=.*mel: holds ready mel"):
        Effects(Augment(noise=1.0, noises=Sounds(str(tmp_path / "mel"))))


def test_noises_that_changed_since_the_run_began_are_refused(tmp_path):
    folder = write_corpus(tmp_path, 2)
    noises = Sounds(str(folder), digest=split_digest(folder, "train"))
    Effects(Augment(noise=1.0, noises=noises))
    write_corpus(tmp_path, 3)
    with pytest.raises(Mistake, match=rf"data.augment.noises.digest={noises.digest}: "):
        Effects(Augment(noise=1.0, noises=noises))


def test_noises_that_are_missing_are_refused_when_the_data_is_opened(speech, tmp_path):
    run = run_over(speech, augment=Augment(noise=0.1, noises=Sounds(str(tmp_path / "none"))))
    with pytest.raises(Mistake, match=r"none: is no folder"):
        train_batches(run, BYTES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": 0.5}, "data.augment.noise=0.5: needs a corpus: give data.augment.noises.path"),
        ({"reverb": 0.5}, "data.augment.reverb=0.5: needs a corpus: give data.augment.rooms.path"),
        ({"speed": 1.5}, "data.augment.speed=1.5: must lie in [0, 1]"),
        ({"speeds": ()}, "data.augment.speeds=(): needs factors from 0.5 to 2"),
        ({"speeds": (9.0,)}, "data.augment.speeds=(9.0,): needs factors from 0.5 to 2"),
        ({"snrs": (math.nan,)}, "data.augment.snrs=(nan,): needs one ratio in dB at least"),
        ({"quietest": 3.0}, "data.augment.quietest=3.0: must lie in (0, 2.0]"),
        ({"shift": -1}, "data.augment.shift=-1: must be 0 or more"),
    ],
)
def test_augmentation_that_cannot_be_is_refused_in_one_line(fields, message):
    with pytest.raises(Mistake) as caught:
        Augment(**fields)
    assert str(caught.value) == message


def test_real_speech_among_real_speech_keeps_its_ratio():
    """Another utterance as the noise: babble, as in the recipes."""
    if not READ.is_dir():
        pytest.skip("no read speech beside the project")
    corpus = open_corpus(epath.Path(READ), "test")
    effects = Effects(Augment(noise=1.0, noises=Sounds(str(READ), split="test"), snrs=(5.0,)))
    for index in range(3):
        wave = load_utterance_wave(corpus[index])
        assert decibels(wave, effects(wave, draws(index)) - wave) == pytest.approx(5.0, abs=0.01)
