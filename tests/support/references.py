"""transformers' models beside ours: their sizes, random weights, conversion, and how errors count.

Importing this file skips a test file where the extra `parity` is missing.
"""

import copy

import numpy as np
import pytest

from melllm_jax.convert.weight_map import expand_rules

PARITY = "needs the extra `parity`"
torch = pytest.importorskip("torch", reason=PARITY)
transformers = pytest.importorskip("transformers", reason=PARITY)


def sizes(m):
    """transformers' names for the sizes of a model."""
    rope = {"rope_type": "default", "rope_theta": m.rope.theta}
    if m.rope.short:
        factors = {"short_factor": list(m.rope.short), "long_factor": list(m.rope.long)}
        rope |= {"rope_type": "longrope"} | factors
    elif m.rope.high:
        between = {"low_freq_factor": m.rope.low, "high_freq_factor": m.rope.high}
        original = {"original_max_position_embeddings": m.rope.original}
        rope |= {"rope_type": "llama3", "factor": m.rope.factor} | between | original
    elif m.rope.factor != 1:
        rope |= {"rope_type": "linear", "factor": m.rope.factor}
    only = {"head_dim": m.h}
    if m.family == "phi3":
        rope |= {"partial_rotary_factor": m.rope.partial}
        only = {"original_max_position_embeddings": m.rope.original}
    if m.family.startswith("qwen"):
        only |= {"use_sliding_window": m.window > 0, "max_window_layers": 0}
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
        "rope_parameters": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    } | only


def randomised(theirs):
    """The module with weights that are nowhere at rest: norms about 1, matrices about 0.

    All are numbers of bfloat16, as published checkpoints are, so that casting them loses nothing.
    """
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if "rotary_emb" not in name:
                rest = 1.0 if "norm" in name or "invstd" in name else 0.0
                spread = x.shape[-1] ** -0.5 if x.ndim > 1 else 0.2
                x.copy_((rest + spread * torch.randn(x.shape, generator=draw)).bfloat16())
    return theirs.eval()


def in_bfloat16(theirs):
    """A copy in bfloat16 with its rotary rates in float32, as `from_pretrained` leaves them."""
    rates = copy.deepcopy(theirs.model.rotary_emb)
    low = copy.deepcopy(theirs).to(torch.bfloat16)
    low.model.rotary_emb = rates
    return low


def converted(rules, theirs, shapes):
    """Our weights of `shapes` that `rules` find in their model."""
    state = {name: x.detach().numpy() for name, x in theirs.state_dict().items()}
    weights = {name: np.empty(shapes[name], np.float32) for rule in rules for name in rule.weights}
    for name, tensor in expand_rules(rules, shapes).items():
        for piece in tensor.pieces(max_elements=10**9):
            weights[piece.name][piece.index] = piece.read(state[name][piece.start : piece.stop])
    return weights


def assert_equal(ours, theirs, most):
    """The largest difference is at most `most` of the largest value."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().double().numpy()
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= most, f"{error:.1e} of the largest value apart, at most {most:.0e} allowed"


def rms(x):
    """Root mean square of all numbers of `x`, torch's or NumPy's."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))
