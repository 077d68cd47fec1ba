"""The tables of foreign tensors: read both ways bit by bit, and nothing left over unseen."""

import numpy as np
import pytest

from melllm_jax.config.features import Mel
from melllm_jax.config.model import Lora, Model
from melllm_jax.convert.tensor_names import llama, phi
from melllm_jax.convert.weight_map import IgnoredTensors, Rule, check_tensors, expand_rules
from melllm_jax.errors import Mistake
from melllm_jax.models import parameters
from melllm_jax.models.speech_lm import SpeechLM
from tests.support import models

M = Model(d=24, n=4, k=2, h=8, f=40, l=3, v=32, c=6, front="conv", tied=False)
MEL = Mel()


def shapes(model=M, lora=models.LORA):
    """Shapes of a model's weights by our names."""
    build = lambda rngs: SpeechLM(model, MEL, lora, rngs=rngs)
    with models.one_device():
        return {name: x.shape for name, x in parameters.abstract_model(build)[1].items()}


TABLES = {
    "decoder, untied": lambda: phi.decoder_rules(tied=False),
    "decoder with LoRA beside it": lambda: phi.decoder_rules(tied=False, base=".base_layer"),
    "LoRA, Microsoft's": phi.lora_rules,
    "LoRA, PEFT's": lambda: phi.lora_rules("base_model.model.", ""),
    "decoder, Llama's": lambda: llama.LLAMA_NAMES.weights(M),
    "LoRA, Llama's": llama.LLAMA_NAMES.lora,
    "front, transformers'": phi.front_rules,
    "front, Microsoft's": lambda: phi.front_rules(
        "audio_projection.speech.0", "audio_projection.speech.2"
    ),
}


def random(tensors):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(t.shape, np.float32) for name, t in tensors.items()}


@pytest.mark.parametrize("most", [1, 100, 10**9])
@pytest.mark.parametrize("table", TABLES)
def test_what_is_read_in_pieces_is_written_back_bit_by_bit(table, most):
    tensors = expand_rules(TABLES[table](), shapes())
    theirs = random(tensors)
    ours = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes().items()}
    for name, tensor in tensors.items():
        for piece in tensor.pieces(most):
            block = ours[piece.name][piece.index]
            assert block.shape == piece.shape
            assert np.isnan(block).all()  # no number has two places
            ours[piece.name][piece.index] = piece.read(theirs[name][piece.start : piece.stop])
    for name, tensor in tensors.items():
        again = np.full(tensor.shape, np.nan, np.float32)
        for piece in tensor.pieces(7 * most):
            again[piece.start : piece.stop] = piece.write(ours[piece.name][piece.index])
        np.testing.assert_array_equal(again, theirs[name], strict=True)


def test_pieces_are_as_small_as_asked_where_rows_allow_it():
    """A head of 8 × 24 numbers cannot be parted; a matrix of 40 × 24 can, by its rows."""
    tensors = expand_rules(phi.decoder_rules(tied=False), shapes())
    heads = list(tensors["model.layers.0.self_attn.qkv_proj.weight"].pieces(100))
    assert [piece.shape for piece in heads] == [(24, 1, 8)] * 8
    assert [(p.start, p.stop) for p in heads] == [(i, i + 8) for i in range(0, 64, 8)]
    gates = list(tensors["model.layers.0.mlp.gate_up_proj.weight"].pieces(24 * 9))
    assert [piece.shape for piece in gates] == [(24, 8)] * 10


@pytest.mark.parametrize("base", ["", ".base_layer"])
def test_every_weight_has_one_place(base):
    rules = [*phi.decoder_rules(M.tied, base), *phi.lora_rules(), *phi.front_rules()]
    tensors = expand_rules(rules, shapes())
    places = [(part.name, part.layer) for tensor in tensors.values() for part in tensor.parts]
    assert len(set(places)) == len(places)
    assert {name for name, _ in places} == set(shapes())
    filled = sum(np.prod(part.shape) for tensor in tensors.values() for part in tensor.parts)
    assert filled == sum(np.prod(shape) for shape in shapes().values())


def test_the_shapes_are_those_of_phi_4_multimodal():
    """Sizes: config.json of microsoft/Phi-4-multimodal-instruct and its technical report."""
    real = Model(d=3072, n=24, k=8, h=128, f=8192, l=1, v=200_064, front="conv")
    rules = [*phi.decoder_rules(True, ".base_layer"), *phi.lora_rules(), *phi.front_rules()]
    found = expand_rules(rules, shapes(real, Lora(r=320)))
    block = "model.layers.0."
    shape = lambda name: found[name].shape
    assert shape(f"{block}self_attn.qkv_proj.base_layer.weight") == (5120, 3072)
    assert shape(f"{block}self_attn.qkv_proj.lora_A.speech.weight") == (320, 3072)
    assert shape(f"{block}self_attn.qkv_proj.lora_B.speech.weight") == (5120, 320)
    assert shape(f"{block}mlp.gate_up_proj.base_layer.weight") == (16384, 3072)
    assert shape(f"{block}mlp.down_proj.lora_A.speech.weight") == (320, 8192)
    assert shape(f"{phi.AUDIO}encoder.embed.conv.0.weight") == (1024, 1, 3, 3)
    assert shape(f"{phi.AUDIO}encoder.embed.conv.3.weight") == (1024, 1024, 1, 1)
    assert shape(f"{phi.AUDIO}encoder.embed.out.weight") == (1024, 10240)
    assert shape(f"{phi.AUDIO}up_proj_for_speech.weight") == (3072, 1024)


def test_fused_projections_hold_query_key_and_value_in_that_order():
    tensors = expand_rules(phi.decoder_rules(tied=False), shapes())
    tensor = tensors["model.layers.2.self_attn.qkv_proj.weight"]
    rows = np.broadcast_to(np.arange(64.0)[:, None], (64, 24))  # each row says its number
    q, k, v = (piece.read(rows[piece.start : piece.stop]) for piece in tensor.pieces(10**9))
    assert [part.layer for part in tensor.parts] == [2, 2, 2]
    np.testing.assert_array_equal(q[0], np.arange(32).reshape(4, 8))
    np.testing.assert_array_equal(k[5], np.arange(32, 48).reshape(2, 8))
    np.testing.assert_array_equal(v[23], np.arange(48, 64).reshape(2, 8))


def settled(change):
    tensors = expand_rules(phi.decoder_rules(tied=False), shapes())
    found = {name: tensor.shape for name, tensor in tensors.items()}
    change(found)
    return check_tensors(tensors, found, phi.IGNORED_TENSORS, where="HF_DIR")


def test_what_is_left_out_is_listed_by_reason():
    extra = {
        "model.layers.0.mlp.down_proj.lora_A.vision.weight": (4, 40),
        f"{phi.AUDIO}encoder.encoders.1.layer_norm.weight": (6,),
        f"{phi.AUDIO}encoder.encoders.0.layer_norm.weight": (6,),
    }
    assert settled(lambda found: found.update(extra)) == {
        "Conformer blocks": [
            f"{phi.AUDIO}encoder.encoders.0.layer_norm.weight",
            f"{phi.AUDIO}encoder.encoders.1.layer_norm.weight",
        ],
        "vision LoRA": ["model.layers.0.mlp.down_proj.lora_A.vision.weight"],
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.pop("model.norm.weight"), "HF_DIR: has no tensor model.norm.weight"),
        (
            lambda f: f.update({"lm_head.weight": (32, 25)}),
            r"lm_head.weight is \[32, 25\]: its config asks for \[32, 24\]",
        ),
        (
            lambda f: f.update({"model.extra.bias": (3,)}),
            "no rule knows the tensor model.extra.bias",
        ),
        (
            lambda f: f.update({"model.layers.3.input_layernorm.weight": (24,)}),
            "no rule knows the tensor model.layers.3",
        ),
    ],
)
def test_missing_misshapen_and_unknown_tensors_are_refused_by_name(change, says):
    with pytest.raises(Mistake, match=says):
        settled(change)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([Rule("a", ("w",), ("x -> x",)), Rule("b", ("w",), ("x -> x",))], "mapped twice"),
        ([Rule("a", ("u",), ("x -> x",))], "no weight"),
        ([Rule("a", ("w",), ("x -> x",)), Rule("a", ("v",), ("x y -> x y",))], "two rules"),
        ([Rule("a", ("w", "v"), ("x -> x", "x y -> x y"))], "disagree"),
        ([Rule("a.{i}", ("w", "v"), ("-> ", "x -> x"))], "layers"),
    ],
)
def test_a_table_at_fault_is_a_fault_of_ours(rules, says):
    with pytest.raises(ValueError, match=says):
        expand_rules(rules, {"w": (3,), "v": (4, 2)})


def test_a_pattern_leaves_out_by_name():
    out = [IgnoredTensors("b.*", "why")]
    assert check_tensors({}, {"b.c": (1,)}, out) == {"why": ["b.c"]}
    with pytest.raises(Mistake, match=r"no rule knows the tensor bc"):
        check_tensors({}, {"bc": (1,)}, out)
