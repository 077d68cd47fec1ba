"""Named runs. Each says what it costs, what comes of it, and the command."""

from collections.abc import Callable, Mapping
import difflib
import types

from melllm_jax.config import Data, Keep, Mel, Model, Optim, Run
from melllm_jax.errors import Mistake


def digits() -> Run:
    """Spoken digits, Free Spoken Digit Dataset.

    melllm train digits --data FSDD --workdir runs/digits
    """
    return Run(
        name="digits",
        model=Model(
            d=192,
            n=6,
            k=2,
            h=32,
            f=512,
            l=4,
            v=320,
            c=48,
            speech="bidirectional",
            remat="none",
            scan=False,
        ),
        mel=Mel(kind="phi4", r=8, normalize="utterance"),
        data=Data(
            t=256, b=8, wire="float32", time_masks=1, time_width=10, band_masks=2, band_width=12
        ),
        optim=Optim(steps=1500, lr=2e-3, kind="adamw", warmup=100, compute="float32"),
        keep=Keep(every=500),
    )


PRESETS: Mapping[str, Callable[[], Run]] = types.MappingProxyType({"digits": digits})


def preset(name: str) -> Run:
    """The run of that name. Raises Mistake for an unknown one, with the nearest."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise Mistake(f"preset={name}: is none of {', '.join(PRESETS)}; did you mean {near[0]}?")
    return PRESETS[name]()
