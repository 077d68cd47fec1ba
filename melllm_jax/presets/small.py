"""Presets that train in minutes on two CPU cores: synthetic sentences and spoken digits."""

from melllm_jax.config.data import Augment, Data
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.config.run import CheckpointIntervals, Optim, Run, ScoreInterval


def quickstart() -> Run:
    """Synthetic sentences of 66 words by 273 voices: what `melllm quickstart` trains.

    2 M parameters, 12.5 Hz linear patches, whole words as tokens. Two minutes of training on two
    cores; word error rate 7.0 % on sentences and voices that it never met.

    melllm quickstart
    """
    return Run(
        name="quickstart",
        model=_small_model(v=128),
        mel=Mel(kind="phi4", r=8, normalize="utterance"),
        data=Data(t=128, b=8, wire="float32", augment=Augment(shift=7)),
        optim=Optim(steps=600, lr=2e-3, kind="muon", warmup=50, compute="float32"),
        checkpoints=CheckpointIntervals(every=200),
        scoring=ScoreInterval(every=100),
    )


def digits() -> Run:
    """Spoken digits: the Free Spoken Digit Dataset, 2,700 recordings of six speakers.

    Word error rate on its official test split: 3.0 % in under four minutes on two cores, and 4.7 %
    by the conv front end after six.

    melllm train digits --data FSDD --workdir runs/digits
    melllm train digits --data FSDD --workdir runs/digits-conv --model.front conv
    """
    return Run(
        name="digits",
        model=_small_model(v=320),
        mel=Mel(kind="phi4", r=8, normalize="utterance"),
        data=Data(
            t=128,
            b=8,
            wire="float32",
            augment=Augment(mask=1.0, time_width=10, time_share=0.2, band_width=15, shift=7),
        ),
        optim=Optim(steps=800, lr=2e-3, kind="muon", warmup=50, compute="float32"),
        checkpoints=CheckpointIntervals(every=200),
    )


def _small_model(v: int) -> Model:
    """A decoder that trains in minutes on two cores; unrolled, since a CPU gains by it."""
    return Model(
        d=192,
        n=6,
        k=2,
        h=32,
        f=512,
        l=4,
        v=v,
        c=32,
        speech="bidirectional",
        remat="none",
        scan=False,
    )
