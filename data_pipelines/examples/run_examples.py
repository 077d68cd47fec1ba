"""The examples that a run learns from, by the run's own kind and fields."""

from collections.abc import Set

from data_pipelines.examples.asr_example import ExampleMaker
from data_pipelines.examples.text_example import TextExampleMaker
from data_pipelines.examples.vocoder_example import VocoderExampleMaker
from data_pipelines.examples.wave_augment import NO_EFFECTS, Effects
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.vocoder_run import VocoderRun


def make_examples(
    run: BaseRun,
    tokenizer: Tokenizer,
    effects: Effects = NO_EFFECTS,
    ready: Set[int] = frozenset(),
) -> ExampleMaker | TextExampleMaker | VocoderExampleMaker:
    """Crops of sound for a vocoder, text alone for a model without a front end, else speech.

    Speech comes with its transcript; a vocoder's crops need no tokenizer.
    """
    if isinstance(run, VocoderRun):
        return VocoderExampleMaker(run, effects)
    assert isinstance(run, Run)
    if run.model.front == "none":
        return TextExampleMaker(run, tokenizer, ready)
    return ExampleMaker(run, tokenizer, effects, ready)
