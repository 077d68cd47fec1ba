"""Our modules against transformers' Phi-3 and Phi-4-multimodal, small, random and in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.mel import log_mel
from melllm_jax import attention, config, layout
from melllm_jax.convert import phi
from melllm_jax.convert.rules import expand
from melllm_jax.layers import rotary
from tests import models

PARITY = "needs the extra `parity`"
torch = pytest.importorskip("torch", reason=PARITY)
transformers = pytest.importorskip("transformers", reason=PARITY)

# Longest row 24: beyond `original`, so that both sides of LongRoPE's border are met.
LONG = config.Rope(
    partial=0.75, short=(1.0, 1.5, 2.0), long=(3.0, 4.0, 8.0), original=16, longest=64
)
KINDS = {
    "heads 4:4, untied": config.Model(d=32, n=4, k=4, h=8, f=48, l=2, v=64, tied=False),
    "heads 6:2, tied, LongRoPE": config.Model(d=48, n=6, k=2, h=8, f=64, l=2, v=64, rope=LONG),
    "heads 4:1, untied, window": config.Model(
        d=32, n=4, k=1, h=8, f=48, l=2, v=64, tied=False, window=5, rope=config.Rope(partial=0.75)
    ),
}
BORDER = pytest.mark.parametrize("t", [16, 24])


def sizes(m):
    """transformers' names for the sizes of a model."""
    rope = {
        "rope_type": "longrope" if m.rope.short else "default",
        "rope_theta": m.rope.theta,
        "partial_rotary_factor": m.rope.partial,
    }
    if m.rope.short:
        rope |= {"short_factor": list(m.rope.short), "long_factor": list(m.rope.long)}
    return {
        "hidden_size": m.d,
        "num_attention_heads": m.n,
        "num_key_value_heads": m.k,
        "intermediate_size": m.f,
        "num_hidden_layers": m.l,
        "vocab_size": m.v,
        "rms_norm_eps": m.eps,
        "tie_word_embeddings": m.tied,
        "sliding_window": m.window or None,
        "max_position_embeddings": m.rope.longest,
        "original_max_position_embeddings": m.rope.original,
        "rope_parameters": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    }


def randomised(theirs):
    """The module with weights that are nowhere at rest: norms about 1, matrices about 0."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if "rotary_emb" not in name:
                rest = 1.0 if "norm" in name or "invstd" in name else 0.0
                spread = x.shape[-1] ** -0.5 if x.ndim > 1 else 0.2
                x.copy_(rest + spread * torch.randn(x.shape, generator=draw))
    return theirs.eval()


def numbers(theirs):
    return {name: x.detach().numpy() for name, x in theirs.state_dict().items()}


def converted(rules, state, shapes):
    """Our weights of `shapes` that `rules` find in a state_dict."""
    weights = {name: np.empty(shapes[name], np.float32) for rule in rules for name in rule.ours}
    for name, tensor in expand(rules, shapes).items():
        for part, value in zip(tensor.parts, tensor.read(state[name]), strict=True):
            weights[part.name][() if part.layer is None else part.layer] = value
    return weights


def assert_equal(ours, theirs, most):
    """The largest difference is at most `most` of the largest value."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().double().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= most * np.abs(theirs).max()


class Pair:
    """The same small model, theirs and ours."""

    def __init__(self, m):
        self.m, self.run = m, models.run(m, lora=config.Lora(), b=1)
        their_config = transformers.Phi3Config(**sizes(m))
        self.theirs = randomised(transformers.Phi3ForCausalLM(their_config))
        with models.one_device():
            skeleton, values = models.made(self.run)
            shapes = {name: x.shape for name, x in values.items()}
            read = converted(phi.decoder(m.tied), numbers(self.theirs), shapes)
            front = {name: x for name, x in values.items() if name.startswith("front.")}
            assert values.keys() == read.keys() | front.keys()
            self.ours = skeleton.model({k: jnp.asarray(x) for k, x in read.items()} | front)

    def inputs(self, t):
        """Hidden states [1 t d], positions, our angles and theirs."""
        x = np.random.default_rng(t).standard_normal((1, t, self.m.d)).astype(np.float32)
        at = np.arange(t, dtype=np.int32)[None]
        ours = rotary(self.m.rope, self.m.rotated, jnp.asarray(at), jnp.full((1, t), t, jnp.int32))
        theirs = self.theirs.model.rotary_emb(torch.tensor(x), torch.tensor(at))
        return x, ours, theirs

    def see(self, t):
        """Attention over one segment, as our layers take it, and their mask."""
        ones, zeros = np.ones((1, t), np.int32), np.zeros((1, t), np.int32)
        place = attention.Place(ones, np.arange(t, dtype=np.int32)[None], zeros)
        seen = self.ours.visible(*[attention.Place(*map(jnp.asarray, place))] * 2)
        mask = torch.where(torch.tensor(np.array(seen)), 0.0, -torch.inf)[:, None]
        return (lambda q, k, v: attention.attend(q, k, v, seen)), mask


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    return Pair(KINDS[request.param])


@BORDER
def test_rotary_angles_equal(pair, t):
    """float32 angles of up to 23 radians: 2e-6."""
    with models.one_device():
        _, ours, theirs = pair.inputs(t)
        for mine, other in zip(ours, theirs, strict=True):
            assert_equal(np.concatenate([mine, mine], axis=-1), other, 1e-5)


def test_norm_mlp_attention_and_block_equal(pair):
    """Module by module over 24 positions; sums of at most 64 products in float32: 1e-6."""
    with models.one_device():
        x, angles, their_angles = pair.inputs(24)
        see, mask = pair.see(24)
        layer, theirs = pair.ours.stack.layer(1), pair.theirs.model.layers[1]
        x, their_x = jnp.asarray(x), torch.tensor(x)
        given = {"position_embeddings": their_angles, "attention_mask": mask}
        assert_equal(layer.attn_norm(x), theirs.input_layernorm(their_x), 1e-5)
        assert_equal(layer.mlp(x), theirs.mlp(their_x), 1e-5)
        assert_equal(layer.attn(x, angles, see), theirs.self_attn(their_x, **given)[0], 1e-5)
        assert_equal(layer(x, angles, see), theirs(their_x, **given), 1e-5)


@BORDER
def test_logits_of_phi_3_equal(pair, t):
    """Its own masks and rotary choices included. Two layers of float32 sums: 1e-6."""
    example = models.segment(t, seed=t)
    with models.one_device(), torch.no_grad():
        batch = layout.place(models.pack([[example]], t))
        logits = jax.jit(lambda b: pair.ours.logits(pair.ours(b)))(batch)
        theirs = pair.theirs(torch.tensor(example["tokens"])[None]).logits
    assert_equal(logits, theirs, 1e-5)


SPEECH = config.Model(
    d=32,
    n=4,
    k=2,
    h=8,
    f=48,
    l=2,
    v=64,
    c=8,
    front="conv",
    rope=dataclasses.replace(LONG, original=64, longest=128),
)
ADAPTER = config.Lora(r=4, alpha=8.0)
AUDIO = 63  # the placeholder's id


def adapter(m, theirs):
    """Random LoRA in our names; added to the matrices of `theirs`, as merged adapters are."""
    rng = np.random.default_rng(1)
    weights = {}
    fused = {
        "attn.qkv": ("self_attn.qkv_proj", (m.d,), [(m.n, m.h), (m.k, m.h), (m.k, m.h)]),
        "attn.o": ("self_attn.o_proj", (m.n, m.h), [(m.d,)]),
        "mlp.gate_up": ("mlp.gate_up_proj", (m.d,), [(m.f,), (m.f,)]),
        "mlp.down": ("mlp.down_proj", (m.f,), [(m.d,)]),
    }
    for name, (their_name, ins, outs) in fused.items():
        modules = [layer.get_submodule(their_name) for layer in theirs.model.layers]
        a = 0.2 * rng.standard_normal((m.l, modules[0].in_features, ADAPTER.r), np.float32)
        b = 0.2 * rng.standard_normal((m.l, ADAPTER.r, modules[0].out_features), np.float32)
        for i, module in enumerate(modules):
            module.weight += ADAPTER.alpha / ADAPTER.r * torch.tensor(b[i].T @ a[i].T)
        weights[f"stack.blocks.{name}_lora.a"] = a.reshape(m.l, *ins, ADAPTER.r)
        borders = np.cumsum([np.prod(out) for out in outs])[:-1]
        for number, (part, out) in enumerate(zip(np.split(b, borders, axis=2), outs, strict=True)):
            weights[f"stack.blocks.{name}_lora.b.{number}"] = part.reshape(m.l, ADAPTER.r, *out)
    return weights


@pytest.fixture(scope="module")
def speech():
    """Phi-4-multimodal without its Conformer, theirs and ours with its adapter apart."""
    audio = {
        "num_blocks": 0,
        "hidden_size": SPEECH.c,
        "nemo_conv_channels": SPEECH.c,
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
        **sizes(SPEECH), audio_config=audio, vision_config=vision
    )
    theirs = randomised(transformers.Phi4MultimodalForCausalLM(their_config))
    run = models.run(SPEECH, lora=ADAPTER, mel=config.Mel(normalize="none"))
    with models.one_device(), torch.no_grad():
        skeleton, values = models.made(run)
        rules = [*phi.decoder(SPEECH.tied), *phi.front()]
        shapes = {name: x.shape for name, x in values.items()}
        read = converted(rules, numbers(theirs), shapes)
        read |= adapter(SPEECH, theirs)  # which adds to their matrices, so read those first
        assert values.keys() == read.keys()
        ours = skeleton.model({name: jnp.asarray(x) for name, x in read.items()})
    return theirs, ours, run.mel


@pytest.mark.parametrize("frames", [40, 43, 49])
def test_logits_from_sound_through_phi_4_multimodal_equal(speech, frames):
    """Extractor, stem, projector, adapter, decoder. The extractors differ by 1e-4 of a frame."""
    theirs, ours, mel = speech
    wave = np.random.default_rng(frames).normal(0, 0.1, 240 + 160 * frames).astype(np.float32)
    extractor = transformers.Phi4MultimodalFeatureExtractor()
    features = extractor([wave], sampling_rate=16_000, return_tensors="pt")
    mels = log_mel(wave, mel)
    assert len(mels) == frames == features["audio_input_features"].shape[1]
    example = models.segment(3, models.Clip(frames), 4, seed=0, mel=mel, v=62)
    here = example["clips"] > 0
    example["tokens"][here] = AUDIO
    padded = np.zeros((here.sum() * mel.r, mel.m), np.float32)
    padded[:frames] = mels
    example["patches"][here] = padded.reshape(-1, mel.p)
    t = len(here)
    with models.one_device(), torch.no_grad():
        batch = layout.place(models.pack([[example]], t, mel=mel))
        logits = models.jitted(lambda b: ours.logits(ours(b)))(batch)
        expected = theirs(torch.tensor(example["tokens"])[None], **features).logits
    assert_equal(logits, expected, 1e-4)
