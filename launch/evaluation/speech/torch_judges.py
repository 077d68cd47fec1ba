"""The judges that need torch, in a process of their own: `python -m` this, and a judge's name.

Lines of JSON go in and out. The first line out is {"by": package and version}, or {"missing": why}
and then the end. Each line in, {"wave": …} and for similarity {"voice": …}, float32 samples of 16
kHz in base 64, is answered by {"value": …}, or by {"error": why} where that sound cannot be judged.
Whatever the packages print goes to standard error. Imports nothing of this project.
"""

import base64
from collections.abc import Callable, Mapping
import functools
import importlib.metadata
import json
import os
import sys
import types
from typing import Any

import numpy as np

RATE = 16_000  # Hz
Judge = Callable[[Mapping[str, str]], float]


def load_mos() -> Judge:
    """DistillMOS: the mean opinion score, 1 to 5 (Stahl and Gamper 2025, 2502.05356).

    It imports torchaudio, which it needs for files alone and which does not load beside every
    torch: an empty module stands for it, and is gone before another package looks for it.
    """
    import torch

    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    import distillmos

    del sys.modules["torchaudio"]
    model = distillmos.ConvTransformerSQAModel().eval()

    def judge(request: Mapping[str, str]) -> float:
        with torch.inference_mode():
            return float(model(torch.from_numpy(_samples(request["wave"]))[None]).item())

    return judge


def load_similarity() -> Judge:
    """Resemblyzer: the cosine of two voices, of unit vectors without negative numbers: 0 to 1.

    Its encoder is trained by the loss of Wan et al. 2018 (1710.10467); pauses are left out.
    """
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)

    @functools.lru_cache(maxsize=16)  # many files are held against one voice
    def embed(sound: str) -> Any:
        spoken = preprocess_wav(_samples(sound), source_sr=RATE)
        if not spoken.size:
            raise ValueError("no voice is heard in it")
        return encoder.embed_utterance(spoken)

    return lambda request: float(embed(request["wave"]) @ embed(request["voice"]))


JUDGES: Mapping[str, tuple[str, Callable[[], Judge]]] = {  # distribution, and what loads it
    "mos": ("distillmos", load_mos),
    "similarity": ("Resemblyzer", load_similarity),
}


def main(name: str) -> int:
    """Answers every line of standard input as the judge `name`, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print is no answer
    say = lambda answer: print(json.dumps(answer), file=answers, flush=True)
    package, load = JUDGES[name]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        say({"missing": f"{package} is not installed"})
        return 0
    say({"by": f"{package} {version}"})
    judge: Judge | None = None  # loaded once there is something to judge
    for line in sys.stdin:
        judge = judge or load()
        try:
            value = judge(json.loads(line))
        except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:  # of this sound
            say({"error": next(iter(str(error).splitlines()), repr(error))})
            continue
        say({"value": value} if np.isfinite(value) else {"error": f"the score is {value}"})
    return 0


def _samples(sound: str) -> Any:
    """Samples of base 64, which torch may write to."""
    return np.frombuffer(base64.b64decode(sound), np.float32).copy()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
