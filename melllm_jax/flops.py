"""Counts parameters and FLOPs from a config: arithmetic only."""

import dataclasses

from melllm_jax.config.encoders import Conformer, Whisper
from melllm_jax.config.model import Model
from melllm_jax.config.run import Run

CONFORMER_WINDOW = 500  # positions, 40 s: the most that a Conformer's block attends to


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
    """Numbers of weights by what they are for."""

    embed: int  # input embedding
    head: int  # output head; 0 where it is tied to the embedding
    layers: int  # the stack with its norms and the last norm
    front: int  # front end, fixed statistics and positions left out
    lora: int
    align: int  # heads that layers are taught through: training's alone
    mel_head: int = 0  # what writes mel patches, and reads them again

    @property
    def total(self) -> int:
        """All of them; a teacher's are no part of the model (`teacher_parameters`)."""
        return (
            self.embed
            + self.head
            + self.layers
            + self.front
            + self.lora
            + self.align
            + self.mel_head
        )


def count_parameters(run: Run) -> ParameterCounts:
    """How many weights the run's model has."""
    m, r = run.model, run.lora.r
    heads, shared = m.n * m.h, m.k * m.h
    lora = r * ((m.d + heads + 2 * shared) + (heads + m.d) + (m.d + 2 * m.f) + (m.f + m.d))
    return ParameterCounts(
        embed=m.v * m.d,
        head=0 if m.tied else m.v * m.d,
        layers=stack_parameters(m),
        front=_front_parameters(run),
        lora=m.l * lora,
        align=_alignment_parameters(run),
        mel_head=sum(_mel_head_parameters(run)),
    )


def stack_parameters(m: Model) -> int:
    """Weights of the stack, its norms and the last norm: what a rung of the ladder is named for."""
    heads, shared = m.n * m.h, m.k * m.h
    layer = m.d * (heads + 2 * shared) + heads * m.d + 3 * m.d * m.f + 2 * m.d
    layer += m.qkv_bias * (heads + 2 * shared) + m.qk_norm * 2 * m.h
    return m.l * layer + m.d


def forward_flops(run: Run) -> float:
    """FLOPs of one position's forward pass in a full row: 2 a weight and multiply, and attention.

    Attention counts the pairs that a causal mask and the window leave (`mean_attended_positions`).
    The embedding is a look-up and costs none; the head reads every position. The front end costs at
    speech positions only; it is counted as if every position were speech, an upper bound. So is the
    head that writes mel patches, whose post-net is at work at every frame.
    """
    p, m, t = count_parameters(run), run.model, run.data.t
    attention = m.l * 4 * m.n * m.h * mean_attended_positions(m, t)
    patch, frame = _mel_head_parameters(run)
    written = 2.0 * (patch + run.mel.r * frame)
    return 2.0 * (p.layers + p.lora + m.v * m.d) + front_flops(run) + written + attention


def front_flops(run: Run) -> float:
    """FLOPs of one position's forward pass through the front end."""
    return encoder_flops(run) + 2.0 * (count_parameters(run).front - encoder_parameters(run))


def encoder_flops(run: Run) -> float:
    """FLOPs of one position's forward pass through the front end's encoder or stem.

    Whisper's first convolution is at work r times a position of the LLM, all that follows r / 2
    times. Attention is counted as if one clip filled the row, or a window where that is shorter.
    """
    m, w, r = run.model, run.model.whisper, run.mel.r
    if m.front == "conformer":
        return _conformer_flops(m.c, m.conformer, run.mel.m, run.data.t)
    if m.front == "whisper_conv":
        return r / 2 * _whisper_stem_flops(w, run.mel.m)
    if m.front != "whisper":
        return 2.0 * encoder_parameters(run)
    return r / 2 * _whisper_flops(w, run.mel.m, min(run.data.t * r // 2, w.positions))


def teacher_positions(run: Run) -> int:
    """States that each layer of a run's teacher makes of one row: 0 where it has none."""
    cfg = run.distill
    if cfg.teacher == "none":
        return 0
    if cfg.teacher == "whisper" and cfg.frame == "whole":
        return cfg.windows * cfg.whisper.positions
    return run.data.t * run.mel.r // cfg.traits.frames


def teacher_flops(run: Run) -> float:
    """FLOPs of the forward pass of a run's teacher, of one row: 0 where it has none."""
    cfg, positions = run.distill, teacher_positions(run)
    if cfg.teacher == "conformer":
        return positions * _conformer_flops(cfg.c, cfg.conformer, run.mel.m, positions)
    seen = min(positions, cfg.whisper.positions)
    return positions * _whisper_flops(cfg.whisper, run.mel.m, seen)


def distillation_flops(run: Run) -> float:
    """FLOPs that a teacher adds to one update: 0 where there is none.

    Its own forward pass, which nothing differentiates; at every position the heads, forward and
    backward, and the mean of its states within the position, which is made once.
    """
    cfg = run.distill
    if cfg.teacher == "none":
        return 0.0
    numbers = run.mel.r // cfg.traits.frames * len(cfg.pairs(run.model.l)) * cfg.width
    heads = 3 * 2.0 * _alignment_parameters(run) + 2.0 * numbers
    return run.data.b * (teacher_flops(run) + run.data.t * heads)


def _whisper_flops(w: Whisper, bands: int, seen: int) -> float:
    """FLOPs of one position of a Whisper encoder that attends to `seen`, of two mel frames."""
    blocks = whisper_parameters(w, bands) - whisper_stem_parameters(w, bands)
    return _whisper_stem_flops(w, bands) + 2.0 * blocks + 4.0 * w.l * w.d * seen


def _whisper_stem_flops(w: Whisper, bands: int) -> float:
    """FLOPs of one position of Whisper's convolutions, the first at work twice."""
    first = 3 * bands * w.d + w.d
    return 2.0 * (whisper_stem_parameters(w, bands) + first)


def _conformer_flops(c: int, own: Conformer, bands: int, t: int) -> float:
    """FLOPs of one position of a stem and Conformer in rows of `t`."""
    seen = min(t, CONFORMER_WINDOW)
    weights = stem_parameters(c, bands) + conformer_parameters(c, own)
    return 2.0 * weights + 4.0 * own.l * c * seen


def mean_attended_positions(model: Model, t: int) -> float:
    """Positions that one of `t` attends to, on average: itself and earlier ones in its window."""
    window = min(model.window or t, t)
    return window - window * (window - 1) / (2 * t)


def update_flops(run: Run) -> float:
    """FLOPs of one update: forward, and twice that backward for what must be differentiated.

    Weights that are frozen still pass gradients to the activations before them, so they cost 2
    and not 3 times the forward pass; those of a frozen encoder, before which nothing learns, cost
    it once. What remat computes again does not count, nor do a teacher and the heads that it
    teaches through (`distillation_flops`): model FLOPs utilisation is that of the model that stays,
    and has the same numerator in a run with a teacher and in the same run without one.
    """
    forward, positions = forward_flops(run) * run.data.b * run.data.t, run.data.b * run.data.t
    spared = 2 * _frozen_encoder_flops(run) * positions
    if run.optim.train == "all":
        return 3 * forward - spared
    p = count_parameters(run)
    frozen = 2 * (p.layers + run.model.v * run.model.d) * positions
    return 3 * forward - frozen - spared


def matmul_parameters(run: Run) -> int:
    """Weights that multiply: layers, LoRA, front end, and the head even where it is tied.

    The N of a scaling law. An input embedding is looked up, and multiplies as a head alone.
    """
    p = count_parameters(run)
    return p.layers + p.lora + p.front + run.model.v * run.model.d


def training_flops(run: Run, speech: float, text: float) -> float:
    """FLOPs of training on so many positions of speech and of text, padding left out.

    As `update_flops` and `distillation_flops` count them, but the front end at speech alone. The
    model runs it at every position and drops what is not speech, and scores tokens at every
    position, speech as well: so the head counts at both, as the layers do, while what the front end
    makes of text is no use.
    """
    row = run.data.b * run.data.t
    front = 3 * front_flops(run) - 2 * _frozen_encoder_flops(run)
    update = update_flops(run) + distillation_flops(run)
    return (speech + text) * update / row - text * front


def trained_parameters(run: Run) -> int:
    """Weights that change; the heads that layers are taught through, or that write, always do."""
    p = count_parameters(run)
    front = p.front + p.align + p.mel_head
    trained = {"all": p.total, "lora": front + p.lora, "front": front}[run.optim.train]
    return trained - (encoder_parameters(run) if run.optim.encoder == "frozen" else 0)


def encoder_parameters(run: Run) -> int:
    """Weights of the front end's encoder or stem: all of it but the projector to the LLM."""
    m, mel, w = run.model, run.mel, run.model.whisper
    if m.front in ("none", "linear"):
        return 0
    if m.front == "whisper":
        return whisper_parameters(w, mel.m)
    if m.front == "whisper_conv":
        return whisper_stem_parameters(w, mel.m)
    blocks = conformer_parameters(m.c, m.conformer) if m.front == "conformer" else 0
    return stem_parameters(m.c, mel.m) + blocks


def stem_parameters(c: int, bands: int) -> int:
    """Weights of the conv stem."""
    for _ in range(3):
        bands = (bands + 1) // 2
    return 10 * c + 2 * (10 * c + c * c + c) + c * bands * c + c


def conformer_parameters(c: int, own: Conformer) -> int:
    """Weights of the blocks of a Conformer of width `c`, and of its bias of distances."""
    mlp = c * 2 * own.f + 2 * own.f + own.f * c + c
    attention = 4 * (c * c + c)
    convolution = c * 2 * c + 2 * c + 2 * c + c * own.taps + c + 2 * (c * c + c)
    norms = 5 * 2 * c
    return own.l * (2 * mlp + attention + convolution + norms) + 2 * own.distance * own.n


def teacher_parameters(run: Run) -> int:
    """Weights of a run's teacher, which never change: 0 where it has none."""
    cfg, bands = run.distill, run.mel.m
    if cfg.teacher == "conformer":
        return stem_parameters(cfg.c, bands) + conformer_parameters(cfg.c, cfg.conformer)
    return 0 if cfg.teacher == "none" else whisper_parameters(cfg.whisper, bands)


def _alignment_parameters(run: Run) -> int:
    """Weights of the heads: a matrix to the teacher's width a layer, and the scale of its norm."""
    m, cfg = run.model, run.distill
    if cfg.teacher == "none" or cfg.head == "none":
        return 0
    scale = m.d if cfg.head == "norm" else 0
    return len(cfg.pairs(m.l)) * (m.d * cfg.width + scale)


def _mel_head_parameters(run: Run) -> tuple[int, int]:
    """Weights of the head that writes, at work once a patch and, the post-net's, once a frame."""
    m, p, own = run.model, run.mel.p, run.model.mel_head
    if m.writes == "text":
        return 0, 0
    u, w = own.prenet, own.hidden
    prenet = p * u + u + u * u + u + u * m.d + m.d
    latent = 2 * (m.d * p + p) + p * w + w + w * w + w + w * p + p + m.d + 1
    widths = [run.mel.m, *[own.channels] * (own.convolutions - 1), run.mel.m]
    pairs = list(zip(widths, widths[1:], strict=False)) if own.convolutions else []
    return prenet + latent, sum(own.taps * x * y + y for x, y in pairs)


def _front_parameters(run: Run) -> int:
    m, mel = run.model, run.mel
    if m.front == "none":
        return 0
    if m.front == "linear":
        return mel.p * m.d + m.d
    if m.front == "whisper_conv":
        return encoder_parameters(run) + mel.r // 2 * m.whisper.d * m.d + m.d
    width = mel.r // 2 * m.whisper.d if m.front == "whisper" else m.c
    return encoder_parameters(run) + width * m.d + m.d + m.d * m.d + m.d


def whisper_parameters(w: Whisper, bands: int) -> int:
    """Weights of a Whisper encoder that are learnt: all but its positions."""
    layer = 4 * w.d * w.d + 3 * w.d + 2 * w.d * w.f + w.f + w.d + 4 * w.d
    return whisper_stem_parameters(w, bands) + w.l * layer + 2 * w.d


def whisper_stem_parameters(w: Whisper, bands: int) -> int:
    """Weights of Whisper's two convolutions."""
    return 3 * bands * w.d + 3 * w.d * w.d + 2 * w.d


def _frozen_encoder_flops(run: Run) -> float:
    """FLOPs of one position's forward pass through an encoder that stays as it is."""
    return encoder_flops(run) if run.optim.encoder == "frozen" else 0.0
