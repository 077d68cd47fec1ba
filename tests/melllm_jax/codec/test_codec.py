"""The codec in rows, on meshes and in pieces; tests/parity holds its numbers against focalcodec."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.codec import streaming
from melllm_jax.codec.codec import Codec
from melllm_jax.config.codec import CodecSpec, Focal, WaveNext
from melllm_jax.config.encoders import WavLM
from melllm_jax.encoders.wavlm import positions_heard
from melllm_jax.models.parameters import abstract_model
from tests.support import models

WAVLM = WavLM(
    d=16,
    n=4,
    f=24,
    l=2,
    channels=(8, 12),
    kernels=(6, 3),
    strides=(4, 2),
    norm="layer",
    taps=6,
    groups=4,
    buckets=16,
    distance=20,
    stable=True,
    last_norm=False,
    causal=True,
    window=12,
)
STACK = Focal(widths=(12,), pasts=(8,), levels=1, taps=3)
SPEC = CodecSpec(
    wavlm=WAVLM,
    compressor=STACK,
    bits=5,
    decompressor=dataclasses.replace(STACK, post_norm=True, gain=0.5, mean=True),
    wavenext=WaveNext(d=16, f=24, l=1, taps=5, hop=12),
)
WAVES = np.random.default_rng(0).normal(size=(8, 141)).astype(np.float32)
LENGTHS = np.array([141, 101, 141, 60, 100, 141, 32, 120], np.int32)
encode = models.jitted(lambda codec, waves, lengths: codec.encode(waves, lengths))
decode = models.jitted(lambda codec, ids, lengths: codec.decode(ids, lengths))


def one():
    """The codec on the mesh in force."""
    skeleton, weights = models.drawn(lambda rngs: Codec(rngs, SPEC))
    return skeleton.model(weights)


def whole():
    """Codes of all rows and their sound, as long as each is, on the mesh in force."""
    codec = one()
    ids = encode(codec, on_rows(WAVES), on_rows(LENGTHS))
    counts = on_rows(positions_heard(WAVLM, LENGTHS).astype(np.int32))
    return np.asarray(ids), np.asarray(decode(codec, ids, counts))


def on_rows(x):
    layout = sharding.a("b w" if x.ndim == 2 else "b")
    return jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), layout))


def assert_near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_released_sizes_have_as_many_weights_as_theirs():
    """What the package's FocalCodec of its defaults, causal, counts on torch's meta device."""
    with jax.sharding.use_abstract_mesh(sharding.ABSTRACT_MESH):
        shapes = abstract_model(lambda rngs: Codec(rngs, CodecSpec()))[1]
    assert sum(math.prod(x.shape) for x in shapes.values()) == 249_038_490


def test_a_padded_row_equals_its_sound_alone():
    """Whatever lies in the padding; its last chunk of features is not full."""
    with models.one_device():
        ids, sound = whole()
        alone = np.asarray(encode(one(), WAVES[1:2, :101], LENGTHS[1:2]))
        sound_alone = np.asarray(decode(one(), alone, np.array([13], np.int32)))
    assert alone.shape == (1, 13)
    assert sound.shape == (8, 18 * 12)
    assert len(np.unique(ids)) > 3
    np.testing.assert_array_equal(ids[1:2, :13], alone)
    assert_near(sound[1:2, : 13 * 12], sound_alone)


def test_pieces_of_any_length_are_the_whole():
    """Longer than every past, and the last chunk is not full; codes come as sound gives them."""
    with models.one_device():
        codec = one()
        whole_ids = np.asarray(encode(codec, WAVES, np.full(8, 141, np.int32)))
        whole_sound = np.asarray(decode(codec, whole_ids, np.full(8, 18, np.int32)))
        heard, said = streaming.init_encode(codec, 8), streaming.init_decode(codec, 8)
        ids, sounds = [], []
        for piece in np.split(WAVES, np.cumsum([32, 37, 11, 40]), axis=1):
            new, heard = streaming.encode_step(codec, heard, on_rows(piece))
            ids.append(np.asarray(new))
        ids.append(np.asarray(streaming.encode_rest(codec, heard)))
        for piece in np.split(whole_ids, [4, 5, 9, 16, 17], axis=1):
            sound, said = streaming.decode_step(codec, said, on_rows(piece))
            sounds.append(np.asarray(sound))
        sounds.append(np.asarray(streaming.decode_rest(codec, said)))
    assert [x.shape[1] for x in ids] == [4, 4, 0, 4, 4, 2]
    assert [x.shape[1] for x in sounds] == [48, 0, 48, 96, 0, 0, 24]
    np.testing.assert_array_equal(np.concatenate(ids, axis=1), whole_ids)
    assert_near(np.concatenate(sounds, axis=1), whole_sound)


def test_later_sound_changes_no_code_before_its_chunk():
    """Position 9 reads samples up to 72; it is of the chunk that begins with position 8."""
    changed = WAVES.copy()
    changed[:, 72:] += 3
    with models.one_device():
        run = models.jitted(lambda codec, waves: codec.latents(waves))
        codec = one()
        differ = np.any(np.asarray(run(codec, WAVES)) != np.asarray(run(codec, changed)), axis=2)
    assert np.flatnonzero(differ.any(axis=0))[0] == 8


def test_codes_and_sound_on_eight_devices_equal_one():
    with models.one_device():
        ids, sound = whole()
    with models.split_as("fsdp2-seq2-tp2"):
        split_ids, split_sound = whole()
    assert ids.shape == (8, 18)
    np.testing.assert_array_equal(split_ids, ids)
    assert_near(split_sound, sound)


@pytest.mark.slow  # by default the whole is split, and chunks on one device are the whole
def test_chunks_on_eight_devices_equal_one():
    """Two steps by one program: the state that comes out is laid out as the one that went in."""

    def run():
        codec, sounds = one(), []
        states = streaming.init_encode(codec, 8), streaming.init_decode(codec, 8)
        for piece in np.split(WAVES[:, :64], 2, axis=1):
            ids, heard = streaming.encode_step(codec, states[0], on_rows(piece))
            sound, said = streaming.decode_step(codec, states[1], ids)
            sounds.append(np.asarray(sound))
            layouts = [jax.tree.map(lambda x: x.sharding, x) for x in (states, (heard, said))]
            assert layouts[0] == layouts[1]
            states = heard, said
        return np.concatenate(sounds, axis=1)

    with models.one_device():
        alone = run()
    with models.split_as("fsdp4-tp2"):
        assert_near(run(), alone)
