"""Presets by name. The docstring of each says its cost, its result and the command."""

from collections.abc import Callable, Mapping
import difflib
import functools
import types
from typing import TypeVar

from melllm_jax.config.run import BaseRun, Run
from melllm_jax.errors import Mistake
from melllm_jax.presets import ladder
from melllm_jax.presets.aura import aura_phi4_mini, aura_qwen2_5_7b
from melllm_jax.presets.conformer_baseline import (
    conformer_asr,
    conformer_asr_frozen,
    conformer_asr_random,
    conformer_asr_random_frozen,
)
from melllm_jax.presets.mel_llm import (
    mel_llm_asr,
    mel_llm_asr_14b_v5p_512,
    mel_llm_asr_full_h100_64,
    mel_llm_asr_full_v5e_256,
    mel_llm_asr_full_v5p_128,
    mel_llm_asr_full_v6e_256,
    mel_llm_asr_h100_64,
    mel_llm_asr_v5e_256,
    mel_llm_asr_v5p_128,
    mel_llm_asr_v6e_256,
)
from melllm_jax.presets.small import digits, quickstart
from melllm_jax.presets.smollm2 import aura_smollm2, smollm2_asr
from melllm_jax.presets.tts import mel_llm_tts, mel_llm_unified, quickstart_tts, tts
from melllm_jax.presets.vocoder import (
    quickstart_vocoder,
    vocoder,
    vocoder_hifi_gan,
    vocoder_vocos,
)

AnyRun = TypeVar("AnyRun", bound=BaseRun)

PRESETS: Mapping[str, Callable[[], Run]] = types.MappingProxyType(
    {
        make.__name__: make
        for make in (
            quickstart,
            digits,
            mel_llm_asr,
            mel_llm_asr_v5e_256,
            mel_llm_asr_v5p_128,
            mel_llm_asr_v6e_256,
            mel_llm_asr_h100_64,
            mel_llm_asr_full_v5e_256,
            mel_llm_asr_full_v5p_128,
            mel_llm_asr_full_v6e_256,
            mel_llm_asr_full_h100_64,
            mel_llm_asr_14b_v5p_512,
            conformer_asr,
            conformer_asr_random,
            conformer_asr_frozen,
            conformer_asr_random_frozen,
            smollm2_asr,
            aura_smollm2,
            aura_qwen2_5_7b,
            aura_phi4_mini,
            tts,
            quickstart_tts,
            mel_llm_tts,
            mel_llm_unified,
        )
    }
    | {name: functools.partial(ladder.rung, name) for name in ladder.RUNGS}
)

VOCODERS: Mapping[str, Callable[[], BaseRun]] = types.MappingProxyType(
    {make.__name__: make for make in (vocoder, quickstart_vocoder, vocoder_vocos, vocoder_hifi_gan)}
)
ALL: Mapping[str, Callable[[], BaseRun]] = types.MappingProxyType({**PRESETS, **VOCODERS})


def preset(name: str) -> Run:
    """The decoder's run of that name. Raises Mistake for an unknown one, with the nearest."""
    if name in VOCODERS:
        raise Mistake(f"preset={name}: trains a vocoder, which only train and sweep take")
    return _find(name, PRESETS)


def any_preset(name: str) -> BaseRun:
    """The run of that name, of whatever kind. Raises Mistake for an unknown one."""
    return _find(name, ALL)


def _find(name: str, known: Mapping[str, Callable[[], AnyRun]]) -> AnyRun:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise Mistake(f"preset={name}: is none of {', '.join(known)}; did you mean {near[0]}?")
    return known[name]()
