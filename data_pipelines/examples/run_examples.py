"""The examples that a run learns from, by the run's own kind and fields."""

from collections.abc import Callable, Mapping, Set

import numpy as np

from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import ExampleMaker
from data_pipelines.examples.text_example import TextExampleMaker
from data_pipelines.examples.tts_example import TtsExampleMaker
from data_pipelines.examples.vocoder_example import VocoderExampleMaker
from data_pipelines.examples.wave_augment import NO_EFFECTS, Effects
from data_pipelines.reject import Reject
from data_pipelines.text.tokenizer import Tokenizer
from melllm_jax.config.run import BaseRun, Run
from melllm_jax.config.vocoder_run import VocoderRun

UseExampleMaker = ExampleMaker | TtsExampleMaker | TextExampleMaker


class RunExampleMaker:
    """Makes of each utterance what the `use` of its source says: see `make_examples`."""

    def __init__(self, run: Run, tokenizer: Tokenizer, effects: Effects, ready: Set[int]) -> None:
        self._uses = [run.source_use(index) for index in range(len(run.data.sources))]
        kinds: Mapping[str, Callable[[], UseExampleMaker]] = {
            "asr": lambda: ExampleMaker(run, tokenizer, effects, ready),
            "tts": lambda: TtsExampleMaker(run, tokenizer, effects, ready),
            "text": lambda: TextExampleMaker(run, tokenizer, ready),
        }
        self._makers = {use: kinds[use]() for use in {*self._uses, run.source_use()}}
        self._other = run.source_use()  # of corpora that are no longer among the run's

    def train(
        self, drawn: tuple[int, Utterance], rng: np.random.Generator
    ) -> dict[str, np.ndarray] | Reject[int]:
        """The columns [t …] of (index of its corpus, utterance), or a reject."""
        source = drawn[0]
        use = self._uses[source] if source < len(self._uses) else self._other
        return self._makers[use].train(drawn, rng)


def make_examples(
    run: BaseRun,
    tokenizer: Tokenizer,
    effects: Effects = NO_EFFECTS,
    ready: Set[int] = frozenset(),
) -> RunExampleMaker | VocoderExampleMaker:
    """Crops of sound for a vocoder, else what each source says.

    That is speech with its transcript, words to be spoken, or text alone; crops need no tokenizer.
    """
    if isinstance(run, VocoderRun):
        return VocoderExampleMaker(run, effects)
    assert isinstance(run, Run)
    return RunExampleMaker(run, tokenizer, effects, ready)
