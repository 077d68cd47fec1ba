"""Word error rate on the dev split, computed while a run trains."""

from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.corpora.corpus import indices_longest_first, open_corpus
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs.transcriber import Transcriber, read_trials, round_up_rows
from melllm_jax.config.run import Run
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.models.speech_lm import SpeechLM

ScoreFunction = Callable[[SpeechLM], Mapping[str, Any]]


def dev_score(run: Run, tokenizer: Tokenizer, most: int = 200) -> ScoreFunction:
    """WER on the first `most` utterances of the first corpus's dev split, as a function."""
    corpus = open_corpus(run.data.sources[0].path, "dev")
    order = indices_longest_first(corpus)[:most]
    trials, _ = read_trials(corpus, run, tokenizer, order)
    transcriber: Transcriber | None = None

    def wer(model: SpeechLM) -> Mapping[str, Any]:
        nonlocal transcriber
        if transcriber is None:
            transcriber = Transcriber(model, tokenizer, run, DecodingOptions())
        transcriber.decoder.set_model(model)
        return {"wer": transcriber.score(trials, round_up_rows(50))[1].wer}

    return wer
