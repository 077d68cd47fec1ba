"""Presets that speak: words in, mel patches out, by the next-token VAE."""

from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.model import Model
from melllm_jax.config.run import CheckpointIntervals, Optim, Run
from melllm_jax.config.speech_output import SpeechLoss


def tts() -> Run:
    """Letters read aloud by a small decoder: one voice, hours of two CPU cores.

    10 M parameters, patches of four frames, 25 a second; bytes are its tokens, so that it has a
    letter for any text.

    melllm data speak SPEECH --text TEXT --voices natural --clean --train 6000
    melllm train tts --data SPEECH --workdir runs/tts
    """
    return Run(
        name="tts",
        model=Model(
            d=256,
            n=8,
            k=8,
            h=32,
            f=1024,
            l=8,
            v=320,
            front="none",
            writes="speech",
            remat="none",
            scan=False,
        ),
        mel=Mel(kind="phi4", r=4, normalize="global"),
        data=Data(t=512, b=4, wire="float32"),
        optim=Optim(
            steps=20_000, lr=1e-3, warmup=500, weight_decay=0.01, b2=0.98, compute="float32"
        ),
        speech_loss=SpeechLoss(kl_after=500),
        checkpoints=CheckpointIntervals(every=500),
    )
