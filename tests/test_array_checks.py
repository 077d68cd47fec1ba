"""In tests a call is refused whose arrays, or other arguments, are not what is written down."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from data_pipelines.audio.log_mel import extract_log_mel
from data_pipelines.examples.interleave import Clip
from melllm_jax.config.features import Mel
from melllm_jax.features.stft import istft
from melllm_jax.flops import count_parameters


def test_an_array_of_another_dtype_or_number_of_axes_is_refused():
    for wave in (np.zeros(800), np.zeros((1, 800), np.float32)):
        with pytest.raises(jaxtyping.TypeCheckError):
            extract_log_mel(wave, Mel())
    with pytest.raises(jaxtyping.TypeCheckError):
        Clip(np.zeros(3, np.float32))


def test_letters_of_one_call_stand_for_one_length():
    bins = jnp.zeros((2, 5, 9), jnp.complex64)
    assert istft(bins, 4, lengths_b=jnp.array([8, 4])).shape[0] == 2
    with pytest.raises(jaxtyping.TypeCheckError):
        istft(bins, 4, lengths_b=jnp.array([8, 4, 4]))


def test_what_is_no_array_is_refused_too():
    with pytest.raises(jaxtyping.TypeCheckError):
        count_parameters("digits")
