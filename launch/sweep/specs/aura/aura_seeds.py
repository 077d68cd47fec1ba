"""What a teacher is worth to a small model at random: the quickstart's, three seeds of each.

2 M weights on synthetic sentences, with Whisper tiny.en as teacher and without: how many fewer
updates a given loss takes, and how far seeds are apart in it. 600 updates, minutes a cell.

melllm convert import openai/whisper-tiny.en checkpoints/whisper
melllm data speak corpora/words --train 5000 --dev 100 --test 300
melllm data tokenizer corpora/words --size 0 --out corpora/pieces
melllm sweep run aura_seeds --workdir sweeps/aura_seeds
"""

from launch.sweep import spec

WHISPER = "checkpoints/whisper"
SEEDS = (0, 1, 2)
COMMON = {
    "preset": "quickstart",
    "mel.kind": "whisper",  # in both, so that both hear the same
    "mel.normalize": "none",
    "checkpoints.every": 100,
    "data.sources": [{"path": "corpora/words"}],
    "text.tokenizer": "corpora/pieces",
}
TAUGHT = {"teacher": WHISPER, "distill.frame": "clip"}


def cells() -> list[spec.Cell]:
    """6 cells."""
    return spec.grid([COMMON], {"seed": SEEDS}, [{}, TAUGHT])
