"""Front ends before the same pretrained LLM: SmolLM2-135M with LoRA on 8 h of spoken text.

Linear; a conv stem and a Conformer of Phi-4-MM's kind, at random; Whisper tiny.en's encoder, frozen
and trained. All hear Whisper's log-mel at 12.5 Hz. 800 updates, about an hour a cell on two cores.
What `smollm2_init` says makes checkpoints and corpus.

melllm sweep run smollm2_front --workdir sweeps/smollm2_front
"""

from launch.sweep import spec

CORPUS = "corpora/speech"
LLM, WHISPER = "checkpoints/smollm2", "checkpoints/whisper"
COMMON = {
    "preset": "smollm2_asr",
    "init": LLM,
    "data.sources": [{"path": CORPUS}],
    "optim.steps": 800,
    "optim.warmup": 40,
}
FRONTS: list[spec.Cell] = [
    {"model.front": "linear"},
    {"model.front": "conv", "model.c": 256},
    {"model.front": "conformer", "model.c": 256}
    | {"model.conformer.l": 4, "model.conformer.n": 4, "model.conformer.f": 384},
    {"front": WHISPER, "optim.encoder": "frozen"},
    {"front": WHISPER},
]


def cells() -> list[spec.Cell]:
    """5 cells."""
    return spec.grid([COMMON], FRONTS)
