"""The codec against the package focalcodec, part by part; `codec_files` keeps what that makes."""

import numpy as np
import pytest

from melllm_jax.codec.quantizer import code_ids, codes_of_ids, unit_vectors
from melllm_jax.convert.foreign_codec import read_codec
from tests.support import codec_files, models


@pytest.fixture(scope="module", params=codec_files.STYLES)
def both(request, tmp_path_factory):
    """Ours, read from its folder, and what theirs makes with the same weights."""
    folder = codec_files.write(tmp_path_factory.mktemp(request.param), request.param)
    with np.load(codec_files.ARRAYS) as arrays:
        prefix = f"{request.param} "
        theirs = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
    with models.one_device():
        return read_codec(folder), theirs


def assert_near(found, expected):
    """Sums in another order: 1e-5 of the largest value."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_features_latents_and_codes_of_sound_are_theirs(both):
    ours, theirs = both

    def run(codec, waves):
        return codec.encoder(waves), codec.latents(waves)

    with models.one_device():
        features, latents = models.jitted(run)(ours, codec_files.waves())
        units, ids = unit_vectors(latents), code_ids(latents)
    assert_near(features, theirs["features"])
    assert_near(latents, theirs["latents"])
    assert_near(units, theirs["units"])
    np.testing.assert_array_equal(ids, theirs["ids"])
    assert len(np.unique(ids)) > 5


def test_features_and_sound_of_codes_are_theirs(both):
    """The second row is shorter: its last chunk, of features from 32 on, is not full."""
    ours, theirs = both
    ids, shorter = theirs["ids"].astype(np.int32), theirs["shorter"]
    lengths = np.array([ids.shape[1], shorter.shape[1]], np.int32)

    def run(codec, ids, lengths):
        codes = codes_of_ids(ids, codec.spec.bits)
        return codec.features(codes, lengths), codec.decode(ids, lengths)

    with models.one_device():
        features, sound = models.jitted(run)(ours, ids, lengths)
    assert lengths.tolist() == [36, 34]
    assert_near(features[0], theirs["decoded"][0])
    assert_near(features[1, :34], shorter[1])
    assert_near(sound[0], theirs["sound"][0])
    assert_near(sound[1, : 32 * 24], theirs["sound"][1, : 32 * 24])
