"""The smallest run of a vocoder, and batches of crops written out."""

import numpy as np

from melllm_jax.batch import Batch
from melllm_jax.config.data import Data, Source
from melllm_jax.config.features import Mel
from melllm_jax.config.overrides import override
from melllm_jax.config.run import CheckpointIntervals, Optim
from melllm_jax.config.vocoder import Vocos
from melllm_jax.config.vocoder_run import Adversarial, Vocoder, VocoderRun

# Of one kind: those of resolutions have 25 convolutions, which take a minute to compile.
JUDGES = Adversarial(
    loss="least_squares",
    periods=(3,),
    period_channels=(4, 4),
    resolutions=(),
    resolution_channels=2,
)


def vocoder_run(*folders, **changes):
    """A run of six updates on crops of eight frames; `changes` are dotted fields."""
    run = VocoderRun(
        name="test",
        vocoder=Vocoder(kind="vocos", vocos=Vocos(d=8, f=16, l=1, n_fft=320, hop=160)),
        adversarial=JUDGES,
        data=Data(
            t=8,
            b=8,
            sources=tuple(Source(str(folder)) for folder in folders),
            wire="float32",
            bins=2,
            threads=1,
            ahead=1,
            max_reject_share=0.9,
        ),
        optim=Optim(steps=6, lr=1e-3, warmup=1, clip=0.0, compute="float32"),
        mel=Mel(kind="plain", m=8, r=1, normalize="none"),
        checkpoints=CheckpointIntervals(every=2),
    )
    return override(run, changes)


def crops(run, real=None, seed=0):
    """A batch of noise; of each row the first `real` frames have sound, or all."""
    b, t = run.data.b, run.data.t
    real = [t] * b if real is None else real
    frames = (np.arange(t) < np.array(real)[:, None]).astype(np.int32)
    sound = np.random.default_rng(seed).normal(0, 0.1, (b, t, run.patch_width))
    places = np.broadcast_to(np.arange(t, dtype=np.int32), (b, t))
    return Batch(
        tokens=np.zeros((b, t), np.int32),
        patches=(sound * frames[..., None]).astype(np.float32),
        frames=frames,
        clips=frames,
        segments=np.ones((b, t), np.int32),
        positions=places,
        loss_weight=frames.astype(np.float32),
        sources=np.zeros((b, t), np.int32),
    )
