"""Presets that speak: words in, mel patches out, by the next-token VAE."""

import dataclasses

from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Model
from melllm_jax.config.run import CheckpointIntervals, Optim, Run
from melllm_jax.config.speech_output import MelHead, SpeechLoss
from melllm_jax.presets.mel_llm import mel_llm_asr
from melllm_jax.presets.phi_sizes import PHI_4_MINI


def tts() -> Run:
    """Letters read aloud by a small decoder: one voice, hours of two CPU cores.

    9 M parameters; MELLE's mel, in patches of four frames, 15.6 a second, which `vocoder` reads as
    well; bytes are its tokens, so that it has a letter for any text.

    melllm data speak SPEECH --text TEXT --voices natural --clean --train 6000
    melllm train tts --data SPEECH --workdir runs/tts
    melllm train vocoder --data SPEECH --workdir runs/vocoder
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
            mel_head=MelHead(channels=128),  # 256 would take as long as the decoder
            remat="none",
            scan=False,
        ),
        mel=Mel(kind="speecht5", r=4, normalize="global", floor=-5.0),
        data=Data(t=512, b=4, wire="float32"),
        optim=Optim(
            steps=20_000, lr=1e-3, warmup=500, weight_decay=0.01, b2=0.98, compute="float32"
        ),
        speech_loss=SpeechLoss(kl_after=500),
        checkpoints=CheckpointIntervals(every=500),
    )


def quickstart_tts() -> Run:
    """The sentences of quickstart's 66 words in one voice of espeak-ng, read aloud.

    2.5 M parameters, whole words as tokens, patches of eight frames: what `melllm quickstart
    --speech` trains. The flux term, at its published weight, hides the text from so short a run.

    melllm quickstart --speech
    """
    run = tts()
    return dataclasses.replace(
        run,
        name="quickstart_tts",
        model=dataclasses.replace(
            run.model,
            d=192,
            n=6,
            k=6,
            f=512,
            l=4,
            v=128,
            mel_head=MelHead(channels=64),
        ),
        mel=dataclasses.replace(run.mel, r=8),
        data=Data(t=128, b=8, wire="float32"),
        optim=dataclasses.replace(run.optim, steps=1500, lr=2e-3, warmup=100, schedule="linear"),
        speech_loss=SpeechLoss(kl_after=200, flux=0.0),
        checkpoints=CheckpointIntervals(every=200),
    )


def mel_llm_tts() -> Run:
    """Mel-LLM's speech synthesis: Phi-4-mini reads words and writes mel, all of it trained.

    Libriheavy's 50,000 h in 5 epochs (arXiv 2606.10231), of which a batch of 64 rows of 2,048
    positions holds some 1.4 h at 25 positions a second: 180,000 updates. Expected there: WER
    11.03 % and UTMOS 3.10 without normalisation, 14.75 % and 3.25 with it. Frame rate, batch and
    learning rate are not published; these are ours. Not trained here.

    melllm convert import microsoft/Phi-4-mini-instruct PHI
    melllm train mel_llm_tts --init PHI --data LIBRIHEAVY --workdir runs/mel-llm-tts
    """
    return Run(
        name="mel_llm_tts",
        model=dataclasses.replace(PHI_4_MINI, writes="speech"),
        mel=Mel(kind="phi4", r=4, normalize="none"),
        text=Text(template="phi4"),
        data=Data(t=2048, b=64),
        optim=Optim(
            steps=180_000,
            lr=1e-4,
            schedule="linear",
            warmup=9_000,
            final=0.0,
            b2=0.999,
            weight_decay=0.01,
        ),
        checkpoints=CheckpointIntervals(every=1000, milestone=10_000),
    )


def mel_llm_unified() -> Run:
    """One model that listens and speaks: `mel_llm_asr` with a mel head, 12.5 positions a second.

    What is heard and what is spoken are sources of one mixture; the prompt says which is asked.
    Batch, rates and shares are ours. Not trained here.

    melllm train mel_llm_unified --init PHI --data A=1:asr --data A=1:tts --workdir runs/unified
    """
    run = mel_llm_asr()
    return dataclasses.replace(
        run, name="mel_llm_unified", model=dataclasses.replace(run.model, writes="speech")
    )
