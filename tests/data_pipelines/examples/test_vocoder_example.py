import dataclasses

import numpy as np
import pytest

from data_pipelines.audio.file_io import to_flac
from data_pipelines.corpora.corpus import load_utterance_wave, open_corpus
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.vocoder_example import VocoderExampleMaker
from data_pipelines.loader import pipeline
from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.reject import Reject
from data_pipelines.text.byte_tokenizer import ByteTokenizer
from data_pipelines.text.turns import Turn
from melllm_jax.errors import Mistake
from tests.support.corpora import write_corpus
from tests.support.vocoders import vocoder_run

RUN = vocoder_run()
WIDTH = RUN.data.t * RUN.mel.hop


def utterance(samples, **more):
    wave = np.random.default_rng(0).normal(0, 0.1, samples).clip(-0.9, 0.9).astype(np.float32)
    return Utterance(id="u", text="", duration=0.0, speaker="", audio=to_flac(wave), **more)


def made(one, seed=0, run=RUN):
    return VocoderExampleMaker(run).train((3, one), np.random.default_rng(seed))


def test_a_crop_is_a_stretch_of_the_sound_that_the_random_state_chooses():
    one = utterance(4 * WIDTH)
    wave = load_utterance_wave(one)
    columns = [made(one, seed) for seed in (0, 0, 1)]
    starts = []
    for each in columns:
        crop = each["patches"].reshape(-1)
        (start,) = [i for i in np.flatnonzero(wave == crop[0]) if (wave[i:][:WIDTH] == crop).all()]
        starts.append(start)
        assert each["frames"].tolist() == each["clips"].tolist() == [1] * RUN.data.t
    assert starts[0] == starts[1] != starts[2]
    assert columns[0]["sources"].tolist() == [3] * RUN.data.t


def test_sound_shorter_than_a_crop_is_filled_up_and_its_frames_say_so():
    one = utterance(3 * RUN.mel.hop + 1)
    found = made(one)
    assert found["frames"].tolist() == found["loss_weight"].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    wave = load_utterance_wave(one)
    np.testing.assert_array_equal(found["patches"].reshape(-1)[: wave.size], wave)
    assert not found["patches"].reshape(-1)[wave.size :].any()


def test_what_is_no_sound_is_rejected():
    text = Utterance(id="u", text="a", duration=0.0, speaker="", turns=(Turn("user", ("a",)),))
    flawed = Utterance(id="u", text="", duration=0.0, speaker="", flaw="no id")
    long = dataclasses.replace(utterance(100), duration=31.0)
    for one, reason in (
        (text, "malformed row"),
        (flawed, "malformed row"),
        (long, "longer than 30 s"),
    ):
        found = made(one)
        assert isinstance(found, Reject) and reason in found.reason


def test_shards_of_ready_mel_are_refused_by_name_and_shards_of_sound_read(tmp_path):
    source = write_corpus(tmp_path / "manifest", 9)
    prepare(source, tmp_path / "mel", store="mel", mel=dataclasses.replace(RUN.mel, r=8))
    with pytest.raises(Mistake, match=f"data={tmp_path}/mel: holds ready mel: a vocoder learns"):
        pipeline.train_batches(vocoder_run(tmp_path / "mel"), ByteTokenizer())
    prepare(source, tmp_path / "flac", store="flac")
    stream = iter(pipeline.train_batches(vocoder_run(tmp_path / "flac"), ByteTokenizer()))
    first, place, second = next(stream), stream.get_state(), next(stream)
    assert first.patches.shape == (8, 8, 160)
    stream.set_state(place)
    np.testing.assert_array_equal(next(stream).patches, second.patches)
    stream.close()
    worker = vocoder_run(tmp_path / "flac", **{"data.workers": 1})
    other = iter(pipeline.train_batches(worker, ByteTokenizer()))
    np.testing.assert_array_equal(next(other).patches, first.patches)
    other.close()
    known = {load_utterance_wave(one).tobytes() for one in open_corpus(tmp_path / "flac", "train")}
    assert any(row[row.nonzero()].tobytes()[:64] in one for one in known for row in first.patches)
