"""Fills in what a run takes from its data, its tokenizer and the checkpoint that it starts from.

These are their digests and, for global normalisation, the mean and inverse deviation of each mel
band.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any

import numpy as np

from data_pipelines.audio.log_mel import band_statistics
from data_pipelines.corpora.corpus import open_corpus, split_digest
from data_pipelines.examples.asr_example import load_mel
from data_pipelines.reject import Unusable
from data_pipelines.text.load_tokenizer import load_tokenizer, tokenizer_name
from data_pipelines.text.prompt import chat_ids
from data_pipelines.text.tokenizer import Tokenizer, content_hash
from launch.runs import sound_token
from melllm_jax.config.overrides import override
from melllm_jax.config.run import RANDOM, BaseRun, Run
from melllm_jax.errors import Mistake
from melllm_jax.objectives.teacher_weights import check_teacher
from melllm_jax.training import front_start, warm_start
from melllm_jax.training.front_start import FrontStart
from melllm_jax.training.warm_start import WarmStart


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """A complete run, and what was opened to complete it."""

    run: BaseRun
    tokenizer: Tokenizer
    warm: WarmStart | FrontStart | None  # the checkpoints that it starts from
    news: str  # what the run makes of its start that nobody asked for by name; "" is nothing


def complete_run(run: BaseRun) -> RunInputs:
    """`run` with the digests of its inputs and the statistics of "global" normalisation filled in.

    Raises Mistake where an input is missing or does not fit the run.
    """
    if not run.data.sources:
        raise Mistake("data: give at least one corpus with --data DIR")
    tokenizer = load_tokenizer(tokenizer_name(run))
    if isinstance(run, Run):
        return _complete_decoder_run(run, tokenizer)
    changes = _data_digests(run)
    warm = warm_start.resolve(run.init.path) if run.init.path else None
    if warm is not None:
        changes["init.digest"] = warm.digest
    return RunInputs(override(run, changes), tokenizer, warm, "")


def _complete_decoder_run(run: Run, tokenizer: Tokenizer) -> RunInputs:
    """`complete_run` of what reads and writes tokens."""
    run, tokenizer = sound_token.add_specials(run, tokenizer)
    if tokenizer.size > run.model.v:
        raise Mistake(f"model.v={run.model.v}: the tokenizer has {tokenizer.size} ids")
    run = sound_token.give_placeholder(run, tokenizer)
    changes, digest = _data_digests(run), tokenizer.digest()
    if run.text.template == "chat":  # its template decides the result as well
        digest = content_hash(digest.encode(), repr(chat_ids(tokenizer, run.text)).encode())
    changes["text.digest"] = digest
    grown = sound_token.grown_vocabulary(run, tokenizer)
    anew = run.init.front == RANDOM
    llm = warm_start.resolve(run.init.path, grown, anew) if run.init.path else None
    if llm is not None:
        changes["init.digest"] = llm.digest
    front = front_start.resolve(run, llm) if run.init.front and not anew else None
    if run.init.front:
        changes["init.front_digest"] = RANDOM if front is None else front.digest
    if run.distill.teacher != "none":
        changes["distill.digest"] = check_teacher(run)
    if run.has_sound and run.mel.normalize == "global" and not run.mel.mean:
        changes |= dict(zip(("mel.mean", "mel.invstd"), mel_statistics(run), strict=True))
    stored = run.model.v if llm is None else llm.tokens
    news = f"vocabulary: {run.model.v - stored} rows more than the {stored} of {run.init.path}"
    news = f"{news}, each the mean of those" if run.model.v > stored else ""
    return RunInputs(override(run, changes), tokenizer, front or llm, news)


def _data_digests(run: BaseRun) -> dict[str, Any]:
    """The digests of a run's corpora, by field."""
    known = [
        dataclasses.replace(source, digest=split_digest(source.path, "train"))
        for source in run.data.sources
    ]
    changes: dict[str, Any] = {"data.sources": known}
    for name, sounds in (("noises", run.data.augment.noises), ("rooms", run.data.augment.rooms)):
        if sounds.path:
            found = split_digest(sounds.path, sounds.split)
            changes[f"data.augment.{name}.digest"] = found
    return changes


def mel_statistics(run: Run, most: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and inverse deviation of each band, over `most` utterances spread over each corpus."""
    plain = dataclasses.replace(run.mel, normalize="none")

    def mels() -> Iterator[np.ndarray]:
        for index, source in enumerate(run.data.sources):
            if run.source_use(index) == "text":
                continue
            corpus = open_corpus(source.path, "train")
            for place in range(0, len(corpus), -(-len(corpus) // most)):
                with contextlib.suppress(Unusable):  # counted when they come up in training
                    yield load_mel(corpus[place], plain, longest=run.data.longest)

    return band_statistics(mels())
