"""What a pretrained start is worth on a CPU: three starts × 0.5, 2 and 8 h of spoken text.

All of SmolLM2-135M's shape and 400 updates, which read some 2.8 h of sound: the least is read six
times, the most in part. The random start trains all weights; the pretrained ones LoRA and the front
end, or a projector behind Whisper tiny.en's frozen encoder. About half an hour a cell on two cores.

melllm convert import HuggingFaceTB/SmolLM2-135M-Instruct checkpoints/smollm2
melllm convert import openai/whisper-tiny.en checkpoints/whisper
melllm data speak corpora/speech --text TEXT --voices both --train 8000
melllm sweep run smollm2_init --workdir sweeps/smollm2_init
"""

from launch.sweep import spec

CORPUS = "corpora/speech"
LLM, WHISPER = "checkpoints/smollm2", "checkpoints/whisper"
HOURS = (0.5, 2.0, 8.0)
COMMON = {"preset": "smollm2_asr", "optim.steps": 400, "optim.warmup": 20}
RANDOM = {  # SmolLM2's tokens, and as many rows more as its import gets for the sound
    "init": "",
    "text.tokenizer": f"{LLM}/tokenizer",
    "model.v": 49_216,
    "optim.train": "all",
    "lora.r": 0,
}
STARTS: list[spec.Cell] = [
    RANDOM,
    {"init": LLM},
    {"init": LLM, "front": WHISPER, "optim.encoder": "frozen"},
]


def cells() -> list[spec.Cell]:
    """9 cells."""
    amounts = [{"data.sources": [{"path": CORPUS, "hours": hours}]} for hours in HOURS]
    return spec.grid([COMMON], amounts, STARTS)
