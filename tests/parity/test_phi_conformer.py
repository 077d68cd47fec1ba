"""Phi-4-multimodal with its Conformer, small and random, against transformers, 24 blocks deep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melllm_jax import sharding
from melllm_jax.config.distillation import Distill
from melllm_jax.config.encoders import Conformer
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model
from melllm_jax.convert.tensor_names.layouts import TENSOR_NAMES
from melllm_jax.convert.tensor_names.phi_conformer import conformer_rules
from melllm_jax.convert.weight_map import expand_rules
from melllm_jax.encoders.clip_windows import ClipWindows
from melllm_jax.encoders.teachers import ConformerTeacher
from melllm_jax.encoders.window_attention import attend_in_windows
from melllm_jax.models.parameters import abstract_model
from tests.support import models
from tests.support.models import Clip
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
    read = converted(TENSOR_NAMES["transformers"].weights(m), theirs, shapes)
    assert values.keys() == read.keys()
    return theirs, skeleton, {name: jnp.asarray(x) for name, x in read.items()}


def segment(*pieces, seed=0):
    """Columns of one segment of ours, the placeholder at its clips."""
    columns = models.segment(*pieces, seed=seed, mel=MEL, v=62)
    columns["tokens"][columns["clips"] > 0] = AUDIO
    return columns


def mel_of(columns, clip=1):
    """The frames of one clip, [1 frames m]."""
    here = columns["clips"] == clip
    frames = columns["frames"][here].sum()
    return torch.tensor(columns["patches"][here].reshape(-1, MEL.m)[None, :frames])


def computed(function, columns):
    """`function` of the batch of one segment."""
    batch = sharding.shard_batch(models.pack([[columns]], len(columns["tokens"]), mel=MEL))
    return np.asarray(models.jitted(function)(batch))


@pytest.fixture(scope="module")
def deep():
    """All 24 blocks."""
    with models.one_device():
        return pair(M)


@pytest.fixture(scope="module")
def chunked():
    """Two blocks that see chunks of four positions, and convolutions of five taps."""
    cfg = dataclasses.replace(M.conformer, l=2, chunk=4, left=1, taps=5)
    with models.one_device():
        return pair(dataclasses.replace(M, conformer=cfg))


def test_logits_from_mel_through_the_conformer_equal(deep):
    """Float32 sums in another order through 24 blocks."""
    theirs, skeleton, weights = deep
    columns = segment(3, Clip(83), 4)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(columns["tokens"])[None],
            audio_input_features=mel_of(columns),
            audio_embed_sizes=torch.tensor([11]),
        ).logits
    with models.one_device():
        model = skeleton.model(weights)
        ours = computed(lambda batch: model.logits(model(batch)), columns)
    assert_equal(ours, expected, 1e-4)


def test_two_clips_of_a_segment_equal_theirs_that_hears_each_alone(chunked):
    """The first is no multiple of a chunk, the second shorter than one."""
    theirs, skeleton, weights = chunked
    columns = segment(2, Clip(107), Clip(11), 1)
    embed = theirs.model.embed_tokens_extend.audio_embed
    with torch.no_grad():
        parts = [embed.encoder(mel_of(columns, clip), None)[0] for clip in (1, 2)]
        x = torch.nn.functional.gelu(embed.up_proj_for_speech(torch.cat(parts)))
        expected = embed.down_proj_for_speech(x)
    with models.one_device():
        model = skeleton.model(weights)
        ours = computed(model.front, columns)[0, columns["clips"] > 0]
    assert_equal(ours, expected, 1e-5)


@pytest.fixture(scope="module")
def encoded(chunked):
    """A function: what the encoder makes of a batch."""
    _, skeleton, weights = chunked
    with models.one_device():
        front = skeleton.model(weights).front
        return models.jitted(lambda batch: front.encode(front.stem(batch), batch))


@pytest.mark.parametrize("positions", [500, 1001])
def test_a_clip_longer_than_a_window_is_folded_and_filled_up_with_zeros(
    chunked, encoded, positions
):
    """The zeros behind 1,001 positions are heard: the last is another without them."""
    theirs = chunked[0]
    columns = segment(Clip(8 * positions - 3), 1003 - positions)
    with torch.no_grad():
        embed = theirs.model.embed_tokens_extend.audio_embed
        expected = embed.encoder(mel_of(columns), None)
    with models.one_device():
        batch = sharding.shard_batch(models.pack([[columns]], 1003, mel=MEL))
        ours = np.asarray(encoded(batch))
    assert_equal(ours[:, :positions], expected, 1e-5)


def test_a_teacher_s_states_are_the_outputs_of_their_blocks(chunked):
    """Asked for in another order than they come in; the weights are those of a whole model."""
    theirs, _, weights = chunked
    columns = segment(2, Clip(83), 1)
    encoder, expected = theirs.model.embed_tokens_extend.audio_embed.encoder, []
    hooks = [
        block.register_forward_hook(lambda _, __, y: expected.append(y[0]))
        for block in encoder.encoders
    ]
    with torch.no_grad():
        encoder(mel_of(columns), None)
    for hook in hooks:
        hook.remove()
    cfg = dataclasses.replace(M.conformer, l=2, chunk=4, left=1, taps=5)
    cfg = Distill(teacher="conformer", c=M.c, conformer=cfg)
    with models.one_device():
        skeleton, shapes = abstract_model(lambda rngs: ConformerTeacher(rngs, cfg, MEL))
        teacher = skeleton.model({name: weights[name] for name in shapes})
        ours = computed(lambda batch: teacher.states(batch, (1, 0)), columns)
    for found, wanted in zip(ours[:, 0, columns["clips"] > 0, 0], expected[::-1], strict=True):
        assert_equal(found, wanted, 1e-5)


def test_gradients_of_a_block_equal(chunked):
    """Of the weights of the second block, through the first and before the projector.

    The bias of keys has none: it shifts all of a query's scores alike.
    """
    theirs, skeleton, weights = chunked
    columns = segment(Clip(83))
    encoder = theirs.model.embed_tokens_extend.audio_embed.encoder
    theirs.zero_grad()
    torch.sin(3 * encoder(mel_of(columns), None)).sum().backward()

    def loss(blocks, batch):
        front = skeleton.model(weights | blocks).front
        return jnp.sum(jnp.sin(3 * front.encode(front.stem(batch), batch)))

    blocks = {name: x for name, x in weights.items() if name.startswith(("front.bl", "front.di"))}
    with models.one_device():
        batch = sharding.shard_batch(models.pack([[columns]], 11, mel=MEL))
        grads = jax.device_get(models.jitted(jax.grad(loss))(blocks, batch))
    rules = conformer_rules("", {})
    tensors = expand_rules(rules, {name: x.shape for name, x in blocks.items()})
    named = dict(encoder.named_parameters())
    for name, tensor in tensors.items():
        found = np.concatenate(
            [piece.write(grads[piece.name][piece.index]) for piece in tensor.pieces(10**9)]
        )
        if name.endswith("k_proj.bias"):
            assert np.abs(found).max() < 1e-4
        else:
            assert_equal(found, named[name].grad, 1e-4)


@pytest.mark.parametrize("part", ["mlp_in", "attn", "conv"])
def test_parts_of_a_block_equal(chunked, part):
    """Of nine positions, two chunks and one more. Float32 sums in another order."""
    theirs, skeleton, weights = chunked
    encoder = theirs.model.embed_tokens_extend.audio_embed.encoder
    block = encoder.encoders[1]
    x = np.random.default_rng(0).standard_normal((1, 9, M.c), dtype=np.float32)
    with torch.no_grad():
        given = torch.tensor(x)
        seen = encoder._streaming_mask(9, 1, chunk_size=4, left_chunk=1)
        mask = seen.unsqueeze(1) + encoder.relative_attention_bias_layer(given)
        expected = {
            "mlp_in": lambda: block.feed_forward_in(given),
            "attn": lambda: block.self_attn(given, mask),
            "conv": lambda: block.conv(given),
        }[part]()
    with models.one_device():
        front = skeleton.model(weights).front
        place = jax.reshard(jnp.arange(9)[None], sharding.a("b s"))
        windows = ClipWindows(jnp.ones_like(place), place)
        attend = functools.partial(
            attend_in_windows,
            distances=front.distances[...],
            windows=windows,
            cfg=front.cfg.conformer,
        )
        more = {"mlp_in": (), "attn": (attend,), "conv": (windows,)}[part]

        def ours(blocks, rows):
            block = jax.tree.map(lambda x: x[1], blocks)
            return getattr(block, part)(jax.reshard(rows, sharding.a("b s d")), *more)

        found = models.jitted(ours)(front.blocks, x)
    assert_equal(found, expected, 2e-6)
