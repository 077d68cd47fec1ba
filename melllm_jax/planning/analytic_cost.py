"""Estimates what a training step needs by arithmetic alone: memory, products and bytes sent.

Nothing is compiled: good enough to say which of many ways to run is worth compiling, and all there
is where no compiler for the pod is installed. Everything is of one update; bytes are of one chip.
"""

from collections.abc import Mapping
import dataclasses

from melllm_jax import flops
from melllm_jax.config.run import Run
from melllm_jax.nn.remat import NAMES
from melllm_jax.nn.vocab_parallel import chunk_length
from melllm_jax.planning import distillation_cost


@dataclasses.dataclass(frozen=True)
class AnalyticCost:
    """What one update needs; bytes are a chip's."""

    state: float  # bytes of weights and the optimiser's state
    activations: float  # bytes at the fullest moment of what comes and goes
    executed_flops: float  # FLOPs of all chips, a teacher's and what remat does twice included
    bytes_sent: Mapping[str, float]  # bytes by mesh axis


def estimate_cost(run: Run, sizes: Mapping[str, int]) -> AnalyticCost:
    """What `run` needs on a mesh of these axes and sizes."""
    held, kept = _bytes_of_weights(run, sizes), _saved_names(run)
    passing = held["passing"] + _activations(run, sizes, kept)
    executed = flops.update_flops(run) + flops.distillation_flops(run)
    sent, taught = _bytes_sent(run, sizes, kept), distillation_cost.sent_bytes(run, sizes)
    return AnalyticCost(
        state=held["state"] + distillation_cost.state_bytes(run, sizes),
        activations=passing + distillation_cost.activation_bytes(run, sizes),
        executed_flops=executed + _recomputed_flops(run, sizes, kept),
        bytes_sent={axis: sent[axis] + taught[axis] for axis in sent},
    )


def _saved_names(run: Run) -> frozenset[str]:
    """Names of the activations that the backward pass finds; `offload` fetches them."""
    remat = run.model.remat
    if remat == "none":
        return frozenset(NAMES)
    if remat == "dots":
        return frozenset(NAMES) - {"attended"}
    return frozenset() if remat == "full" else frozenset(run.model.kept)


def _weights_per_chip(run: Run, sizes: Mapping[str, int]) -> dict[str, float]:
    """Weights on a chip by what they are for, but for norms and biases, which are not split.

    The two of LoRA's that face the heads or the MLP's width are split by tp alone, since neither
    rank nor head is split by fsdp; the conv stem's own are whole.
    """
    p, m, fsdp, tp = flops.count_parameters(run), run.model, sizes["fsdp"], sizes["tp"]
    inner = 2 * (m.n + m.k) * m.h + 3 * m.f
    encoder, projector = _front_per_chip(run, sizes)
    return {
        "ends": (p.embed + p.head) / (fsdp * tp),
        "layers": p.layers / (fsdp * tp),
        "lora": m.l * run.lora.r * (4 * m.d / fsdp + inner / tp),
        "encoder": encoder,
        "projector": projector,
        "align": p.align / fsdp,
        "mel_head": p.mel_head,  # the small part of it that fsdp splits does not count
    }


def _front_per_chip(run: Run, sizes: Mapping[str, int]) -> tuple[float, float]:
    """Weights on a chip of the front end's encoder, and of its projector.

    The conv stem is whole on every chip; the matrices of Whisper and of the Conformer are split as
    the LLM's are, Whisper's convolutions by fsdp alone.
    """
    p, m, fsdp = flops.count_parameters(run), run.model, sizes["fsdp"]
    whole = flops.encoder_parameters(run)
    wide = p.front - whole  # the projector: matrices, and a bias or two
    if m.front == "whisper_conv":
        return whole / fsdp, (wide - m.d) / fsdp + m.d
    if m.front != "whisper":
        biases = {"none": 0, "linear": m.d}.get(m.front, 2 * m.d)
        blocks = flops.conformer_parameters(m.c, m.conformer) if m.front == "conformer" else 0
        split = blocks / (fsdp * sizes["tp"])
        return whole - blocks + split, (wide - biases) / fsdp + biases
    w = m.whisper
    blocks = w.l * (4 * w.d * w.d + 2 * w.d * w.f)
    return blocks / (fsdp * sizes["tp"]) + (whole - blocks) / fsdp, wide / fsdp


def _trainable_per_chip(run: Run, sizes: Mapping[str, int]) -> float:
    """Numbers on a chip that change."""
    here = _weights_per_chip(run, sizes)
    trained = sum(here.values()) - _frozen_llm_per_chip(run, sizes)
    return trained - (here["encoder"] if run.optim.encoder == "frozen" else 0)


def _frozen_llm_per_chip(run: Run, sizes: Mapping[str, int]) -> float:
    """Numbers on a chip of the LLM, its LoRA included, that stay as they are: in bfloat16."""
    here = _weights_per_chip(run, sizes)
    llm = here["ends"] + here["layers"]
    return {"all": 0.0, "lora": llm, "front": llm + here["lora"]}[run.optim.train]


def _bytes_of_weights(run: Run, sizes: Mapping[str, int]) -> dict[str, float]:
    """state: what stays; passing: gradients, and weights gathered for the layer at work."""
    p, m, tp = flops.count_parameters(run), run.model, sizes["tp"]
    here, trained = _weights_per_chip(run, sizes), _trainable_per_chip(run, sizes)
    all_trained = run.optim.train == "all"
    state = trained * (4 + 8) + _frozen_llm_per_chip(run, sizes) * 2
    state += here["encoder"] * 4 if run.optim.encoder == "frozen" else 0
    if run.model.front in ("whisper", "whisper_conv"):
        state += 4 * run.model.whisper.positions * run.model.whisper.d  # its table, never trained
    if run.optim.kind == "muon" and all_trained:
        state -= here["layers"] * 4  # one moment, of the layers' matrices alone
    # Gradients in float32, once more while micro-batches are added up; the cast to bfloat16.
    passing = trained * (4 * (1 + (run.optim.micro > 1)) + 2)
    passing += 2 * (p.layers / m.l) * 2 / tp  # this layer's and the next one's, gathered
    return {"state": state, "passing": passing}


def _positions_per_chip(run: Run, sizes: Mapping[str, int]) -> float:
    """Positions of a micro-batch on one chip."""
    rows = run.data.b / run.optim.micro / (sizes["replica"] * sizes["fsdp"])
    return rows * run.data.t / sizes["seq"]


def _widths(run: Run) -> dict[str, int]:
    """Numbers a position of the activations of each name."""
    m = run.model
    return {
        "qkv": (m.n + 2 * m.k) * m.h,
        "attended": m.n * m.h,
        "out": m.d,
        "gate_up": 2 * m.f,
    }


def _activations(run: Run, sizes: Mapping[str, int], kept: frozenset[str]) -> float:
    """Bytes of activations on a chip at the fullest moment."""
    m, tp, tokens = run.model, sizes["tp"], _positions_per_chip(run, sizes)
    number = 2 if run.optim.compute == "bfloat16" else 4
    widths = _widths(run)
    split = {name: 1 if name == "out" else tp for name in widths}
    stays = float(m.d)  # the stream, at the start of each layer
    if run.model.remat != "offload":
        stays += sum(widths[name] / split[name] for name in kept)
    if run.model.remat == "none":
        stays += 3 * m.d + m.f / tp  # norms, and the MLP's product
    working = 6 * m.d + 2 * sum(width / split[name] for name, width in widths.items())
    scores = tokens * chunk_length(int(tokens), -(-m.v // tp)) * 4 * 2
    front = _conformer_bytes(run, sizes)
    return number * tokens * (m.l * stays + working + _encoder_widths(run)) + scores + front


def _encoder_widths(run: Run) -> float:
    """Numbers a position that a Whisper encoder holds: its stream at the start of each layer.

    A frozen one keeps that of the layer at work alone. Of its convolutions alone what each sees,
    three taps, and what it gives before and after GELU.
    """
    m, w = run.model, run.model.whisper
    if m.front == "whisper_conv":
        return run.mel.r * (3 * run.mel.m + 2 * w.d) + run.mel.r / 2 * (3 * w.d + 2 * w.d)
    if m.front != "whisper":
        return 0.0
    layers = w.l if run.optim.encoder == "trained" else 1
    inside = 6 * w.d + 2 * w.f  # of the layer at work
    if run.optim.encoder == "trained" and m.remat in ("none", "dots"):
        return run.mel.r / 2 * w.l * (w.d + inside)
    return run.mel.r / 2 * (layers * w.d + inside)


def _conformer_bytes(run: Run, sizes: Mapping[str, int]) -> float:
    """Bytes of a Conformer's activations: its stream at each block, and one block's scores.

    Time is not split. A query's scores are those of its window, of the one before and after.
    """
    m, t = run.model, run.data.t
    if m.front != "conformer":
        return 0.0
    number = 2 if run.optim.compute == "bfloat16" else 4
    keys = t if t <= flops.CONFORMER_WINDOW else 3 * flops.CONFORMER_WINDOW
    scores = m.conformer.n / sizes["tp"] * keys * 4 * 2
    tokens = _positions_per_chip(run, sizes) * sizes["seq"]
    return tokens * (number * (m.conformer.l + 12) * m.c + scores)


def _recomputed_flops(run: Run, sizes: Mapping[str, int], kept: frozenset[str]) -> float:
    """FLOPs that the backward pass does again."""
    m, positions = run.model, run.data.b * run.data.t
    seen = flops.mean_attended_positions(m, run.data.t)
    heads = m.n * m.h
    cost = {
        "qkv": 2 * m.d * (heads + 2 * m.k * m.h),
        "attended": 4 * heads * seen,
        "out": 2 * heads * m.d,
        "gate_up": 4 * m.d * m.f,
    }
    share = -(-m.v // sizes["tp"])
    at_once = chunk_length(int(_positions_per_chip(run, sizes)), share)
    head = 2 * m.d * m.v if share > at_once else 0  # scores are made again, chunk by chunk
    again = m.l * sum(cost[name] for name in cost if name not in kept) + head
    if m.front == "whisper" and m.remat != "none" and run.optim.encoder == "trained":
        again += flops.encoder_flops(run)  # but for products that a policy keeps
    return float(positions * (again + _conformer_again(run, kept)))


def _conformer_again(run: Run, kept: frozenset[str]) -> float:
    """FLOPs of a position that the backward pass of a Conformer's blocks does again."""
    m, own = run.model, run.model.conformer
    if m.front != "conformer" or m.remat == "none" or run.optim.encoder == "frozen":
        return 0.0
    cost = {
        "qkv": 6 * m.c * m.c,
        "attended": 4 * m.c * min(run.data.t, flops.CONFORMER_WINDOW),
        "out": 2 * m.c * m.c,
        "gate_up": 8 * m.c * own.f,
    }
    whole = 2.0 * flops.conformer_parameters(m.c, m.conformer) + own.l * cost["attended"]
    return whole - own.l * sum(cost[name] for name in kept)


def _bytes_sent(run: Run, sizes: Mapping[str, int], kept: frozenset[str]) -> dict[str, float]:
    """Bytes that a chip sends, by mesh axis.

    Ring collectives: (n − 1) / n of what is gathered or scattered, twice that when summed.
    """
    m, p, tp = run.model, flops.count_parameters(run), sizes["tp"]
    trained = flops.trained_parameters(run)
    blocks = flops.conformer_parameters(m.c, m.conformer) if m.front == "conformer" else 0
    summed_up = _trainable_per_chip(run, sizes)  # over copies, once an update
    number = 2 if run.optim.compute == "bfloat16" else 4
    tokens, micro = _positions_per_chip(run, sizes), run.optim.micro
    ring = {axis: (size - 1) / size for axis, size in sizes.items()}
    # Neither the heads that layers are taught through nor the one that writes are split by tp.
    heads = p.align + p.mel_head
    weights = (p.layers + p.lora + m.v * m.d + blocks) * number / tp + heads * number
    scattered = (trained - heads) * number / tp + heads * number
    twice = 2 if kept >= set(NAMES) else 3  # sums over tp: forward, again, backward
    summed = m.l * 2 * twice * 2 * m.d + 2 * m.d
    gathered = m.l * 2 * (2 if "qkv" in kept else 3) * 2 * m.k * m.h / tp
    return {
        "replica": 2 * ring["replica"] * summed_up * number,
        "fsdp": micro * ring["fsdp"] * (2 * weights + scattered),
        "seq": micro * (ring["seq"] * sizes["seq"] * tokens * gathered * number / 2)
        + 2 * ring["seq"] * summed_up * number,
        "tp": micro * ring["tp"] * tokens * summed * number,
    }
