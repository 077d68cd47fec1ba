"""The corpora of a run, how they are mixed and packed into batches, and how they are augmented.

Plain data, no JAX.
"""

import dataclasses
import math
from typing import Literal

from melllm_jax.config.validation import LATER, WHERE, require

SourceUse = Literal["auto", "asr", "tts", "text"]


@dataclasses.dataclass(frozen=True)
class Source:
    """One corpus in the mixture."""

    path: str = dataclasses.field(metadata=WHERE)  # folder of shards or of SPLIT.jsonl manifests
    weight: float = 1.0  # share of the examples drawn, relative to the other sources
    digest: str = ""  # content hash of its train split, filled in when a run starts
    hours: float = 0.0  # of sound: a subset, the same on every machine, in every larger one; 0: all
    # What an utterance teaches. asr: its sound is heard, its words are written; tts: its words are
    # read, its sound is spoken; text: its words alone. auto: the first of these that the model can.
    use: SourceUse = dataclasses.field(default="auto", metadata=LATER)

    def __post_init__(self) -> None:
        require("data.sources.weight", self.weight, self.weight > 0, "must be positive")
        require("data.sources.hours", self.hours, 0 <= self.hours < math.inf, "must be 0 or more")


@dataclasses.dataclass(frozen=True)
class Sounds:
    """A corpus of which the sound alone is used: noises, or impulse responses of rooms."""

    path: str = dataclasses.field(default="", metadata=WHERE)  # folder of shards or of manifests
    split: str = "train"  # the one that is drawn from
    digest: str = ""  # content hash of that split, filled in when a run starts


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augmentation of training examples, in this order; by default none.

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
            require(f"data.augment.{name}", share, 0 <= share <= 1, "must lie in [0, 1]")
        for name in ("time_masks", "time_width", "band_masks", "band_width", "shift", "warp_width"):
            count = getattr(self, name)
            require(f"data.augment.{name}", count, count >= 0, "must be 0 or more")
        near = bool(self.speeds) and all(0.5 <= speed <= 2 for speed in self.speeds)
        require("data.augment.speeds", self.speeds, near, "needs factors from 0.5 to 2")
        finite = bool(self.snrs) and all(map(math.isfinite, self.snrs))
        require("data.augment.snrs", self.snrs, finite, "needs one ratio in dB at least")
        ordered = 0 < self.quietest <= self.loudest < math.inf
        require("data.augment.quietest", self.quietest, ordered, f"must lie in (0, {self.loudest}]")
        for name, sounds in (("reverb", "rooms"), ("noise", "noises")):
            given = not getattr(self, name) or bool(getattr(self, sounds).path)
            rule = f"needs a corpus: give data.augment.{sounds}.path"
            require(f"data.augment.{name}", getattr(self, name), given, rule)

    @property
    def waveform_fields(self) -> tuple[str, ...]:
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
    bins: int = 8  # rows that the packer of a lane fills side by side
    max_reject_share: float = 0.01  # share of unusable examples that stops the run
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
            require(
                f"data.{name}", getattr(self, name), getattr(self, name) > 0, "must be positive"
            )
        require("data.lanes", self.lanes, self.lanes >= 0, "must be 0 or more")
        whole = self.b % self.lane_count == 0
        require("data.lanes", self.lanes, whole, f"does not divide data.b={self.b}")
        require("data.workers", self.workers, self.workers >= 0, "must be 0 or more")
        share = self.max_reject_share
        require("data.max_reject_share", share, 0 <= share <= 1, "must lie in [0, 1]")
        require("data.temperature", self.temperature, self.temperature >= 0, "must be 0 or more")
        require("data.epochs", self.epochs, self.epochs >= 0, "must be 0 or more")

    @property
    def lane_count(self) -> int:
        """How many lanes there are."""
        return self.lanes or math.gcd(self.b, 8)
