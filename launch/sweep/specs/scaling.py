"""IsoFLOP grid from random weights: five budgets of 1e17 to 1e19 FLOPs, five sizes at each.

Sizes lie around the one that Hoffmann et al. 2022 expect (20 positions a weight, C = 6 N D), from
half to twice it: layers of 14 to 590 M weights. The longest cell reads 1e10 positions, 96,000 h of
sound, so that a corpus of 960 h goes round a hundred times: its law is one of repeated data.
7.4e19 FLOPs: 52 hours of one H100 at 40 % of its peak.
Bytes are the tokens; --set text.tokenizer=DIR --set model.v=SIZE changes that.

melllm sweep run scaling --data DIR --workdir sweeps/scaling --dry-run
"""

from launch.sweep import budgets, spec

FLOPS = (1e17, 3e17, 1e18, 3e18, 1e19)
AROUND = (0.5, 0.7, 1.0, 1.4, 2.0)  # times the size that is expected to be best
ROWS = budgets.RowShares(speech=0.43, fill=0.97)  # 12.5 of speech and 16 bytes of text a second


def cells() -> list[spec.Cell]:
    """25 cells."""
    return spec.chain(*(_budget(flops) for flops in FLOPS))


def _budget(flops: float) -> list[spec.Cell]:
    best = (flops / (6 * 20)) ** 0.5
    sizes = budgets.sizes(best * share for share in AROUND)
    return budgets.with_ladder_rate(budgets.isoflop(sizes, [flops], ROWS))
