"""From sound to logits against transformers' Phi-4-multimodal, small, random, LoRA at work."""

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.audio.log_mel import normalized_log_mel
from melllm_jax import sharding
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model, Rope
from melllm_jax.convert.tensor_names import phi
from tests.support import models
from tests.support.references import (
    assert_equal,
    converted,
    in_bfloat16,
    randomised,
    rms,
    sizes,
    torch,
    transformers,
)

M = Model(
    d=48,
    n=6,
    k=2,
    h=8,
    f=48,
    l=2,
    v=64,
    c=8,
    front="conv",
    rope=Rope(
        partial=0.75, short=(1.0, 1.5, 2.0), long=(3.0, 4.0, 8.0), original=256, longest=1024
    ),
)
LORA = Lora(r=4, alpha=8.0)
RUN = models.run(M, lora=LORA, mel=Mel(normalize="none"))
AUDIO = 63  # the placeholder's id


class Adapted(torch.nn.Module):
    """A projection and its adapter `speech`, computed and named as PEFT does."""

    def __init__(self, base):
        super().__init__()
        low = {"bias": False, "dtype": base.weight.dtype}
        self.base_layer = base
        self.lora_A = torch.nn.ModuleDict(
            {"speech": torch.nn.Linear(base.in_features, LORA.r, **low)}
        )
        self.lora_B = torch.nn.ModuleDict(
            {"speech": torch.nn.Linear(LORA.r, base.out_features, **low)}
        )

    def forward(self, x):
        added = self.lora_B["speech"](self.lora_A["speech"](x))
        return self.base_layer(x) + added * (LORA.alpha / LORA.r)


def adapted(theirs):
    """Their model with an adapter on the four projections of every layer."""
    for layer in theirs.model.layers:
        for name in phi.PROJECTIONS:
            layer.set_submodule(name, Adapted(layer.get_submodule(name)))
    return theirs


@pytest.fixture(scope="module")
def speech():
    """Phi-4-multimodal without its Conformer: theirs, our skeleton and weights."""
    audio = {
        "num_blocks": 0,
        "hidden_size": M.c,
        "nemo_conv_channels": M.c,
        "audio_token_id": AUDIO,
        "num_attention_heads": 2,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_token_id": 62,
        "crop_size": 28,
        "image_size": 28,
    }
    their_config = transformers.Phi4MultimodalConfig(
        **sizes(M), audio_config=audio, vision_config=vision
    )
    theirs = randomised(adapted(transformers.Phi4MultimodalForCausalLM(their_config)))
    with models.one_device():
        skeleton, values = models.made(RUN)
        shapes = {name: x.shape for name, x in values.items()}
        rules = [*phi.decoder_rules(M.tied, ".base_layer"), *phi.lora_rules(), *phi.front_rules()]
        read = converted(rules, theirs, shapes)
        assert values.keys() == read.keys()
        return theirs, skeleton, {name: jnp.asarray(x) for name, x in read.items()}


def noise(frames, seed=0):
    """Sound of so many mel frames and half a hop more, which makes no frame."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, 240 + 160 * frames + 80).astype(np.float32)


def features(*waves):
    """What their extractor makes of a batch of sounds."""
    extractor = transformers.Phi4MultimodalFeatureExtractor()
    return extractor(list(waves), sampling_rate=16_000, return_tensors="pt")


def example(*pieces):
    """A segment of ours: an int is so many tokens, an array is a clip of that sound."""
    mels = [normalized_log_mel(piece, RUN.mel) for piece in pieces if not isinstance(piece, int)]
    rest = iter(mels)
    columns = models.segment(
        *(x if isinstance(x, int) else models.Clip(len(next(rest))) for x in pieces),
        seed=0,
        mel=RUN.mel,
        v=62,
    )
    for number, mel in enumerate(mels, start=1):
        here = columns["clips"] == number
        columns["tokens"][here] = AUDIO
        padded = np.pad(mel, [(0, -len(mel) % RUN.mel.r), (0, 0)])
        columns["patches"][here] = padded.reshape(-1, RUN.mel.p)
    return columns


def computed(function, columns, t):
    """`function`, compiled, of the batch of one segment in a row of `t`, as NumPy's float32."""
    with models.one_device():
        batch = sharding.shard_batch(models.pack([[columns]], t, mel=RUN.mel))
        return np.asarray(function(batch), np.float32)[:, : len(columns["tokens"])]


@pytest.fixture(scope="module")
def logits(speech):
    """A function: ours of a segment of at most 20 positions, [1 t v]."""
    _, skeleton, weights = speech
    with models.one_device():
        model = skeleton.model(weights)
        run = models.jitted(lambda batch: model.logits(model(batch)))
    return lambda columns: computed(run, columns, 20)


@pytest.mark.parametrize("frames", [40, 49])
def test_logits_from_sound_through_phi_4_multimodal_equal(speech, logits, frames):
    """Extractor, stem, projector, adapter, decoder. The extractors differ by 1e-4 of a frame."""
    theirs = speech[0]
    wave = noise(frames, seed=frames)
    columns, heard = example(3, wave, 4), features(wave)
    assert heard["audio_input_features"].shape[1] == frames == columns["frames"].sum()
    with torch.no_grad():
        expected = theirs(torch.tensor(columns["tokens"])[None], **heard).logits
    assert_equal(logits(columns), expected, 1e-4)


@pytest.mark.parametrize(("frames", "between"), [((43, 24), 4), ((24, 43), 0)])
def test_logits_of_two_clips_equal_those_of_a_padded_batch(speech, logits, frames, between):
    """Fed as `Phi4MultimodalProcessor` does. The extractors differ by 1e-4 of a frame.

    The shorter clip is whole patches of 8 frames. In a partial one their stem reads the padding,
    and the samples after its last frame that their extractor leaves there: a clip of 20 frames
    then differs at its last position, by 0.4 of the largest value, from itself alone.
    """
    theirs = speech[0]
    waves = [noise(count, seed) for seed, count in enumerate(frames)]
    columns, heard = example(3, waves[0], between, waves[1], 2), features(*waves)
    with torch.no_grad():
        expected = theirs(torch.tensor(columns["tokens"])[None], **heard).logits
    assert_equal(logits(columns), expected, 1e-4)


def test_logits_of_two_clips_equal_those_of_clips_that_nothing_pads(speech, logits):
    """Any lengths: theirs hears each clip on its own. The extractors differ by 1e-4 of a frame."""
    theirs = speech[0]
    waves = [noise(count, seed) for seed, count in enumerate((21, 43))]
    columns = example(3, waves[0], 4, waves[1], 2)
    tokens = torch.tensor(columns["tokens"])[None]
    with torch.no_grad():
        x = theirs.model.embed_tokens(tokens)
        for number, wave in enumerate(waves, start=1):
            own = torch.where(torch.tensor(columns["clips"] == number), tokens, 0)
            x = theirs.model.embed_tokens_extend(own, x, **features(wave))
        expected = theirs(inputs_embeds=x).logits
    assert_equal(logits(columns), expected, 1e-4)


BFLOAT16 = jnp.dtype("bfloat16")


def test_logits_from_sound_in_bfloat16_are_as_near_to_float32_as_theirs(speech):
    """Errors against float32, as rms over 21,000 logits: ours is at most 1.25 of theirs.

    One rounding in the stem moves all that follows, so the ratio varies: 0.74 to 1.12 over six
    draws of weights and sound. With rotary angles in bfloat16 it is 4 to 7.
    """
    theirs, skeleton, weights = speech
    wave = noise(200)
    columns, heard = example(3, wave, 300), features(wave)
    tokens = torch.tensor(columns["tokens"])[None]
    with torch.no_grad():
        exact, rounded = (
            x(tokens, **heard).logits.float().numpy() for x in (theirs, in_bfloat16(theirs))
        )
    with models.one_device():
        model = skeleton.model(weights, BFLOAT16)
        run = models.jitted(lambda batch: model.logits(model(batch)))
    ours = computed(run, columns, len(tokens[0]))
    assert rms(ours - exact) <= 1.25 * rms(rounded - exact)


def test_front_end_in_bfloat16_is_as_near_to_float32_as_theirs(speech):
    """Errors against float32, as rms over 1,200 numbers: ours is at most 1.25 of theirs.

    Their convolutions sum in float32 and round once. So summed, ours is 0.77 to 1.16 of theirs
    over eight draws of weights and sound; with sums in bfloat16 1.39 to 2.06.
    """
    theirs, skeleton, weights = speech
    wave = noise(200)
    columns, heard = example(wave), features(wave)
    tokens = torch.tensor(columns["tokens"])[None]
    with torch.no_grad():
        exact, rounded = (
            x.model.embed_tokens_extend(tokens, x.model.embed_tokens(tokens), **heard)
            for x in (theirs, in_bfloat16(theirs))
        )
    exact, rounded = exact.numpy(), rounded.float().numpy()
    with models.one_device():
        run = models.jitted(skeleton.model(weights, BFLOAT16).inputs)
    ours = computed(run, columns, len(tokens[0]))
    assert rms(ours - exact) <= 1.25 * rms(rounded - exact)
