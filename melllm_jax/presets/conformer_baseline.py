"""The encoder baseline beside Mel-LLM: Phi-4-multimodal's Conformer before the same LLM.

With `mel_llm_asr` these are the two sides of table II of arXiv 2606.10231: the encoder pretrained
or random, trained or frozen, and none. All have LoRA and the projector trained. Where the encoder
is pretrained, PHI is an import that has it:

melllm convert import microsoft/Phi-4-multimodal-instruct PHI --front conformer
"""

import dataclasses

from melllm_jax.config.run import RANDOM, Init, Run
from melllm_jax.presets.mel_llm import mel_llm_asr


def conformer_asr() -> Run:
    """Phi-4-multimodal's encoder, pretrained and trained on, before its LLM with LoRA.

    As `mel_llm_asr` but for 24 blocks of 429 M weights between stem and projector. Expected in
    arXiv 2606.10231: 5.61 % WER, mean of the classic 8 sets of the Open ASR Leaderboard, at
    1 / 1.57 of the speed of `mel_llm_asr`. Not trained here.

    melllm train conformer_asr --init PHI --data LIBRISPEECH … --workdir runs/conformer
    """
    run = mel_llm_asr()
    model = dataclasses.replace(run.model, front="conformer")
    return dataclasses.replace(run, name="conformer_asr", model=model)


def conformer_asr_random() -> Run:
    """`conformer_asr` from an encoder that knows nothing, stem and projector included.

    Expected in arXiv 2606.10231: 6.97 % WER. Not trained here.

    melllm train conformer_asr_random --init PHI --data LIBRISPEECH … --workdir runs/random
    """
    return dataclasses.replace(
        conformer_asr(), name="conformer_asr_random", init=Init(front=RANDOM)
    )


def conformer_asr_frozen() -> Run:
    """`conformer_asr` with its encoder as it was pretrained: LoRA and the projector train.

    The paper has no figure of it. Not trained here.

    melllm train conformer_asr_frozen --init PHI --data LIBRISPEECH … --workdir runs/frozen
    """
    return _frozen(conformer_asr())


def conformer_asr_random_frozen() -> Run:
    """`conformer_asr_random` with its encoder left at random: what the rest makes of fixed noise.

    The paper has no figure of it. Not trained here.

    melllm train conformer_asr_random_frozen --init PHI --data LIBRISPEECH … --workdir runs/noise
    """
    return _frozen(conformer_asr_random())


def _frozen(run: Run) -> Run:
    optim = dataclasses.replace(run.optim, encoder="frozen")
    return dataclasses.replace(run, name=f"{run.name}_frozen", optim=optim)
