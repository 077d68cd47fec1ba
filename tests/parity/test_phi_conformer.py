"""Phi-4-multimodal with its Conformer, small and random, against transformers, 24 blocks deep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.encoders import Conformer
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model
from melllm_jax.convert.tensor_names import phi
from tests.support import models
from tests.support.references import (
    assert_equal,
    converted,
    randomised,
    sizes,
    torch,
    transformers,
)

M = Model(
    d=16,
    n=2,
    k=1,
    h=8,
    f=16,
    l=1,
    v=64,
    c=16,
    front="conformer",
    conformer=Conformer(l=24, n=2, f=24, distance=8),
)
MEL = Mel(normalize="none")
AUDIO = 63  # the placeholder's id


def audio_config(m):
    own = m.conformer
    return {
        "num_blocks": own.l,
        "hidden_size": m.c,
        "nemo_conv_channels": m.c,
        "ext_pw_out_channel": m.c,
        "depthwise_separable_out_channel": m.c,
        "num_attention_heads": own.n,
        "intermediate_size": own.f,
        "kernel_size": own.taps,
        "chunk_size": own.chunk or -1,
        "left_chunk": own.left,
        "bias_max_distance": own.distance,
        "audio_token_id": AUDIO,
    }


def pair(m):
    """Theirs, our skeleton and weights, of the sizes `m`."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_token_id": 62,
        "crop_size": 28,
        "image_size": 28,
    }
    config = transformers.Phi4MultimodalConfig(
        **sizes(m), audio_config=audio_config(m), vision_config=vision
    )
    theirs = randomised(transformers.Phi4MultimodalForCausalLM(config))
    skeleton, values = models.made(models.run(m, lora=Lora(), mel=MEL))
    shapes = {name: x.shape for name, x in values.items()}
    read = converted(phi.TENSOR_NAMES["transformers"].weights(m), theirs, shapes)
    assert values.keys() == read.keys()
    return theirs, skeleton, {name: jnp.asarray(x) for name, x in read.items()}


def test_whole():
    for cfg in (M.conformer, dataclasses.replace(M.conformer, chunk=4, left=1, taps=5, l=2)):
        with models.one_device():
            theirs, skeleton, weights = pair(dataclasses.replace(M, conformer=cfg))
            columns = models.segment(3, models.Clip(83), 4, seed=0, mel=MEL, v=62)
            columns["tokens"][columns["clips"] == 1] = AUDIO
            batch = sharding.shard_batch(models.pack([[columns]], 18, mel=MEL))
            model = skeleton.model(weights)
            ours = models.jitted(lambda batch: model.logits(model(batch)))(batch)
        mel = columns["patches"][columns["clips"] == 1].reshape(-1, 80)[:83]
        with torch.no_grad():
            expected = theirs(
                torch.tensor(columns["tokens"])[None],
                audio_input_features=torch.tensor(mel)[None],
                audio_embed_sizes=torch.tensor([11]),
            ).logits
        assert_equal(ours, expected, 1e-4)
