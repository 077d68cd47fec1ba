"""Named runs. Each says what it costs, what comes of it, and the command."""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import functools
import types

from melllm_jax import ladder
from melllm_jax.config import Augment, Data, Keep, Lora, Mel, Mesh, Model, Optim, Rope, Run, Text
from melllm_jax.errors import Mistake


def quickstart() -> Run:
    """Synthetic sentences of 66 words by 273 voices: what `melllm quickstart` trains.

    2 M parameters, 12.5 Hz linear patches, whole words as tokens. Two minutes of training on two
    cores; word error rate 7.0 % on sentences and voices that it never met.

    melllm quickstart
    """
    return Run(
        name="quickstart",
        model=_small(v=128),
        mel=Mel(kind="phi4", r=8, normalize="utterance"),
        data=Data(t=128, b=8, wire="float32", augment=Augment(shift=7)),
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
            augment=Augment(mask=1.0, time_width=10, time_share=0.2, band_width=15, shift=7),
        ),
        optim=Optim(steps=800, lr=2e-3, kind="muon", warmup=50, compute="float32"),
        keep=Keep(every=200),
    )


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
        keep=Keep(every=1000, milestone=10_000),
    )


def mel_llm_asr_v5e_256() -> Run:
    """`mel_llm_asr` on 256 chips of v5e.

    Planned, all estimates but memory: 13.3 of 16 GiB a chip; 0.51 s an update if
    all hides behind its products, 0.90 s if nothing does, which allows an MFU of
    85 and 48 %; 378 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_v5e_256
    """
    return _on(
        "mel_llm_asr_v5e_256", mel_llm_asr(), Mesh(topology="v5e:16x16", replica=2, fsdp=128), b=256
    )


def mel_llm_asr_v5p_128() -> Run:
    """`mel_llm_asr` on 64 chips (128 cores) of v5p.

    Planned, all estimates but memory: 21.3 of 95 GiB a chip; 0.43 s an update if
    all hides behind its products, 0.69 s if nothing does, which allows an MFU of
    85 and 54 %; 162 chip-hours at best for 21,000 updates.

    melllm plan mel_llm_asr_v5p_128
    """
    return _on(
        "mel_llm_asr_v5p_128", mel_llm_asr(), Mesh(topology="v5p:4x4x4", replica=2, fsdp=32), b=128
    )


def mel_llm_asr_v6e_256() -> Run:
    """`mel_llm_asr` on 256 chips of v6e.

    Planned, all estimates but memory: 13.3 of 32 GiB a chip; 0.15 s an update if
    all hides behind its memory, 0.32 s if nothing does, which allows an MFU of
    63 and 29 %; 109 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_v6e_256
    """
    return _on(
        "mel_llm_asr_v6e_256", mel_llm_asr(), Mesh(topology="v6e:16x16", replica=2, fsdp=128), b=256
    )


def mel_llm_asr_h100_64() -> Run:
    """`mel_llm_asr` on 64 H100 in eight servers.

    Planned, all estimates but memory: 23.4 of 80 GiB a chip; 0.19 s an update if
    all hides behind its products, 0.42 s if nothing does, which allows an MFU of
    88 and 40 %; 72 chip-hours at best for 21,000 updates.

    melllm plan mel_llm_asr_h100_64
    """
    return _on("mel_llm_asr_h100_64", mel_llm_asr(), Mesh(topology="h100:8x8", fsdp=64), b=128)


def mel_llm_asr_full_v5e_256() -> Run:
    """All weights of `mel_llm_asr` trained on 256 chips of v5e.

    Planned, all estimates but memory: 9.0 of 16 GiB a chip; 0.60 s an update if
    all hides behind its products, 1.04 s if nothing does, which allows an MFU of
    89 and 51 %; 448 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_full_v5e_256
    """
    return _on(
        "mel_llm_asr_full_v5e_256", _full(), Mesh(topology="v5e:16x16", replica=2, fsdp=128), b=256
    )


def mel_llm_asr_full_v5p_128() -> Run:
    """All weights of `mel_llm_asr` trained on 64 chips (128 cores) of v5p.

    Planned, all estimates but memory: 18.4 of 95 GiB a chip; 0.52 s an update if
    all hides behind its products, 0.76 s if nothing does, which allows an MFU of
    89 and 60 %; 192 chip-hours at best for 21,000 updates.

    melllm plan mel_llm_asr_full_v5p_128
    """
    return _on(
        "mel_llm_asr_full_v5p_128", _full(), Mesh(topology="v5p:4x4x4", replica=2, fsdp=32), b=128
    )


def mel_llm_asr_full_v6e_256() -> Run:
    """All weights of `mel_llm_asr` trained on 256 chips of v6e.

    Planned, all estimates but memory: 9.2 of 32 GiB a chip; 0.15 s an update if
    all hides behind its memory, 0.37 s if nothing does, which allows an MFU of
    77 and 31 %; 110 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_full_v6e_256
    """
    return _on(
        "mel_llm_asr_full_v6e_256", _full(), Mesh(topology="v6e:16x16", replica=2, fsdp=128), b=256
    )


def mel_llm_asr_full_h100_64() -> Run:
    """All weights of `mel_llm_asr` trained on 64 H100 in eight servers.

    Planned, all estimates but memory: 18.9 of 80 GiB a chip; 0.23 s an update if
    all hides behind its products, 0.44 s if nothing does, which allows an MFU of
    91 and 48 %; 87 chip-hours at best for 21,000 updates.

    melllm plan mel_llm_asr_full_h100_64
    """
    return _on("mel_llm_asr_full_h100_64", _full(), Mesh(topology="h100:8x8", fsdp=64), b=128)


def mel_llm_asr_14b_v5p_512() -> Run:
    """Phi-4 of 14 B weights, all trained, on two slices of 128 chips (256 cores) of v5p.

    Planned, all estimates but memory: 22.0 of 95 GiB a chip; 0.85 s an update if
    all hides behind its products, 1.44 s if nothing does, which allows an MFU of
    95 and 56 %; 633 chip-hours at best for 10,500 updates.

    melllm plan mel_llm_asr_14b_v5p_512
    """
    run = _full()
    model = dataclasses.replace(PHI_4, front="conv")
    run = dataclasses.replace(run, model=model, text=Text(template="plain"))
    return _on(
        "mel_llm_asr_14b_v5p_512",
        run,
        Mesh(topology="v5p:4x4x8", slices=2, replica=2, fsdp=128),
        b=256,
    )


def _on(name: str, run: Run, mesh: Mesh, b: int) -> Run:
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


def _full() -> Run:
    """`mel_llm_asr` without LoRA: every weight trains, at a lower rate."""
    run = mel_llm_asr()
    optim = dataclasses.replace(run.optim, train="all", lr=4e-5, b2=0.95)
    return dataclasses.replace(run, lora=Lora(), optim=optim)


# config.json of microsoft/phi-4.
PHI_4 = Model(
    d=5120,
    n=40,
    k=10,
    h=128,
    f=17_920,
    l=40,
    v=100_352,
    rope=Rope(theta=250_000.0, original=16_384, longest=16_384),
    tied=False,
    front="none",
)

# config.json of microsoft/Phi-4-mini-instruct.
PHI_4_MINI = Model(
    d=3072,
    n=24,
    k=8,
    h=128,
    f=8192,
    l=32,
    v=200_064,
    window=262_144,
    rope=Rope(
        partial=0.75,
        short=(1.0,) * 48,
        long=(
            *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817),
            *(2.187582649, 2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687),
            *(4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894),
            *(8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252),
            *(16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884),
            *(32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97),
            *(33.28, 33.49, 33.5, 44.16, 47.77),
        ),
        longest=131_072,
    ),
    front="none",
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
    {
        make.__name__: make
        for make in (
            quickstart,
            digits,
            mel_llm_asr,
            mel_llm_asr_v5e_256,
            mel_llm_asr_v5p_128,
            mel_llm_asr_v6e_256,
            mel_llm_asr_h100_64,
            mel_llm_asr_full_v5e_256,
            mel_llm_asr_full_v5p_128,
            mel_llm_asr_full_v6e_256,
            mel_llm_asr_full_h100_64,
            mel_llm_asr_14b_v5p_512,
        )
    }
    | {name: functools.partial(ladder.rung, name) for name in ladder.RUNGS}
)


def preset(name: str) -> Run:
    """The run of that name. Raises Mistake for an unknown one, with the nearest."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise Mistake(f"preset={name}: is none of {', '.join(PRESETS)}; did you mean {near[0]}?")
    return PRESETS[name]()
