"""What a converted language model is worth: random or converted start × hours of speech.

All weights of Phi-4-multimodal's language model train, on 100, 1,000 and 10,000 h of one corpus,
five times over. The converted start takes --set init.path=PHI, what `melllm convert import` wrote,
and `mel_llm_asr`'s rate for all weights; the random one sets it empty and takes Llama 3's of 8 B
weights (arXiv 2407.21783): the ladder's rule was fitted on runs of many positions a weight.
1.7e20 FLOPs.

melllm sweep run init --set init.path=PHI --set text.tokenizer=PHI/tokenizer --workdir sweeps/init
"""

from launch.sweep import budgets, spec

CORPUS = "corpora/english"  # of 10,000 h at least: put yours here, or copy this file
HOURS = (100.0, 1_000.0, 10_000.0)
EPOCHS = 5
ROWS = budgets.RowShares(speech=0.72, fill=0.97)  # 12.5 of speech and 4 word pieces a second
WHOLE = {"preset": "mel_llm_asr", "optim.train": "all", "lora.r": 0, "optim.b2": 0.95}


def cells() -> list[spec.Cell]:
    """6 cells."""
    grid = budgets.fixed_data([WHOLE], CORPUS, HOURS, EPOCHS, ROWS)
    random, converted = {"init.path": "", "optim.lr": 3e-4}, {"optim.lr": 4e-5}
    return spec.grid(grid, [random, converted])
