"""Mel-LLM's speech recogniser on Phi-4 and Phi-4-mini, and its runs on pods of TPUs and GPUs.

Each preset says what it costs, what comes of it, and the command.
"""

import dataclasses

from melllm_jax.config.data import Data
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Lora
from melllm_jax.config.run import CheckpointIntervals, Mesh, Optim, Run
from melllm_jax.presets.phi_sizes import PHI_4, PHI_4_MINI


def mel_llm_asr() -> Run:
    """Mel-LLM's speech recogniser: Phi-4-multimodal without its encoder, LoRA and stem trained.

    The recipe of arXiv 2606.10231: the LLM frozen in bfloat16, LoRA of rank 320 and the conv stem
    trained by AdamW at 1e-4, 9,000 updates of warm-up, then a linear fall. Some 64,000 h of public
    English in 3 epochs: a batch of 64 rows of 2,048 positions holds about 500 utterances, so
    110,000 updates; 16 H100 in the paper. Expected there: 7.12 % WER, mean of the classic 8 sets of
    the Open ASR Leaderboard. Not trained here. 3.8 B weights of 7.7 GB are frozen, 0.49 B trained.

    melllm convert import microsoft/Phi-4-multimodal-instruct PHI
    melllm train mel_llm_asr --init PHI --data LIBRISPEECH … --workdir runs/mel-llm
    """
    return Run(
        name="mel_llm_asr",
        model=dataclasses.replace(PHI_4_MINI, front="conv"),
        mel=Mel(kind="phi4", r=8, normalize="none"),  # the stem subtracts the corpus mean
        text=Text(template="phi4"),
        lora=Lora(r=320, alpha=640.0, dropout=0.01),
        data=Data(t=2048, b=64),
        optim=Optim(
            steps=110_000,
            lr=1e-4,
            schedule="linear",
            warmup=9_000,
            final=0.0,
            b2=0.999,
            weight_decay=0.01,
            train="lora",
        ),
        checkpoints=CheckpointIntervals(every=1000, milestone=10_000),
    )


def mel_llm_asr_v5e_256() -> Run:
    """`mel_llm_asr` on 256 chips of v5e.

    Planned, all estimates but memory: 13.3 of 16 GiB a chip; 0.51 s an update if
    all hides behind its products, 0.90 s if nothing does, which allows an MFU of
    85 and 48 %; 378 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_v5e_256
    """
    return _on_pod(
        "mel_llm_asr_v5e_256", mel_llm_asr(), Mesh(topology="v5e:16x16", replica=2, fsdp=128), b=256
    )


def mel_llm_asr_v5p_128() -> Run:
    """`mel_llm_asr` on 64 chips (128 cores) of v5p.

    Planned, all estimates but memory: 21.3 of 95 GiB a chip; 0.43 s an update if
    all hides behind its products, 0.69 s if nothing does, which allows an MFU of
    85 and 54 %; 162 chip-hours at best for 21,000 updates.

    melllm plan mel_llm_asr_v5p_128
    """
    return _on_pod(
        "mel_llm_asr_v5p_128", mel_llm_asr(), Mesh(topology="v5p:4x4x4", replica=2, fsdp=32), b=128
    )


def mel_llm_asr_v6e_256() -> Run:
    """`mel_llm_asr` on 256 chips of v6e.

    Planned, all estimates but memory: 13.3 of 32 GiB a chip; 0.15 s an update if
    all hides behind its memory, 0.32 s if nothing does, which allows an MFU of
    63 and 29 %; 109 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_v6e_256
    """
    return _on_pod(
        "mel_llm_asr_v6e_256", mel_llm_asr(), Mesh(topology="v6e:16x16", replica=2, fsdp=128), b=256
    )


def mel_llm_asr_h100_64() -> Run:
    """`mel_llm_asr` on 64 H100 in eight servers.

    Planned, all estimates but memory: 23.4 of 80 GiB a chip; 0.19 s an update if
    all hides behind its products, 0.42 s if nothing does, which allows an MFU of
    88 and 40 %; 72 chip-hours at best for 21,000 updates.

    melllm plan mel_llm_asr_h100_64
    """
    return _on_pod("mel_llm_asr_h100_64", mel_llm_asr(), Mesh(topology="h100:8x8", fsdp=64), b=128)


def mel_llm_asr_full_v5e_256() -> Run:
    """All weights of `mel_llm_asr` trained on 256 chips of v5e.

    Planned, all estimates but memory: 9.0 of 16 GiB a chip; 0.60 s an update if
    all hides behind its products, 1.04 s if nothing does, which allows an MFU of
    89 and 51 %; 448 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_full_v5e_256
    """
    return _on_pod(
        "mel_llm_asr_full_v5e_256",
        _full_finetune(),
        Mesh(topology="v5e:16x16", replica=2, fsdp=128),
        b=256,
    )


def mel_llm_asr_full_v5p_128() -> Run:
    """All weights of `mel_llm_asr` trained on 64 chips (128 cores) of v5p.

    Planned, all estimates but memory: 18.4 of 95 GiB a chip; 0.52 s an update if
    all hides behind its products, 0.76 s if nothing does, which allows an MFU of
    89 and 60 %; 192 chip-hours at best for 21,000 updates.

    melllm plan mel_llm_asr_full_v5p_128
    """
    return _on_pod(
        "mel_llm_asr_full_v5p_128",
        _full_finetune(),
        Mesh(topology="v5p:4x4x4", replica=2, fsdp=32),
        b=128,
    )


def mel_llm_asr_full_v6e_256() -> Run:
    """All weights of `mel_llm_asr` trained on 256 chips of v6e.

    Planned, all estimates but memory: 9.2 of 32 GiB a chip; 0.15 s an update if
    all hides behind its memory, 0.37 s if nothing does, which allows an MFU of
    77 and 31 %; 110 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_full_v6e_256
    """
    return _on_pod(
        "mel_llm_asr_full_v6e_256",
        _full_finetune(),
        Mesh(topology="v6e:16x16", replica=2, fsdp=128),
        b=256,
    )


def mel_llm_asr_full_h100_64() -> Run:
    """All weights of `mel_llm_asr` trained on 64 H100 in eight servers.

    Planned, all estimates but memory: 18.9 of 80 GiB a chip; 0.23 s an update if
    all hides behind its products, 0.44 s if nothing does, which allows an MFU of
    91 and 48 %; 87 chip-hours at best for 21,000 updates.

    melllm plan mel_llm_asr_full_h100_64
    """
    return _on_pod(
        "mel_llm_asr_full_h100_64", _full_finetune(), Mesh(topology="h100:8x8", fsdp=64), b=128
    )


def mel_llm_asr_14b_v5p_512() -> Run:
    """Phi-4 of 14 B weights, all trained, on two slices of 128 chips (256 cores) of v5p.

    Planned, all estimates but memory: 22.0 of 95 GiB a chip; 0.85 s an update if
    all hides behind its products, 1.44 s if nothing does, which allows an MFU of
    95 and 56 %; 633 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_14b_v5p_512
    """
    run = _full_finetune()
    model = dataclasses.replace(PHI_4, front="conv")
    run = dataclasses.replace(run, model=model, text=Text(template="plain"))
    return _on_pod(
        "mel_llm_asr_14b_v5p_512",
        run,
        Mesh(topology="v5p:4x4x8", slices=2, replica=2, fsdp=128),
        b=256,
    )


def _on_pod(name: str, run: Run, mesh: Mesh, b: int) -> Run:
    """`run` for a pod: rows of 4,096 positions, and as many updates as three epochs ask for.

    64,000 h three times are 1.1e10 positions, some of them text and some padding.
    """
    data = dataclasses.replace(run.data, t=4096, b=b, lanes=64)  # as many hosts, or fewer
    steps = round(1.1e10 / (data.t * b), -2)  # to the nearest hundred
    optim = dataclasses.replace(run.optim, steps=int(steps), warmup=int(steps) // 10)
    return dataclasses.replace(
        run,
        name=name,
        model=dataclasses.replace(
            run.model, remat="named", kept=("qkv", "attended", "out", "gate_up")
        ),
        data=data,
        optim=optim,
        mesh=mesh,
    )


def _full_finetune() -> Run:
    """`mel_llm_asr` without LoRA: every weight trains, at a lower rate."""
    run = mel_llm_asr()
    optim = dataclasses.replace(run.optim, train="all", lr=4e-5, b2=0.95)
    return dataclasses.replace(run, lora=Lora(), optim=optim)
