"""AuRA at a production size: whisper-large-v3's encoder taught into Qwen2.5-7B and Phi-4-mini.

The paper (arXiv 2606.11033) names the teacher and publishes no sizes of training. What VoRA (arXiv
2503.20680; configs/pretrain_I30M_T6M.yaml of github.com/Hon-Wong/VoRA) does with the same LLM is
taken from there: LoRA on all linears of the first 24 layers, of rank 1,024 without a scale, these
layers taught one by one through a norm and a matrix, 1 - cosine of weight 1, speech that sees both
ways, AdamW at a constant 2e-4 after 100 updates. Ours are rows, batch, mesh, the evenly spaced
layers of the teacher's 32 (VoRA's has 24), its windows a row, and one epoch of 64,000 h.

`aura_smollm2`, which runs on a CPU, is in `melllm_jax.presets.smollm2`.
"""

import dataclasses

from melllm_jax.config.data import Data
from melllm_jax.config.distillation import Distill
from melllm_jax.config.encoders import Whisper
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.model import Lora, Model, Rope
from melllm_jax.config.run import CheckpointIntervals, Mesh, Optim, Run
from melllm_jax.presets.phi_sizes import PHI_4_MINI

# config.json of Qwen/Qwen2.5-7B-Instruct; transformers' Qwen2_5OmniTextConfig has the same sizes.
QWEN2_5_7B = Model(
    d=3584,
    n=28,
    k=4,
    h=128,
    f=18_944,
    l=28,
    v=152_064,
    eps=1e-6,
    rope=Rope(theta=1_000_000.0, original=32_768, longest=32_768),
    tied=False,
    front="none",
    qkv_bias=True,
    family="qwen2",
)

# config.json of openai/whisper-large-v3, which hears 128 mel bands.
WHISPER_LARGE_V3 = Whisper(d=1280, n=20, f=5120, l=32, positions=1500)
BANDS = 128

TAUGHT = 24  # layers of the LLM, from the first, that have LoRA and a teacher: VoRA's
POSITIONS = 3.7e9  # in one epoch of 64,000 h, some of them text and some padding


def aura_qwen2_5_7b() -> Run:
    """Qwen2.5-7B-Instruct taught by whisper-large-v3's encoder, on 64 chips (128 cores) of v5p.

    Planned, all estimates but memory: 46.6 of 95 GiB a chip; 0.57 s an update if
    all hides behind its products, 1.00 s if nothing does, which allows an MFU of
    70 and 40 %; 143 chip-hours at best. 2.39 B weights train, LoRA nearly all of
    them, and a quarter of the products are the teacher's. Not trained here.

    melllm convert import Qwen/Qwen2.5-7B-Instruct QWEN
    melllm convert import openai/whisper-large-v3 WHISPER
    melllm train aura_qwen2_5_7b --init QWEN --teacher WHISPER --data CORPUS --workdir runs/aura
    melllm plan aura_qwen2_5_7b
    """
    return _taught(
        "aura_qwen2_5_7b",
        QWEN2_5_7B,
        Lora(r=1024, alpha=1024.0),
        Text(template="chat", instruction="Transcribe."),
        Mesh(topology="v5p:4x4x4", fsdp=64),
        b=64,
    )


def aura_phi4_mini() -> Run:
    """Phi-4-mini taught by whisper-large-v3's encoder, on 64 chips (128 cores) of v5p.

    LoRA has the rank and the scale of Phi-4-multimodal's own for speech. Planned,
    all estimates but memory: 22.2 of 95 GiB a chip; 0.35 s an update if all hides
    behind its products, 0.65 s if nothing does, which allows an MFU of 53 and
    28 %; 86 chip-hours at best. Not trained here.

    melllm convert import microsoft/Phi-4-mini-instruct PHI
    melllm convert import openai/whisper-large-v3 WHISPER
    melllm train aura_phi4_mini --init PHI --teacher WHISPER --data CORPUS --workdir runs/aura
    melllm plan aura_phi4_mini
    """
    return _taught(
        "aura_phi4_mini",
        PHI_4_MINI,
        Lora(r=320, alpha=640.0),
        Text(template="phi4"),
        Mesh(topology="v5p:4x4x4", fsdp=64),
        b=64,
    )


def _taught(name: str, llm: Model, lora: Lora, text: Text, mesh: Mesh, b: int) -> Run:
    """A run of rows of 4,096 positions, some 20 utterances of 12 s, on a pod."""
    data = Data(t=4096, b=b, lanes=64)
    model = dataclasses.replace(
        llm,
        front="linear",
        speech="bidirectional",
        remat="named",
        kept=("qkv", "attended", "out", "gate_up"),
    )
    spread = tuple(-(-(i + 1) * WHISPER_LARGE_V3.l // TAUGHT) - 1 for i in range(TAUGHT))
    return Run(
        name=name,
        model=model,
        mel=Mel(kind="whisper", m=BANDS, r=8, normalize="none"),
        text=text,
        lora=lora,
        data=data,
        optim=Optim(
            steps=int(round(POSITIONS / (data.t * b), -2)),
            lr=2e-4,
            schedule="linear",
            final=1.0,  # the rate stays
            warmup=100,
            b2=0.999,
            weight_decay=0.0,
            train="lora",
            freeze=tuple(range(TAUGHT, llm.l)),
        ),
        distill=Distill(
            teacher="whisper",
            whisper=WHISPER_LARGE_V3,
            windows=20,
            teacher_layers=spread,
            depth=TAUGHT,
        ),
        mesh=mesh,
        checkpoints=CheckpointIntervals(every=1000, milestone=5000),
    )
