"""Whisper whole against transformers: hidden states of all layers, greedy tokens, transcripts."""

import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.audio.file_io import decode_sound
from launch.runs.transcribe_files import transcribe_files
from melllm_jax.convert.hf_config.whisper_config import whisper_spec
from melllm_jax.convert.tensor_names.whisper import whisper_rules
from melllm_jax.inference.sampling import GREEDY_UNGUARDED
from melllm_jax.inference.whisper_generate import WhisperGenerator
from melllm_jax.models.parameters import abstract_model
from melllm_jax.models.whisper import WhisperModel, whole_windows
from tests.support import models, phi_files, whisper_files
from tests.support.references import (
    assert_equal,
    converted,
    randomised,
    torch,
    transformers,
)
from tests.support.whisper_files import GENERATION, START, TREE

# The end comes at several places of the transcripts; what is suppressed would come in them.
ENDS = {
    "eos_token_id": 198,
    "pad_token_id": 198,
    "begin_suppress_tokens": [198],
    "suppress_tokens": [57, 66, 69, *range(256, 262)],
}
SHAPE = {  # nothing is as often as another thing
    "num_mel_bins": 128,
    "d_model": 48,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "encoder_ffn_dim": 64,
    "vocab_size": 267,
}


def both(change=lambda theirs: None, generation=GENERATION, **changes):
    """Theirs, small and random, and ours with its weights after `change`, on one device."""
    tree = TREE | changes
    named = {k: x for k, x in tree.items() if k != "torch_dtype"}
    config = transformers.WhisperConfig(**named, attn_implementation="eager")
    theirs = randomised(transformers.WhisperForConditionalGeneration(config))
    change(theirs)
    theirs.generation_config = transformers.GenerationConfig(**generation)
    skeleton, shapes = abstract_model(
        lambda rngs: WhisperModel(rngs, whisper_spec(tree, generation, "config.json"))
    )
    ours = {name: x.shape for name, x in shapes.items()}
    read = converted(whisper_rules(), theirs, ours)
    assert read.keys() == ours.keys()
    return theirs, skeleton.model({name: jnp.asarray(x) for name, x in read.items()})


def noise(b, m=whisper_files.M, seed=0):
    shape = (b, 2 * whisper_files.POSITIONS, m)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def our_layers(model, mels, tokens):
    """Hidden states of the encoder and its output; of the decoder and its logits."""
    encoder = model.front.encoder
    states = encoder.hidden(mels, whole_windows(mels))
    heard = model.encode(mels)
    layers = model.decoder.hidden(tokens, heard)
    return states, heard, layers, model(mels, tokens)


def assert_states_equal(theirs, model, mels, tokens, most):
    """Every layer of both; theirs has the normed output in place of the last one's."""
    with torch.no_grad():
        found = theirs(
            input_features=torch.tensor(mels).transpose(1, 2),
            decoder_input_ids=torch.tensor(tokens).long(),
            output_hidden_states=True,
        )
    states, heard, layers, logits = models.jitted(our_layers)(model, mels, tokens)
    assert len(states) == len(found.encoder_hidden_states)
    assert len(layers) == len(found.decoder_hidden_states)
    for ours, expected in zip(states[:-1], found.encoder_hidden_states[:-1], strict=True):
        assert_equal(ours, expected, most)
    assert_equal(heard, found.encoder_last_hidden_state, most)
    for ours, expected in zip(layers[:-1], found.decoder_hidden_states[:-1], strict=True):
        assert_equal(ours, expected, most)
    assert_equal(logits, found.logits, most)


def test_all_hidden_states_equal():
    """float32, sums in another order: 1e-5."""
    with models.one_device():
        theirs, model = both(**SHAPE)
        m, v = model.spec.mel.m, model.spec.decoder.v
        tokens = np.random.default_rng(1).integers(0, v, (2, 9)).astype(np.int32)
        assert_states_equal(theirs, model, noise(2, m), tokens, 1e-5)


def test_greedy_tokens_are_those_of_their_generate():
    """Languages are detected row by row, some tokens never come, and rows end apart."""
    with models.one_device():
        theirs, model = both(listen, GENERATION | ENDS)
        spec, mels = model.spec, 3 * noise(6)
        room = spec.rules.longest - spec.rules.prompt_length
        out = WhisperGenerator(model, GREEDY_UNGUARDED)(mels, np.full(6, room))
        tokens, lengths = np.asarray(out.tokens), np.asarray(out.lengths)
    with torch.no_grad():
        found = theirs.generate(torch.tensor(mels).transpose(1, 2)).tolist()
    expected = [spoken(row) for row in found]
    assert [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)] == expected
    assert len(set(map(tuple, expected))) > 1
    assert len(set(map(len, expected))) > 1


def listen(theirs):
    """Makes a model hear more than it remembers, so that rows and places differ."""
    decoder = theirs.model.decoder
    with torch.no_grad():
        decoder.embed_positions.weight *= 8
        for layer in decoder.layers:
            layer.encoder_attn.out_proj.weight *= 8
            layer.encoder_attn.q_proj.weight *= 8


def spoken(row):
    """The ids of a transcript, without the prompt before it and the ends after it."""
    row, end = row[4:] if row and row[0] == START else row, ENDS["eos_token_id"]
    return row[: row.index(end)] if end in row else row


def real_folder():
    root = os.environ.get("MELLLM_MODELS", "")
    folder = pathlib.Path(root) / "whisper-tiny.en"
    if not root or not folder.is_dir():
        pytest.skip("MELLLM_MODELS names no folder with whisper-tiny.en")
    return folder


@pytest.mark.slow
def test_all_hidden_states_of_the_real_tiny_en_equal():
    folder = real_folder()
    tree, generation = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("config", "generation_config")
    )
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with models.one_device():
        skeleton, shapes = abstract_model(
            lambda rngs: WhisperModel(rngs, whisper_spec(tree, generation, "config.json"))
        )
        read = converted(whisper_rules(), theirs, {name: x.shape for name, x in shapes.items()})
        model = skeleton.model({name: jnp.asarray(x) for name, x in read.items()})
        mels = np.random.default_rng(0).normal(0, 0.5, (1, 3000, 80)).astype(np.float32)
        tokens = np.array([[*model.spec.rules.prompt, 1514, 0, 2141, 345, 3285, 30]], np.int32)
        assert_states_equal(theirs, model, mels, tokens, 1e-5)


@pytest.mark.slow
def test_transcripts_of_real_speech_are_those_of_their_generate(tmp_path):
    """LibriSpeech utterances, word for word; MELLLM_SPEECH names the folder of their corpus."""
    folder = real_folder()
    data = os.environ.get("MELLLM_SPEECH", "")
    if not data or not (pathlib.Path(data) / "test.jsonl").exists():
        pytest.skip("MELLLM_SPEECH names no folder with test.jsonl")
    lines = (pathlib.Path(data) / "test.jsonl").read_text().splitlines()
    files = [str(pathlib.Path(data) / json.loads(line)["audio_filepath"]) for line in lines]
    phi_files.told("import", folder, tmp_path / "ours")
    found = transcribe_files(files, str(tmp_path / "ours"), batch=8)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for file, ours in zip(files, found, strict=True):
        wave = decode_sound(file).at(16_000).wave
        features = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.no_grad():
            ids = theirs.generate(features)
        text = tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
        assert ours.text == text.strip(), file
