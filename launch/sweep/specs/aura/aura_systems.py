"""Three systems of SmolLM2-135M on the same 8 h of spoken text, at the same number of updates.

The bridge: Whisper tiny.en's encoder and the LLM both frozen, a projector trained between them.
LoRA and a linear front end without a teacher. AuRA: the same LoRA, taught by that encoder. The
fourth of the table, the cascade, is not trained: Whisper writes, and the LLM reads. All hear
Whisper's log-mel at 12.5 Hz. 800 updates, about an hour a cell on two cores.

melllm convert import HuggingFaceTB/SmolLM2-135M-Instruct checkpoints/smollm2
melllm convert import openai/whisper-tiny.en checkpoints/whisper
melllm data speak corpora/speech --text TEXT --voices both --train 8000
melllm sweep run aura_systems --workdir sweeps/aura_systems
"""

from launch.sweep import spec

CORPUS = "corpora/speech"
LLM, WHISPER = "checkpoints/smollm2", "checkpoints/whisper"
UPDATES = 800
COMMON = {
    "init": LLM,
    "data.sources": [{"path": CORPUS}],
    "optim.steps": UPDATES,
    "optim.warmup": UPDATES // 20,
}
UNTAUGHT = {"preset": "smollm2_asr"}
# No more than the clip is heard: frames of 30 s would cost more than the model's own update.
TAUGHT = {"preset": "aura_smollm2", "teacher": WHISPER, "distill.frame": "clip"}
BRIDGE = UNTAUGHT | {
    "front": WHISPER,
    "optim.encoder": "frozen",
    "optim.train": "front",
    "lora.r": 0,
}


def cells() -> list[spec.Cell]:
    """3 cells."""
    return spec.grid([COMMON], [BRIDGE, UNTAUGHT, TAUGHT])
