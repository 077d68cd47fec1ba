"""The objective of a run, by the run's own fields."""

from melllm_jax.config.run import Run
from melllm_jax.models.speech_lm import SpeechLM
from melllm_jax.objectives.distillation import Distillation
from melllm_jax.objectives.next_patch import NextPatch
from melllm_jax.objectives.next_token import NextToken
from melllm_jax.objectives.objective import Objective
from melllm_jax.objectives.text_next_token import TextNextToken


def objective_of(run: Run) -> Objective[SpeechLM]:
    """What the model speaks, text alone, or the text of what it hears, with a teacher if any."""
    if run.model.writes == "speech":
        return NextPatch(run)
    if run.model.front == "none":
        return TextNextToken(run)
    return Distillation(run) if run.distill.teacher != "none" else NextToken(run)
