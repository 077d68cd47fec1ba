"""Named runs. Each says what it costs, what comes of it, and the command."""

from collections.abc import Callable, Mapping
import difflib
import types

from melllm_jax.config import Data, Keep, Mel, Model, Optim, Run
from melllm_jax.errors import Mistake


def quickstart() -> Run:
    """Synthetic sentences of 66 words by 273 voices: what `melllm quickstart` trains.

    2 M parameters, 12.5 Hz linear patches, whole words as tokens. Two minutes of training on two
    cores; word error rate 6.6 % on sentences and voices that it never met.

    melllm quickstart
    """
    return Run(
        name="quickstart",
        model=_small(v=128),
        mel=Mel(kind="phi4", r=8, normalize="utterance"),
        data=Data(t=128, b=8, wire="float32", shift=7),
        optim=Optim(steps=600, lr=2e-3, kind="muon", warmup=50, compute="float32"),
        keep=Keep(every=200, score=100),
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
        model=_small(v=320),
        mel=Mel(kind="phi4", r=8, normalize="utterance"),
        data=Data(
            t=128,
            b=8,
            wire="float32",
            shift=7,
            time_masks=2,
            time_width=10,
            band_masks=2,
            band_width=15,
        ),
        optim=Optim(steps=800, lr=2e-3, kind="muon", warmup=50, compute="float32"),
        keep=Keep(every=200),
    )


def _small(v: int) -> Model:
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


PRESETS: Mapping[str, Callable[[], Run]] = types.MappingProxyType(
    {"quickstart": quickstart, "digits": digits}
)


def preset(name: str) -> Run:
    """The run of that name. Raises Mistake for an unknown one, with the nearest."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise Mistake(f"preset={name}: is none of {', '.join(PRESETS)}; did you mean {near[0]}?")
    return PRESETS[name]()
