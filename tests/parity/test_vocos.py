"""Vocos against arrays that the package vocos computed from the same random weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax.config.vocoder import Vocos
from melllm_jax.convert.tensor_names.vocos import vocos_rules
from melllm_jax.convert.weight_map import expand_rules
from melllm_jax.models.parameters import abstract_model
from melllm_jax.vocoders.vocos import VocosVocoder
from tests.support import models, vocos_files
from tests.support.vocos_files import HOP, N_FFT, D, F, L, M


def ours(padding):
    """Our network with the tensors of `vocos_files`."""
    cfg = Vocos(d=D, f=F, l=L, n_fft=N_FFT, hop=HOP, padding=padding)
    skeleton, shapes = abstract_model(lambda rngs: VocosVocoder(rngs, cfg, M))
    weights = {name: np.empty(x.shape, np.float32) for name, x in shapes.items()}
    tensors = vocos_files.tensors()
    expected = expand_rules(vocos_rules(L), {name: x.shape for name, x in shapes.items()})
    assert expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        for piece in tensor.pieces(max_elements=10**9):
            rows = tensors[name][piece.start : piece.stop]
            weights[piece.name][piece.index] = piece.read(rows)
    return skeleton.model({name: jnp.asarray(x) for name, x in weights.items()})


@pytest.mark.parametrize("padding", ["center", "same"])
def test_sound_equals_the_packages(padding):
    expected = np.load(vocos_files.ARRAYS)[padding]
    with models.one_device():
        mels = jnp.asarray(vocos_files.mels().transpose(0, 2, 1))
        found = models.jitted(lambda model, x: model(x))(ours(padding), mels)
    assert found.shape == expected.shape == (2, (10 if padding == "center" else 11) * HOP)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"{error:.1e}"
