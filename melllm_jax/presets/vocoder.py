"""Vocoders trained from sound: the two published ones at their sizes, and one for two cores."""

import dataclasses

from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel
from melllm_jax.config.run import CheckpointIntervals, Optim
from melllm_jax.config.vocoder import HifiGan, Vocos
from melllm_jax.config.vocoder_run import Adversarial, Vocoder, VocoderRun


def vocoder() -> VocoderRun:
    """A Vocos for two cores, of the mel that transformers' SpeechT5 speaks.

    2.8 M weights; an update of 8 crops of 0.5 s takes 0.6 s on one core, a third of it the
    vocoder's own. After 900 updates, 11 minutes, the mel of what it makes of held-out crops is 0.67
    (natural log of magnitude) from theirs; random weights are 2.28 off (both without the floor).

    melllm train vocoder --data SPEECH --workdir runs/vocoder
    """
    return VocoderRun(
        name="vocoder",
        vocoder=Vocoder(kind="vocos", vocos=Vocos(d=256, f=768, l=6)),
        adversarial=Adversarial(
            period_channels=(8, 16, 32, 64, 64),
            resolutions=(512,),
            resolution_channels=4,
        ),
        mel=Mel(kind="speecht5", r=1, normalize="none", floor=-5.0),
        data=Data(t=32, b=8, wire="float32"),
        optim=Optim(
            steps=20_000,
            lr=1e-3,
            warmup=100,
            b1=0.8,
            b2=0.9,
            weight_decay=0.01,
            clip=0.0,
            compute="float32",
        ),
        checkpoints=CheckpointIntervals(every=500),
    )


def quickstart_vocoder() -> VocoderRun:
    """`vocoder` for one voice of espeak-ng, in minutes: what `melllm quickstart --speech` trains.

    melllm quickstart --speech
    """
    run = vocoder()
    return dataclasses.replace(
        run,
        name="quickstart_vocoder",
        optim=dataclasses.replace(run.optim, steps=400, warmup=50),
        checkpoints=CheckpointIntervals(every=100),
    )


def vocoder_vocos() -> VocoderRun:
    """Vocos at its published size on 24 kHz sound (arXiv 2306.00814). Not trained here.

    13.5 M weights and 100 mel bands; 16 crops of 0.68 s an update, AdamW at 5e-4 falling by a
    cosine to 0 over 1 M updates.

    melllm train vocoder_vocos --data LIBRITTS --workdir runs/vocos
    """
    return VocoderRun(
        name="vocoder_vocos",
        vocoder=Vocoder(kind="vocos"),
        adversarial=Adversarial(),
        mel=Mel(kind="vocos", m=100, r=1, normalize="none"),
        data=Data(t=64, b=16, wire="float32"),
        optim=Optim(
            steps=1_000_000,
            lr=5e-4,
            warmup=0,
            final=0.0,
            b1=0.8,
            b2=0.9,
            weight_decay=0.01,
            clip=0.0,
            compute="float32",
        ),
        checkpoints=CheckpointIntervals(every=5000, milestone=100_000),
    )


def vocoder_hifi_gan() -> VocoderRun:
    """HiFi-GAN V1's widths for SpeechT5's mel of 16 kHz sound (arXiv 2010.05646). Not trained here.

    The layout of transformers' SpeechT5HifiGan, without statistics. Discriminators of resolutions
    stand where HiFi-GAN has those of scales, as UnivNet and BigVGAN have them.

    melllm train vocoder_hifi_gan --data LIBRITTS --workdir runs/hifi-gan
    """
    return VocoderRun(
        name="vocoder_hifi_gan",
        vocoder=Vocoder(kind="hifi_gan", hifi_gan=HifiGan(normalize=False)),
        adversarial=Adversarial(
            loss="least_squares", feature=2.0, period_weight=5.0, resolution_weight=3.0
        ),
        mel=Mel(kind="speecht5", r=1, normalize="none"),
        data=Data(t=32, b=16, wire="float32"),
        optim=Optim(
            steps=1_000_000,
            lr=2e-4,
            warmup=0,
            b1=0.8,
            b2=0.99,
            weight_decay=0.01,
            clip=0.0,
            compute="float32",
        ),
        checkpoints=CheckpointIntervals(every=5000, milestone=100_000),
    )
