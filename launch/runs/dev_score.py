"""Scores on the dev split, computed while a run trains."""

from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.corpora.corpus import indices_longest_first, open_corpus
from data_pipelines.corpora.utterance import ASR
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs.option_scorer import OptionScorer
from launch.runs.task_scores import score_trials
from launch.runs.transcriber import Transcriber, read_trials, round_up_rows
from melllm_jax.config.run import Run
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.models.speech_lm import SpeechLM

ScoreFunction = Callable[[SpeechLM], Mapping[str, Any]]


def dev_score(run: Run, tokenizer: Tokenizer, most: int = 200) -> ScoreFunction:
    """Scores on the first `most` utterances of the first corpus's dev split, as a function.

    `wer` of what is transcribed, and TASK/METRIC of each task.
    """
    corpus = open_corpus(run.data.sources[0].path, "dev")
    order = indices_longest_first(corpus)[:most]
    trials, _ = read_trials(corpus, run, tokenizer, order)
    transcriber: Transcriber | None = None
    options: OptionScorer | None = None

    def scores(model: SpeechLM) -> Mapping[str, Any]:
        nonlocal transcriber, options
        if transcriber is None or options is None:
            transcriber = Transcriber(model, tokenizer, run, DecodingOptions())
            options = OptionScorer(model, run.data.t)
        transcriber.decoder.set_model(model)
        options.set_model(model)
        tasks = score_trials(transcriber, options, trials, round_up_rows(50)).tasks
        names = {"choice": "accuracy"}
        return {
            metric if task == ASR else f"{task}/{metric}": figures[names.get(metric, metric)]
            for task, metrics in tasks.items()
            for metric, figures in metrics.items()
            if figures[names.get(metric, metric)] is not None  # no number was said
        }

    return scores
