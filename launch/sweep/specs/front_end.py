"""Front ends (linear, Phi-4-MM's conv stem, its Conformer) at two sizes and two amounts of sound.

Layers of 16 and 64 M weights, ten epochs of 100 and of 960 h. The stem has d / 4 channels, Phi's
own share being a third, and needs r 8; the Conformer's six blocks are a tenth of the model, as
Phi's 24 are.

melllm sweep run front_end --workdir sweeps/front --dry-run
"""

from launch.sweep import budgets, spec

CORPUS = "corpora/english"  # of 960 h at least: put yours here, or copy this file
HOURS = (100.0, 960.0)
EPOCHS = 10
ROWS = budgets.RowShares(speech=0.43, fill=0.97)  # 12.5 of speech and 16 bytes of text a second


def cells() -> list[spec.Cell]:
    """12 cells."""
    blocks = {"model.conformer.l": 6, "model.conformer.n": 4}
    fronts = spec.chain(
        spec.grid({"preset": ["ladder_16m", "ladder_64m"], "model.front": ["linear"]}),
        [
            {"preset": "ladder_16m", "model.front": "conv", "model.c": 128},
            {"preset": "ladder_64m", "model.front": "conv", "model.c": 192},
        ],
        [
            {"model.front": "conformer", "model.c": c, "model.conformer.f": c * 3 // 2, **blocks}
            | {"preset": preset}
            for preset, c in (("ladder_16m", 128), ("ladder_64m", 192))
        ],
    )
    return budgets.with_ladder_rate(budgets.fixed_data(fronts, CORPUS, HOURS, EPOCHS, ROWS))
