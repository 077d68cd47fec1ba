"""Whisper's encoder against transformers' WhisperEncoder: parts, layers, sound to states."""

import copy
import os
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.audio.log_mel import normalized_log_mel
from melllm_jax.checkpoints import run_folder, weight_store
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel
from melllm_jax.convert.tensor_names import whisper as names
from melllm_jax.encoders.whisper import WhisperEncoder
from melllm_jax.models.parameters import abstract_encoder, abstract_model
from melllm_jax.nn import attention
from tests.support import models, phi_files
from tests.support.references import (
    assert_equal,
    converted,
    randomised,
    torch,
    transformers,
)

CFG = Whisper(d=24, n=3, f=40, l=3, positions=20)
M = 8


def weights_of(cfg, m, theirs, prefix=""):
    """Our encoder alone, with the weights of their model."""
    skeleton, shapes = abstract_model(lambda rngs: WhisperEncoder(rngs, cfg, m))
    ours = {f"{names.OUR_ENCODER}{name}": x.shape for name, x in shapes.items()}
    read = converted(names.encoder_rules(prefix), theirs, ours)
    assert read.keys() == ours.keys()
    return skeleton.model(
        {k.removeprefix(names.OUR_ENCODER): jnp.asarray(x) for k, x in read.items()}
    )


@pytest.fixture(scope="module")
def both():
    """Theirs, small and random, and ours with its weights."""
    config = transformers.WhisperConfig(
        d_model=CFG.d,
        encoder_attention_heads=CFG.n,
        encoder_ffn_dim=CFG.f,
        encoder_layers=CFG.l,
        max_source_positions=CFG.positions,
        num_mel_bins=M,
        decoder_layers=0,
        attn_implementation="eager",
    )
    theirs = randomised(transformers.WhisperModel(config)).encoder
    with models.one_device():
        holder = torch.nn.Module()
        holder.encoder = theirs
        return theirs, weights_of(CFG, M, holder)


def noise(b, frames, m=M, seed=0):
    return np.random.default_rng(seed).normal(size=(b, frames, m)).astype(np.float32)


def their_states(theirs, mels):
    """Every hidden state and the output, for mels [b f m]."""
    with torch.no_grad():
        found = theirs(torch.tensor(mels).transpose(1, 2), output_hidden_states=True)
    return found.hidden_states, found.last_hidden_state


def our_states(ours, mels):
    one = np.ones(mels.shape[:2], np.int32)
    with models.one_device():
        return models.jitted(lambda m, x, s: (m.hidden(x, s), m(x, s)))(ours, mels, one)


def test_all_hidden_states_of_whole_windows_equal(both):
    """Theirs has the normed output in place of the last layer's: sums in another order, 1e-6."""
    theirs, ours = both
    mels = noise(2, 2 * CFG.positions)
    states, output = their_states(theirs, mels)
    hidden, out = our_states(ours, mels)
    assert len(hidden) == len(states) == CFG.l + 1
    for x, expected in zip(hidden[:-1], states[:-1], strict=True):
        assert_equal(x, expected, 1e-5)
    assert_equal(out, output, 1e-5)


@pytest.mark.parametrize("part", ["norm", "attention", "mlp", "block"])
def test_each_part_of_a_block_equals(both, part):
    theirs, ours = both
    layer, x = theirs.layers[1], noise(2, CFG.positions, CFG.d)
    everything = jnp.ones((2, CFG.positions, CFG.positions), bool)
    attend = lambda q, k, v: attention.attend(q, k, v, everything)
    apply = {
        "norm": lambda block, x: block.mlp_norm(x),
        "attention": lambda block, x: block.attn(x, attend),
        "mlp": lambda block, x: block.mlp(x),
        "block": lambda block, x: block(x, attend),
    }[part]
    with models.one_device():
        block = jax.tree.map(lambda w: w[1], ours.stack.blocks)
        found = models.jitted(apply)(block, x)
    with torch.no_grad():
        y = torch.tensor(x)
        expected = {
            "norm": lambda: layer.final_layer_norm(y),
            "attention": lambda: layer.self_attn(y)[0],
            "mlp": lambda: layer.fc2(layer.activation_fn(layer.fc1(y))),
            "block": lambda: layer(y, None),
        }[part]()
    assert_equal(found, expected, 1e-5)


def test_positions_of_a_random_encoder_are_theirs():
    """Float32 sines of angles to 1,500, each of another library: 1e-4."""
    small = Whisper(d=64, n=2, f=8, l=1)
    with models.one_device():
        ours = models.jitted(lambda rngs: WhisperEncoder(rngs, small, M).positions[...])(
            nnx.Rngs(0)
        )
    expected = transformers.models.whisper.modeling_whisper.sinusoids(1500, 64)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("positions", [1, 7])
def test_a_sequence_of_its_own_length_equals_their_encoder_of_that_length(both, positions):
    """Theirs takes whole windows: it is given fewer positions, and ours other sequences too."""
    theirs, ours = both
    short = copy.deepcopy(theirs)
    short.config.max_source_positions = positions
    short.embed_positions = torch.nn.Embedding.from_pretrained(
        theirs.embed_positions.weight[:positions].detach()
    )
    mels = noise(1, 2 * positions)
    around = np.concatenate([noise(1, 6, seed=1), mels, noise(1, 10, seed=2)], axis=1)
    sequences = np.repeat(np.array([[1, 2, 3]], np.int32), [6, 2 * positions, 10], axis=1)
    with models.one_device():
        found = models.jitted(lambda m, x, s: m(x, s))(ours, around, sequences)
    assert_equal(found[:, 3 : 3 + positions], their_states(short, mels)[1], 1e-5)


@pytest.mark.slow
def test_real_whisper_hears_a_padded_window_as_theirs_from_sound(tmp_path):
    """All layers of the import, from the waveform; extractors differ by 1e-4 of a frame."""
    root = pathlib.Path(os.environ.get("MELLLM_MODELS", ""))
    folder = root / "whisper-tiny.en"
    if not os.environ.get("MELLLM_MODELS") or not folder.is_dir():
        pytest.skip("MELLLM_MODELS names no folder with whisper-tiny.en")
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).model
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000 * 5).astype(np.float32)
    wave *= np.sin(np.arange(wave.size) / 700).astype(np.float32)
    their_mels = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features
    silence = np.zeros(16_000 * 30 - wave.size, np.float32)
    mels = normalized_log_mel(np.concatenate([wave, silence]), Mel("whisper", normalize="none"))
    with torch.no_grad():
        found = theirs.encoder(their_mels, output_hidden_states=True)
    phi_files.told("import", folder, tmp_path / "ours")
    stored = weight_store.WeightReader(tmp_path / "ours/checkpoints/0")
    skeleton = abstract_encoder(run_folder.read_front(str(tmp_path / "ours")))[0]
    read = {name: jnp.asarray(stored.read(name), np.float32) for name in stored.shapes}
    with models.one_device():
        ours = skeleton.model(read).front.encoder
    hidden, output = our_states(ours, mels[None])
    for x, expected in zip(hidden[:-1], found.hidden_states[:-1], strict=True):
        assert_equal(x, expected, 1e-4)
    assert_equal(output, found.last_hidden_state, 1e-4)
