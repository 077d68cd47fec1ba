"""WavLM of both norm styles against transformers' WavLMModel, read from the folder it writes."""

import numpy as np
import pytest

from melllm_jax.convert.foreign_wavlm import read_wavlm
from melllm_jax.encoders.wavlm import positions_heard
from melllm_jax.nn.relative_position import distance_buckets
from tests.support import models
from tests.support.references import assert_equal, randomised, torch, transformers

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (12, 10, 8),
    "conv_stride": (4, 2, 2),
    "conv_kernel": (6, 3, 2),
    "num_conv_pos_embedding_groups": 4,
    "num_buckets": 16,
    "max_bucket_distance": 20,
}
# The stem's norm and its biases, where norms stand in a block, an odd and an even count of taps.
STYLES = {
    "base": {"feat_extract_norm": "group", "num_conv_pos_embeddings": 7},
    "large": {
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "num_conv_pos_embeddings": 6,
    },
}


@pytest.fixture(scope="module", params=STYLES)
def both(request, tmp_path_factory):
    """Theirs, small and random, and ours with its weights."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = randomised(
        transformers.WavLMModel(transformers.WavLMConfig(**SIZES, **STYLES[request.param]))
    )
    theirs.save_pretrained(folder)
    with models.one_device():
        return theirs, read_wavlm(folder)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("lengths", [(700, 700, 700), (700, 401, 52)], ids=["full", "padded"])
def test_all_hidden_states_and_the_output_equal(both, lengths):
    """Sums in another order: 1e-6. Time exceeds the largest distance; a row has few positions."""
    theirs, ours = both
    lengths = np.array(lengths, np.int32)
    real = np.arange(700)[None] < lengths[:, None]
    waves = np.random.default_rng(0).normal(size=(3, 700)).astype(np.float32) * real
    mask = None if real.all() else torch.tensor(real).long()
    with torch.no_grad():
        expected = theirs(torch.tensor(waves), attention_mask=mask, output_hidden_states=True)
    with models.one_device():
        run = models.jitted(lambda m, x, n: (m.hidden(x, n), m(x, n)))
        states, output = run(ours, waves, lengths)
    assert states.shape[2] == positions_heard(ours.cfg, 700) > 2 * ours.cfg.distance
    for x, y in zip([*states, output], [*expected.hidden_states, expected[0]], strict=True):
        assert_equal(x, y, 1e-5)


@pytest.mark.parametrize(("count", "most"), [(320, 800), (16, 20), (8, 1000)])
def test_buckets_of_all_distances_are_theirs(count, most):
    attention = transformers.models.wavlm.modeling_wavlm.WavLMAttention
    theirs = attention(8, 2, num_buckets=count, max_distance=most)
    expected = theirs._relative_positions_bucket(torch.arange(-2 * most, 2 * most + 1)).numpy()
    found = distance_buckets(count, most)
    np.testing.assert_array_equal(found, expected[most:-most])
    assert set(expected[:most]) == {found[0]}
    assert set(expected[-most:]) == {found[-1]}
