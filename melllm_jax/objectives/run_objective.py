"""The objective of a run, by the run's own kind and fields."""

from typing import Any

from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.vocoder_run import VocoderRun
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.objectives.distillation import Distillation
from melllm_jax.objectives.next_patch import NextPatch
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.objectives.objective import Objective
from melllm_jax.objectives.text_next_token import TextNextToken
from melllm_jax.objectives.vocoder import VocoderObjective


def objective_of(run: Run) -> Objective[SpeechLM]:
    """What the model speaks, text alone, or the text of what it hears, with a teacher if any."""
    if run.model.writes == "speech":
        return NextPatch(run)
    if run.model.front == "none":
        return TextNextToken(run)
    return Distillation(run) if run.distill.teacher != "none" else NextToken(run)


def any_objective_of(run: BaseRun) -> Objective[Any]:
    """The objective of a run of whatever kind: a vocoder's, or that of a decoder."""
    if isinstance(run, VocoderRun):
        return VocoderObjective(run)
    assert isinstance(run, Run)
    return objective_of(run)
