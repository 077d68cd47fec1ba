"""How a frozen speech encoder teaches the hidden states of a run's model: plain data, no JAX.

AuRA (arXiv 2606.11033) leaves unsaid which layers meet, how, and for how long; the defaults are
VoRA's where it says (arXiv 2503.20680: a norm and a matrix a layer, 1 - cosine, weight 1), else
ours. Layers are counted from 0, and a layer's state is the output of its block.
"""

import dataclasses
from typing import Literal

from melllm_jax.config.encoders import Whisper
from melllm_jax.config.validation import WHERE, require


@dataclasses.dataclass(frozen=True)
class Distill:
    """The teacher, which of its layers teach which of the model's, and how much that counts."""

    teacher: Literal["none", "whisper"] = "none"  # Whisper's encoder
    path: str = dataclasses.field(default="", metadata=WHERE)  # folder of its import
    digest: str = ""  # content hash of its checkpoint, filled in when a run starts
    whisper: Whisper = Whisper()  # its sizes
    # What it hears of a clip: frames of 30 s padded with silence, as it was trained, or no more
    # than the clip, which costs less.
    frame: Literal["whole", "clip"] = "whole"
    windows: int = 8  # whole: frames of a row that it hears; clips beyond them are not taught
    teacher_layers: tuple[int, ...] = ()  # () is all
    student_layers: tuple[int, ...] = ()  # () spreads as many evenly over the first `depth`
    depth: int = 0  # layers of the model that learn from it, where they are not listed; 0 is all
    time: Literal["mean", "strided", "linear"] = "mean"  # its positions within one of the model's
    head: Literal["norm", "linear", "none"] = "norm"  # to its width: RMSNorm and a matrix, …
    loss: Literal["cosine", "mse", "both"] = "cosine"  # 1 - cosine; squares of normalised states
    weight: float = 1.0  # of the mean over its layers, beside the loss of a token
    # The weight over the updates: the same; falling to 0 at `until`; the same up to there, then 0.
    schedule: Literal["constant", "linear", "off"] = "constant"
    until: int = 0  # updates; 0 is the last

    def __post_init__(self) -> None:
        require("distill.windows", self.windows, self.windows > 0, "must be positive")
        require("distill.depth", self.depth, self.depth >= 0, "must be 0 or more layers")
        require("distill.weight", self.weight, self.weight >= 0, "must be 0 or more")
        require("distill.until", self.until, self.until >= 0, "must be 0 or more updates")
        if self.student_layers:
            taught = len(self.student_layers)
            rule = f"{len(self._taught_by())} of the teacher's are to meet them: as many"
            same = taught == len(self._taught_by())
            require("distill.student_layers", f"{taught} layers", same, rule)
            once = len(set(self.student_layers)) == taught
            require("distill.student_layers", self.student_layers, once, "names a layer twice")
        layers, last = self.teacher_layers, self.whisper.l - 1
        known = all(0 <= layer <= last for layer in layers)
        require("distill.teacher_layers", layers, known, f"layers run from 0 to {last}")

    def pairs(self, layers: int) -> tuple[tuple[int, int], ...]:
        """(teacher's layer, student's) of a model of so many `layers`.

        Raises Mistake where the model has not as many, or they are fewer than the teacher's.
        """
        teachers = self._taught_by()
        if self.student_layers:
            known = all(0 <= layer < layers for layer in self.student_layers)
            rule = f"layers run from 0 to {layers - 1}"
            require("distill.student_layers", self.student_layers, known, rule)
            return tuple(zip(teachers, self.student_layers, strict=True))
        depth, count = self.depth or layers, len(teachers)
        require("distill.depth", depth, depth <= layers, f"the model has {layers} layers")
        rule = f"fewer than the teacher's {count}: list distill.teacher_layers"
        require("distill.depth", depth, depth >= count, rule)
        return tuple((t, -(-(i + 1) * depth // count) - 1) for i, t in enumerate(teachers))

    @property
    def width(self) -> int:
        """Width of the teacher's states."""
        return self.whisper.d

    def _taught_by(self) -> tuple[int, ...]:
        return self.teacher_layers or tuple(range(self.whisper.l))
