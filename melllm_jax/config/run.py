"""The config of a run: what is trained, on what, how, and where.

Plain data: importing this file imports no JAX. A field that is a size is named by its letter of
the one alphabet (see `melllm_jax.sharding`). Fields marked `WHERE` say where a run happens and
leave its result alone, so they are no part of its identity.
"""

import dataclasses
from typing import Literal

from melllm_jax.config.data import Data
from melllm_jax.config.distillation import Distill
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Lora, Model
from melllm_jax.config.speech_output import SpeechLoss
from melllm_jax.config.validation import LATER, WHERE, require
from melllm_jax.errors import Mistake

RANDOM = "random"  # init.front: no folder


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser, its schedule, and what it may change."""

    steps: int  # updates in all; the schedule ends there
    lr: float = 1e-3  # peak learning rate, of muon's matrices too
    kind: Literal["adamw", "muon"] = "adamw"  # muon: on matrices; AdamW on the rest
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    warmup: int = 100  # updates of linear rise from 0
    decay: float = 0.2  # wsd: share of the steps over which the rate falls
    final: float = 0.1  # the rate ends at this share of its peak
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices only
    clip: float = 1.0  # global gradient norm; 0 does not clip
    micro: int = dataclasses.field(
        default=1, metadata=WHERE
    )  # micro-batches whose gradients are added up for one update
    # lora: LoRA and front end; front: the front end alone. The LLM is frozen bfloat16 in both.
    train: Literal["all", "lora", "front"] = "all"
    freeze: tuple[int, ...] = ()  # layers whose trained weights stay as they are
    # A front end's stem or encoder; its projector is trained all the same.
    encoder: Literal["trained", "frozen"] = dataclasses.field(default="trained", metadata=LATER)
    compute: Literal["float32", "bfloat16"] = "bfloat16"  # of the forward and backward pass

    def __post_init__(self) -> None:
        require("optim.steps", self.steps, self.steps > 0, "must be positive")
        require("optim.micro", self.micro, self.micro > 0, "must be positive")
        require("optim.warmup", self.warmup, self.warmup >= 0, "must be 0 or more")
        require("optim.decay", self.decay, 0 < self.decay <= 1, "must lie in (0, 1]")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; `melllm_jax.sharding` says what each axis splits."""

    topology: str = ""  # the pod that `melllm plan` compiles for: v5p:4x4x4, h100:8x8
    slices: int = 1  # slices in it, each with a fast network of its own; replica crosses them

    replica: int = 1  # copies of everything, over the slow network between slices
    fsdp: int = 0  # splits weights and rows; 0 takes what the other axes leave
    seq: int = 1  # splits time
    tp: int = 1  # splits heads, MLP width and vocabulary

    def __post_init__(self) -> None:
        for name in ("slices", "replica", "seq", "tp"):
            require(
                f"mesh.{name}", getattr(self, name), getattr(self, name) > 0, "must be positive"
            )
        require("mesh.fsdp", self.fsdp, self.fsdp >= 0, "must be 0 or more")


@dataclasses.dataclass(frozen=True)
class CheckpointIntervals:
    """When a run saves a checkpoint, and which of them stay, in updates."""

    every: int = 500  # a checkpoint each so many updates, and at the end
    last: int = 2  # newest checkpoints that stay
    milestone: int = 0  # checkpoints at multiples of this stay for good; 0 is none

    def __post_init__(self) -> None:
        require("checkpoints.every", self.every, self.every > 0, "must be positive")
        require("checkpoints.last", self.last, self.last > 0, "must be positive")
        require("checkpoints.milestone", self.milestone, self.milestone >= 0, "is a count")


@dataclasses.dataclass(frozen=True)
class MetricInterval:
    """How often a run writes its metrics, in updates."""

    every: int = 1  # a line of metrics each so many updates

    def __post_init__(self) -> None:
        require("metrics.every", self.every, self.every > 0, "must be positive")


@dataclasses.dataclass(frozen=True)
class ScoreInterval:
    """How often a run transcribes its dev split, in updates."""

    every: int = 0  # WER on the dev split each so many updates; 0 is never

    def __post_init__(self) -> None:
        require("scoring.every", self.every, self.every >= 0, "is a count")


@dataclasses.dataclass(frozen=True)
class Init:
    """The weights that a run starts from; random ones without a path."""

    path: str = dataclasses.field(default="", metadata=WHERE)  # folder of an import or of a run
    digest: str = ""  # content hash of its checkpoint, filled in when a run starts
    front: str = dataclasses.field(
        default="", metadata={**WHERE, **LATER}
    )  # folder that the front end's weights come from, in place of path's; RANDOM: from none
    front_digest: str = dataclasses.field(
        default="", metadata=LATER
    )  # content hash of its checkpoint, or "random", filled in when a run starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseRun:
    """What every training run has, whatever network it trains."""

    name: str = dataclasses.field(metadata=WHERE)  # the preset it came from
    data: Data
    optim: Optim
    mel: Mel = Mel()
    init: Init = Init()
    seed: int = 0  # of weights, order of data, dropout and augmentation
    mesh: Mesh = dataclasses.field(default=Mesh(), metadata=WHERE)
    checkpoints: CheckpointIntervals = dataclasses.field(
        default=CheckpointIntervals(), metadata=WHERE
    )
    metrics: MetricInterval = dataclasses.field(default=MetricInterval(), metadata=WHERE)
    scoring: ScoreInterval = dataclasses.field(default=ScoreInterval(), metadata=WHERE)

    ORDER = tuple[str, ...]()  # names of the fields as they are written; none: as they are declared

    def __post_init__(self) -> None:
        whole = self.data.b % self.optim.micro == 0
        require("optim.micro", self.optim.micro, whole, f"does not divide data.b={self.data.b}")

    @property
    def patch_width(self) -> int:
        """Width of a position's patch in a batch: 0 where no sound is read."""
        raise NotImplementedError

    @property
    def lora_rank(self) -> int:
        """Rank of the low-rank additions; 0 where there are none."""
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(BaseRun):
    """A run of a decoder: all that decides its result, and where and how it runs."""

    model: Model
    text: Text = Text()
    lora: Lora = Lora()
    distill: Distill = dataclasses.field(default=Distill(), metadata=LATER)  # AuRA's teacher
    speech_loss: SpeechLoss = dataclasses.field(default=SpeechLoss(), metadata=LATER)

    ORDER = (
        *("name", "model", "data", "optim", "mel", "text", "lora", "init", "distill"),
        *("speech_loss", "seed", "mesh", "checkpoints", "metrics", "scoring"),
    )

    def __post_init__(self) -> None:
        rule = "is of another rate than the 16,000 Hz that what a model hears is brought to"
        require("mel.kind", self.mel.kind, self.mel.rate == 16_000, rule)
        if self.model.front in ("conv", "conformer"):
            rule = f"must be 8 for the {self.model.front} front end"
            require("mel.r", self.mel.r, self.mel.r == 8, rule)
        if self.model.front in ("whisper", "whisper_conv"):
            rule = f"must be 2 or more for the {self.model.front} front end"
            rule = f"{rule}, which halves the frames itself"
            require("mel.r", self.mel.r, self.mel.r >= 2, rule)
        if self.optim.train == "lora":
            require("lora.r", self.lora.r, self.lora.r > 0, 'optim.train="lora" needs a rank')
        if self.lora.at == "speech":
            rule = "lora.r=0 is no LoRA, and what else is trained is not kept to speech"
            require("lora.at", "speech", self.lora.r > 0, rule)
            rule = f'model.front="{self.model.front}" reads no speech that LoRA could be at'
            require("lora.at", "speech", self.model.front != "none", rule)
        if self.optim.train == "front":
            rule = f'model.front="{self.model.front}" leaves nothing to train'
            require("optim.train", "front", self.model.front != "none", rule)
        if self.optim.encoder == "frozen":
            there = self.model.front not in ("none", "linear")
            rule = f'model.front="{self.model.front}" has no encoder to be frozen'
            require("optim.encoder", self.optim.encoder, there, rule)
        if self.distill.teacher != "none":
            self._check_teacher()
        self._check_uses()
        layers = self.optim.freeze
        known = all(0 <= layer < self.model.l for layer in layers)
        require("optim.freeze", layers, known, f"layers run from 0 to {self.model.l - 1}")
        super().__post_init__()

    def _check_uses(self) -> None:
        """Raises Mistake where a source is to be heard or spoken by a model that cannot."""
        speech = self.model.writes == "speech"
        for source in self.data.sources:
            rule = 'model.writes="text" has no head that speaks'
            require("data.sources.use", source.use, speech or source.use != "tts", rule)
            rule = 'model.front="none" hears nothing'
            hears = self.model.front != "none"
            require("data.sources.use", source.use, hears or source.use != "asr", rule)
        if speech and self.distill.teacher != "none":
            raise Mistake('model.writes="speech": with a teacher nothing is learnt to be spoken')

    def _check_teacher(self) -> None:
        """Raises Mistake where the run makes no sound that its teacher hears, or no head fits."""
        teacher, traits = self.distill.teacher, self.distill.traits
        hears = self.model.front != "none"
        rule = f'model.front="{self.model.front}" reads no sound that it could hear'
        require("distill.teacher", teacher, hears, rule)
        own = all(getattr(self.mel, name) == value for name, value in traits.hears.items())
        needed = ", ".join(f'mel.{name}="{value}"' for name, value in traits.hears.items())
        rule = f"makes no sound that the teacher hears: {needed}"
        require("mel.kind", f"{self.mel.kind}, {self.mel.normalize}", own, rule)
        rule = "must be 0: the teacher hears mel without a floor"
        require("mel.floor", self.mel.floor, not self.mel.floor, rule)
        rule = f"must be {', '.join(map(str, traits.rates))} for the {teacher} teacher"
        require("mel.r", self.mel.r, self.mel.r in traits.rates, rule)
        same = self.distill.head != "none" or traits.width == self.model.d
        rule = f"model.d={self.model.d} is not the teacher's width of {traits.width}: give a head"
        require("distill.head", self.distill.head, same, rule)

    @property
    def patch_width(self) -> int:
        """Width of a position's patch in a batch: 0 where the model knows no sound."""
        return self.mel.p if self.has_sound else 0

    def source_use(self, source: int | None = None) -> Literal["asr", "tts", "text"]:
        """What an utterance of a source, by its index, teaches; None: of one not among the run's.

        A run without a head that speaks uses all as one or the other.
        """
        use = "auto" if source is None else self.data.sources[source].use
        if use != "auto":
            return use
        if self.model.front != "none":
            return "asr"
        return "tts" if self.model.writes == "speech" else "text"

    @property
    def has_sound(self) -> bool:
        """Whether the model reads sound or writes it."""
        return self.model.front != "none" or self.model.writes == "speech"

    @property
    def lora_rank(self) -> int:
        """Rank of LoRA."""
        return self.lora.r
