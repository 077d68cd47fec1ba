"""Where LoRA matters: frozen on the upper 0, 4, 8, 12, 16 of Phi-4-multimodal's 32 layers.

The recipe of `mel_llm_asr` on three epochs of 960 h. PHI is what `melllm convert import
microsoft/Phi-4-multimodal-instruct PHI` wrote. 3.8 B weights: 3.5e18 FLOPs a cell.

melllm sweep run layer_ablation --data LIBRISPEECH --set init.path=PHI \
    --set text.tokenizer=PHI/tokenizer --workdir sweeps/layers
"""

from launch.sweep import budgets, spec
from melllm_jax.presets import catalog

HOURS = 3 * 960.0  # read in all
ROWS = budgets.RowShares(speech=0.72, fill=0.97)  # 12.5 of speech and 4 word pieces a second
UPPER = (0, 4, 8, 12, 16)  # layers whose LoRA stays as it starts


def cells() -> list[spec.Cell]:
    """5 cells."""
    whole = catalog.preset("mel_llm_asr").model.l
    frozen = [list(range(whole - upper, whole)) for upper in UPPER]
    cell = budgets.hours({"preset": "mel_llm_asr"}, HOURS, ROWS)
    return spec.grid([cell], {"optim.freeze": frozen})
