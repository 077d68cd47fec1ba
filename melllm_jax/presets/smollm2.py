"""SmolLM2-135M taught to hear: the same questions as of the large models, on a CPU in an hour."""

import dataclasses

from melllm_jax.config.data import Data
from melllm_jax.config.distillation import Distill
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Lora, Model, Rope
from melllm_jax.config.run import CheckpointIntervals, Optim, Run

SMOLLM2_135M = Model(
    d=576,
    n=9,
    k=3,
    h=64,
    f=1536,
    l=30,
    v=49_152,
    rope=Rope(theta=100_000.0, original=8192, longest=8192),
    front="linear",
    family="llama",
    remat="none",  # 2 rows of 384 positions: 3 GB in all
)


def smollm2_asr() -> Run:
    """SmolLM2-135M-Instruct with LoRA and a linear front end on Whisper's log-mel.

    The model is Allal et al. 2025 (arXiv 2502.02737). An update holds some 6 utterances of 5 s; 600
    take about an hour on two cores, which is no more than a beginning: see docs/results.md.

    melllm convert import HuggingFaceTB/SmolLM2-135M-Instruct SMOLLM2
    melllm data speak SPEECH --text TEXT --voices both --train 8000
    melllm train smollm2_asr --init SMOLLM2 --data SPEECH --workdir runs/smollm2
    """
    return Run(
        name="smollm2_asr",
        model=SMOLLM2_135M,
        mel=Mel(kind="whisper", r=8, normalize="none"),
        text=Text(template="chat", instruction="Transcribe."),
        lora=Lora(r=32, alpha=64.0),
        data=Data(t=384, b=2),
        optim=Optim(
            steps=600,
            lr=1e-3,
            schedule="linear",
            warmup=30,
            final=0.0,
            weight_decay=0.01,
            train="lora",
            compute="float32",
        ),
        checkpoints=CheckpointIntervals(every=100),
    )


def aura_smollm2() -> Run:
    """`smollm2_asr` that learns from Whisper tiny.en's encoder, whose four layers lead eight.

    melllm convert import openai/whisper-tiny.en WHISPER
    melllm train aura_smollm2 --init SMOLLM2 --teacher WHISPER --data SPEECH --workdir runs/aura
    """
    teacher = Distill(teacher="whisper", depth=8, windows=8)
    return dataclasses.replace(smollm2_asr(), name="aura_smollm2", distill=teacher)
