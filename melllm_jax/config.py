"""Frozen descriptions of a run: what is trained, on what, how, and where.

Plain data: importing this file imports no JAX. A field is named by the letter of the one alphabet
(see `layout`) where it is a size. Fields marked `WHERE` say where a run happens and leave its
result alone, so they are no part of its identity.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from typing import Any, Literal, TypeVar

from melllm_jax.errors import Mistake

WHERE: Mapping[str, Any] = types.MappingProxyType({"identity": False})


def _rule(name: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        raise Mistake(f"{name}={value}: {rule}")


@dataclasses.dataclass(frozen=True)
class Mel:
    """How 16 kHz sound becomes mel patches."""

    kind: Literal["phi4", "whisper", "plain"] = "phi4"  # whose extractor, to the constant
    m: int = 80  # mel bands
    r: int = 8  # frames of 10 ms a position: the token rate is 100 / r Hz
    normalize: Literal["none", "utterance", "global"] = "utterance"  # mean and variance by band
    mean: tuple[float, ...] = ()  # global: m means, in the extractor's log units
    invstd: tuple[float, ...] = ()  # global: m inverse standard deviations

    def __post_init__(self) -> None:
        _rule("mel.r", self.r, self.r in (1, 2, 4, 8, 16), "must be 1, 2, 4, 8 or 16")
        bands = {"phi4": (80,), "whisper": (80, 128), "plain": range(8, 257)}[self.kind]
        _rule("mel.m", self.m, self.m in bands, f"is no band count of {self.kind}")
        for name in ("mean", "invstd"):
            count = len(getattr(self, name))
            _rule(f"mel.{name}", f"{count} values", count in (0, self.m), f"needs {self.m} values")

    @property
    def p(self) -> int:
        """Width of one flattened patch."""
        return self.r * self.m


@dataclasses.dataclass(frozen=True)
class Text:
    """How words become token ids, and what stands around the sound."""

    tokenizer: str = dataclasses.field(default="bytes", metadata=WHERE)  # "bytes", or a path
    digest: str = ""  # content hash of the tokenizer, filled in when a run starts
    template: Literal["plain", "phi3", "phi4"] = "plain"  # chat template of the ASR prompt
    instruction: str = "Transcribe the audio clip into text."  # unused by "plain"


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions, partial or long (LongRoPE: Phi-3-128k, Phi-4-mini)."""

    theta: float = 10_000.0  # rope_theta
    partial: float = 1.0  # partial_rotary_factor: share of each head's width that rotates
    short: tuple[float, ...] = ()  # short_factor, one a rotated pair; () is plain rotary
    long: tuple[float, ...] = ()  # long_factor, used once a row is longer than `original`
    original: int = 4096  # original_max_position_embeddings
    longest: int = 4096  # max_position_embeddings

    def __post_init__(self) -> None:
        _rule("model.rope.partial", self.partial, 0 < self.partial <= 1, "must lie in (0, 1]")
        same = len(self.short) == len(self.long)
        _rule("model.rope.long", f"{len(self.long)} factors", same, f"short has {len(self.short)}")


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of the decoder and its front end."""

    d: int  # hidden_size
    n: int  # num_attention_heads
    k: int  # num_key_value_heads
    h: int  # head_dim
    f: int  # intermediate_size
    l: int  # num_hidden_layers
    v: int  # vocab_size
    eps: float = 1e-5  # rms_norm_eps
    rope: Rope = Rope()
    tied: bool = True  # tie_word_embeddings
    window: int = 0  # sliding_window: positions seen back, itself included; 0 sees all
    front: Literal["none", "linear", "conv"] = "linear"  # text alone, patch → d, Phi-4-MM's stem
    c: int = 1024  # channels of the conv stem
    speech: Literal["causal", "bidirectional"] = "causal"  # attention inside one clip
    attention: Literal["auto", "whole", "blocks", "splash", "cudnn"] = dataclasses.field(
        default="auto", metadata=WHERE
    )  # auto: splash on TPU, cuDNN on GPU, elsewhere [t, s] whole up to 1,024, blocks beyond
    remat: Literal["none", "full", "dots", "named", "offload"] = dataclasses.field(
        default="full", metadata=WHERE
    )  # what the backward pass computes again: nothing, all, all but products, all but `kept`
    kept: tuple[Literal["qkv", "attended", "gate_up", "out"], ...] = dataclasses.field(
        default=("qkv", "attended"), metadata=WHERE
    )  # activations of a layer that stay (remat named) or wait in the host's memory (offload)
    scan: bool = dataclasses.field(
        default=True, metadata=WHERE
    )  # one compiled layer run l times; False unrolls: faster on a CPU

    def __post_init__(self) -> None:
        for name in ("d", "n", "k", "h", "f", "l", "v", "c"):
            _rule(f"model.{name}", getattr(self, name), getattr(self, name) > 0, "must be positive")
        shares = self.n % self.k == 0
        _rule("model.n", self.n, shares, f"query heads cannot share k={self.k} KV heads evenly")
        _rule("model.window", self.window, self.window >= 0, "must be 0 or more positions")
        pairs = self.rotated // 2
        fits = len(self.rope.short) in (0, pairs)
        _rule("model.rope.short", f"{len(self.rope.short)} factors", fits, f"needs {pairs}")

    @property
    def rotated(self) -> int:
        """Leading dimensions of each head that rotate: an even number."""
        return int(self.h * self.rope.partial) // 2 * 2


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank additions to the four projections of every layer; r = 0 is none."""

    r: int = 0  # rank
    alpha: float = 640.0  # the addition is scaled by alpha / r
    dropout: float = 0.0  # share of the low-rank input dropped in training

    def __post_init__(self) -> None:
        _rule("lora.r", self.r, self.r >= 0, "must be 0 or more")
        _rule("lora.dropout", self.dropout, 0 <= self.dropout < 1, "must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Source:
    """One corpus in the mixture."""

    path: str = dataclasses.field(metadata=WHERE)  # folder of shards or of SPLIT.jsonl manifests
    weight: float = 1.0  # share of the examples drawn, relative to the other sources
    digest: str = ""  # content hash of its train split, filled in when a run starts
    hours: float = 0.0  # of sound: a subset, the same on every machine, in every larger one; 0: all

    def __post_init__(self) -> None:
        _rule("data.sources.weight", self.weight, self.weight > 0, "must be positive")
        _rule("data.sources.hours", self.hours, 0 <= self.hours < math.inf, "must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Sounds:
    """A corpus of which the sound alone is used: noises, or impulse responses of rooms."""

    path: str = dataclasses.field(default="", metadata=WHERE)  # folder of shards or of manifests
    split: str = "train"  # the one that is drawn from
    digest: str = ""  # content hash of that split, filled in when a run starts


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to training examples alone, in this order; nothing as it stands here.

    speed, reverb, noise, volume, warp and mask are the shares of utterances that are changed so;
    the other fields say how, and stand at what was published. speeds: Ko et al. 2015, "Audio
    Augmentation for Speech Recognition". Rooms: Ko et al. 2017, "A study on data augmentation of
    reverberant speech for robust speech recognition". snrs: those of MUSAN's noises in Kaldi's
    recipe for x-vectors (Snyder et al. 2018). quietest, loudest: Kaldi's
    `perturb_data_dir_volume.sh`. The rest: policy LD of SpecAugment (Park et al. 2019, table 1),
    on with warp 1 and mask 1; LB has one mask of each kind. shift is our own.
    """

    speed: float = 0.0  # share resampled, which changes their pitch
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # factors, drawn evenly
    reverb: float = 0.0  # share heard in a room
    rooms: Sounds = Sounds()  # impulse responses; of several channels the mean is taken
    noise: float = 0.0  # share with a noise added
    noises: Sounds = Sounds()  # sound of any kind; one is drawn for each such utterance
    snrs: tuple[float, ...] = (15.0, 10.0, 5.0, 0.0)  # dB of speech over noise, drawn evenly
    volume: float = 0.0  # share made louder or quieter
    quietest: float = 0.125  # smallest factor of the samples
    loudest: float = 2.0  # largest factor of the samples
    warp: float = 0.0  # share whose time is warped
    warp_width: int = 80  # farthest a frame is moved, in frames of 10 ms; W of the paper
    mask: float = 0.0  # share masked
    time_masks: int = 2  # an utterance; m_T
    time_width: int = 100  # widest time mask, in frames of 10 ms; T
    time_share: float = 1.0  # of an utterance that one time mask may cover; p
    band_masks: int = 2  # an utterance; m_F
    band_width: int = 27  # widest frequency mask, in bands; F
    shift: int = 0  # most frames put before an utterance, so that patches cut it elsewhere

    def __post_init__(self) -> None:
        for name in ("speed", "reverb", "noise", "volume", "warp", "mask", "time_share"):
            share = getattr(self, name)
            _rule(f"data.augment.{name}", share, 0 <= share <= 1, "must lie in [0, 1]")
        for name in ("time_masks", "time_width", "band_masks", "band_width", "shift", "warp_width"):
            count = getattr(self, name)
            _rule(f"data.augment.{name}", count, count >= 0, "must be 0 or more")
        near = bool(self.speeds) and all(0.5 <= speed <= 2 for speed in self.speeds)
        _rule("data.augment.speeds", self.speeds, near, "needs factors from 0.5 to 2")
        finite = bool(self.snrs) and all(map(math.isfinite, self.snrs))
        _rule("data.augment.snrs", self.snrs, finite, "needs one ratio in dB at least")
        ordered = 0 < self.quietest <= self.loudest < math.inf
        _rule("data.augment.quietest", self.quietest, ordered, f"must lie in (0, {self.loudest}]")
        for name, sounds in (("reverb", "rooms"), ("noise", "noises")):
            given = not getattr(self, name) or bool(getattr(self, sounds).path)
            rule = f"needs a corpus: give data.augment.{sounds}.path"
            _rule(f"data.augment.{name}", getattr(self, name), given, rule)

    @property
    def on_sound(self) -> tuple[str, ...]:
        """Fields that are on and need the sound itself, which ready mel no longer has."""
        return tuple(name for name in ("speed", "reverb", "noise", "volume") if getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows, batches, and what to do with bad examples."""

    t: int  # positions a row
    b: int  # rows a batch, over all hosts
    sources: tuple[Source, ...] = ()
    temperature: float = 0.0  # shares are weight · hours^(1 / temperature); 0: the weights alone
    epochs: int = 0  # times that a source is drawn at most, then it drops out; 0: without end
    lanes: int = 0  # parts of the stream, packed apart, that hosts share; 0 takes gcd(b, 8)
    bins: int = 8  # rows that are filled side by side by the packer of a lane
    bad: float = 0.01  # share of unusable examples that stops the run
    corrupt: Literal["stop", "skip"] = dataclasses.field(
        default="stop", metadata=WHERE
    )  # what a damaged or missing shard does: stop the run, or be left out, named and counted
    longest: float = 30.0  # seconds: longer audio is an unusable example
    wire: Literal["float32", "bfloat16"] = "bfloat16"  # dtype of the patches sent to the device
    augment: Augment = Augment()
    workers: int = dataclasses.field(
        default=0, metadata=WHERE
    )  # processes of a host that make its batches, each of some lanes; 0: this one does, by threads
    # readers in each such process; 0: who packs reads, fastest in workers and from local disks
    threads: int = dataclasses.field(default=2, metadata=WHERE)
    ahead: int = dataclasses.field(default=2, metadata=WHERE)  # batches made ahead

    def __post_init__(self) -> None:
        for name in ("t", "b", "bins"):
            _rule(f"data.{name}", getattr(self, name), getattr(self, name) > 0, "must be positive")
        _rule("data.lanes", self.lanes, self.lanes >= 0, "must be 0 or more")
        whole = self.b % self.streams == 0
        _rule("data.lanes", self.lanes, whole, f"does not divide data.b={self.b}")
        _rule("data.workers", self.workers, self.workers >= 0, "must be 0 or more")
        _rule("data.bad", self.bad, 0 <= self.bad <= 1, "must lie in [0, 1]")
        _rule("data.temperature", self.temperature, self.temperature >= 0, "must be 0 or more")
        _rule("data.epochs", self.epochs, self.epochs >= 0, "must be 0 or more")

    @property
    def streams(self) -> int:
        """How many lanes there are."""
        return self.lanes or math.gcd(self.b, 8)


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
    train: Literal["all", "lora"] = "all"  # lora: LoRA and front end; the LLM is frozen bfloat16
    freeze: tuple[int, ...] = ()  # layers whose trained weights stay as they are
    compute: Literal["float32", "bfloat16"] = "bfloat16"  # of the forward and backward pass

    def __post_init__(self) -> None:
        _rule("optim.steps", self.steps, self.steps > 0, "must be positive")
        _rule("optim.micro", self.micro, self.micro > 0, "must be positive")
        _rule("optim.warmup", self.warmup, self.warmup >= 0, "must be 0 or more")
        _rule("optim.decay", self.decay, 0 < self.decay <= 1, "must lie in (0, 1]")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; `layout` says what each axis splits."""

    topology: str = ""  # the pod that `melllm plan` compiles for: v5p:4x4x4, h100:8x8
    slices: int = 1  # slices in it, each with a fast network of its own; replica crosses them

    replica: int = 1  # copies of everything, over the slow network between slices
    fsdp: int = 0  # splits weights and rows; 0 takes what the other axes leave
    seq: int = 1  # splits time
    tp: int = 1  # splits heads, MLP width and vocabulary

    def __post_init__(self) -> None:
        for name in ("slices", "replica", "seq", "tp"):
            _rule(f"mesh.{name}", getattr(self, name), getattr(self, name) > 0, "must be positive")
        _rule("mesh.fsdp", self.fsdp, self.fsdp >= 0, "must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Keep:
    """What a run writes down, and how often, in updates."""

    every: int = 500  # a checkpoint each so many updates, and at the end
    last: int = 2  # newest checkpoints that stay
    milestone: int = 0  # checkpoints at multiples of this stay for good; 0 is none
    log: int = 1  # a line of metrics each so many updates
    score: int = 0  # WER on the dev split each so many updates; 0 is never

    def __post_init__(self) -> None:
        for name in ("milestone", "score"):
            _rule(f"keep.{name}", getattr(self, name), getattr(self, name) >= 0, "is a count")
        for name in ("every", "last", "log"):
            _rule(f"keep.{name}", getattr(self, name), getattr(self, name) > 0, "must be positive")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a model is without its weights: `model.json` beside a checkpoint that was imported."""

    model: Model
    mel: Mel = Mel()
    text: Text = Text()
    lora: Lora = Lora()


@dataclasses.dataclass(frozen=True)
class Init:
    """The weights that a run starts from; random ones where nothing is said."""

    path: str = dataclasses.field(default="", metadata=WHERE)  # folder of an import or of a run
    digest: str = ""  # content hash of its checkpoint, filled in when a run starts


@dataclasses.dataclass(frozen=True)
class Run:
    """All that decides a run."""

    name: str = dataclasses.field(metadata=WHERE)  # the preset it came from
    model: Model
    data: Data
    optim: Optim
    mel: Mel = Mel()
    text: Text = Text()
    lora: Lora = Lora()
    init: Init = Init()
    seed: int = 0  # of weights, order of data, dropout and augmentation
    mesh: Mesh = dataclasses.field(default=Mesh(), metadata=WHERE)
    keep: Keep = dataclasses.field(default=Keep(), metadata=WHERE)

    def __post_init__(self) -> None:
        if self.model.front == "conv":
            _rule("mel.r", self.mel.r, self.mel.r == 8, "must be 8 for the conv front end")
        if self.optim.train == "lora":
            _rule("lora.r", self.lora.r, self.lora.r > 0, 'optim.train="lora" needs a rank')
        layers = self.optim.freeze
        known = all(0 <= layer < self.model.l for layer in layers)
        _rule("optim.freeze", layers, known, f"layers run from 0 to {self.model.l - 1}")
        whole = self.data.b % self.optim.micro == 0
        _rule("optim.micro", self.optim.micro, whole, f"does not divide data.b={self.data.b}")


def override(run: Run, changes: Mapping[str, Any]) -> Run:
    """`run` with the dotted fields of `changes` set: `override(run, {"model.d": 512})`.

    Raises Mistake for a name that does not exist, with the nearest that does, and for a value
    of another type than the field's.
    """
    names = dict(fields(run))
    whole: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise Mistake(f"unknown field {name}={value!r}: did you mean {near[0]}?")
        parts = name.split(".")
        inner = whole
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
        inner[parts[-1]] = value
    return _changed(run, whole, "")


def fields(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable field of a config as (dotted name, value)."""
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def to_json(cfg: Run | Spec) -> str:
    """A run or a spec as indented JSON; `from_json` reads it back equal."""
    return json.dumps(dataclasses.asdict(cfg), indent=1) + "\n"


Kind = TypeVar("Kind", Run, Spec)


def from_json(text: str, kind: type[Kind]) -> Kind:
    """What `to_json` wrote. Raises Mistake for unknown, missing or ill-typed fields."""
    name = {Run: "run", Spec: "model"}[kind]
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise Mistake(f"{name}.json is no JSON: {error}") from error
    built: Kind = _built(kind, tree, name)
    return built


def identity(run: Run) -> str:
    """Hash of what decides the run's result: 16 hexadecimal digits."""
    text = json.dumps(_deciding(run), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _deciding(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        decides = (f for f in dataclasses.fields(value) if f.metadata.get("identity", True))
        return {f.name: _deciding(getattr(value, f.name)) for f in decides}
    return [_deciding(item) for item in value] if isinstance(value, tuple) else value


def _changed(cfg: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(type(cfg))
    new = {}
    for name, value in changes.items():
        old = getattr(cfg, name)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            new[name] = _changed(old, value, f"{prefix}{name}.")
        else:
            new[name] = _built(hints[name], value, prefix + name)
    return dataclasses.replace(cfg, **new)


def _built(kind: Any, value: Any, name: str) -> Any:
    """`value`, as JSON or Python has it, as an instance of the annotation `kind`."""
    if dataclasses.is_dataclass(kind) and type(value) is not kind:
        return _built_dataclass(kind, value, name)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        _rule(name, repr(value), value in options, f"must be one of {', '.join(map(str, options))}")
        return value
    if origin is tuple:
        _rule(name, repr(value), isinstance(value, list | tuple), "must be a list")
        return tuple(_built(options[0], item, name) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    _rule(name, repr(value), type(value) is kind, f"must be of type {kind.__name__}")
    return value


def _built_dataclass(kind: Any, value: Any, name: str) -> Any:
    _rule(name, repr(value)[:40], isinstance(value, Mapping), "must be an object of fields")
    hints = typing.get_type_hints(kind)
    for key in value:
        near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
        _rule(f"{name}.{key}", "…", key in hints, f"is no field: did you mean {near[0]}?")
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.name not in value
    ]
    _rule(name, repr(value)[:40], not missing, f"lacks {', '.join(missing)}")
    return kind(**{key: _built(hints[key], item, f"{name}.{key}") for key, item in value.items()})
