"""How a frozen speech encoder teaches the hidden states of a run's model: plain data, no JAX.

AuRA (arXiv 2606.11033) leaves unsaid which layers meet, how, and for how long; the defaults are
VoRA's where it says (arXiv 2503.20680: a norm and a matrix a layer, 1 - cosine, weight 1), else
ours. Layers are counted from 0, and a layer's state is the output of its block.
"""

from collections.abc import Mapping
import dataclasses
import types
from typing import Literal, NamedTuple

from melllm_jax.config.encoders import Conformer, Whisper
from melllm_jax.config.validation import LATER, WHERE, require

# Kinds of teachers: front ends of models. The fields that say an encoder's sizes, of `Model` as of
# `Distill`.
SIZE_FIELDS: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {"whisper": ("whisper",), "conformer": ("c", "conformer")}
)


class TeacherTraits(NamedTuple):
    """All that tells one kind of teacher from another, but for the network itself."""

    layers: int
    width: int  # of its states
    frames: int  # of the mel, 10 ms each, that one state is of
    rates: tuple[int, ...]  # mel.r of the runs that it can teach
    hears: Mapping[str, str]  # values of `Mel` that all its like hear; its import says the rest


@dataclasses.dataclass(frozen=True)
class Distill:
    """The teacher, which of its layers teach which of the model's, and how much that counts."""

    teacher: Literal["none", "whisper", "conformer"] = "none"  # Whisper's encoder, Phi-4-MM's
    path: str = dataclasses.field(default="", metadata=WHERE)  # folder of its import
    digest: str = ""  # content hash of its checkpoint, filled in when a run starts
    whisper: Whisper = Whisper()  # its sizes
    conformer: Conformer = dataclasses.field(default=Conformer(), metadata=LATER)  # or these
    c: int = dataclasses.field(default=1024, metadata=LATER)  # a Conformer's width
    # What Whisper hears of a clip: frames of 30 s padded with silence, as it was trained, or no
    # more than the clip, which costs less. A Conformer hears no more either way.
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
        if self.teacher == "conformer":
            require("distill.c", self.c, self.c > 0, "must be positive")
            n = self.conformer.n
            require("distill.conformer.n", n, self.c % n == 0, f"does not divide c={self.c}")
        layers, last = self.teacher_layers, self.traits.layers - 1
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
    def traits(self) -> TeacherTraits:
        """What the teacher is; Whisper where there is none."""
        if self.teacher == "conformer":
            return TeacherTraits(self.conformer.l, self.c, 8, (8,), {"kind": "phi4"})
        heard = {"kind": "whisper", "normalize": "none"}
        return TeacherTraits(self.whisper.l, self.whisper.d, 2, (2, 4, 8, 16), heard)

    @property
    def width(self) -> int:
        """Width of the teacher's states."""
        return self.traits.width

    def _taught_by(self) -> tuple[int, ...]:
        return self.teacher_layers or tuple(range(self.traits.layers))
