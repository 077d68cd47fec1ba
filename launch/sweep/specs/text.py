r"""IsoFLOP grid on text alone: four budgets of 6e11 to 1.6e13 FLOPs, five sizes at each.

Sizes are 23 thousand to a million weights that multiply, on bytes. They move up with the budget, so
that each line reaches from some 2 bytes a weight to some 150, and its least loss may lie inside.
The most that a run reads is 18 million bytes: not three times the King James Bible with Debian's
fortunes, and up to four are nearly as good as new text (Muennighoff et al. 2023, arXiv 2305.16264).
The ladder begins too high for so little compute: shapes are written out here. Updates are of 2,048
positions at all sizes, the rate by the ladder's rule. 1.2e14 FLOPs in all.

(bible -l100000 -f gen1:1-rev22:21 | cut -d' ' -f2-
 for f in /usr/share/games/fortunes/*; do case $f in *.dat|*.u8) ;; *)
   awk 'BEGIN{RS="\n%\n"}{gsub(/[ \t\n\b]+/," ");print}' $f;; esac; done) |
 python benchmarks/open_text.py --out TEXT
melllm sweep run text --data TEXT --workdir sweeps/text
melllm scaling fit sweeps/text --held-out 0.05 --out sweeps/text/law
"""

from launch.sweep import budgets, spec

FLOPS = (6e11, 1.8e12, 5.4e12, 1.6e13)
SHAPES = ((24, 2), (32, 2), (48, 2), (64, 2), (64, 4), (96, 3), (128, 3), (128, 5))  # d and l
SIZES = 5  # of a budget, from its own index on
ROWS = budgets.RowShares(speech=0.0, fill=0.97)


def cells() -> list[spec.Cell]:
    """20 cells, the smallest budget's first."""
    made = [_cell(d, l) for d, l in SHAPES]
    lines = [
        budgets.isoflop(made[first : first + SIZES], [flops], ROWS)
        for first, flops in enumerate(FLOPS)
    ]
    return budgets.with_ladder_rate(spec.chain(*lines))


def _cell(d: int, l: int) -> spec.Cell:
    """A model of that width and depth; each head has keys of its own."""
    h = 8 if d < 32 else 16 if d < 96 else 32
    shape = {"d": d, "n": d // h, "k": d // h, "h": h, "f": 8 * round(d / 3), "l": l}
    return {
        "preset": "ladder_1m",
        "model.front": "none",
        **{f"model.{letter}": value for letter, value in shape.items()},
        "data.t": 256,
        "data.b": 8,
        "checkpoints.every": 500,
    }
