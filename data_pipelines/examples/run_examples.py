"""The examples that a run learns from, by the run's own fields."""

from collections.abc import Set

from data_pipelines.examples.asr_example import ExampleMaker
from data_pipelines.examples.text_example import TextExampleMaker
from data_pipelines.examples.wave_augment import NO_EFFECTS, Effects
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.config.run import Run


def make_examples(
    run: Run,
    tokenizer: Tokenizer,
    effects: Effects = NO_EFFECTS,
    ready: Set[int] = frozenset(),
) -> ExampleMaker | TextExampleMaker:
    """Text alone where the model has no front end, else speech with its transcript."""
    if run.model.front == "none":
        return TextExampleMaker(run, tokenizer, ready)
    return ExampleMaker(run, tokenizer, effects, ready)
