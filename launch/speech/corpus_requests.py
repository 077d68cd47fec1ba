"""The texts of a corpus's split to be spoken, each beside its recording."""

import functools

from data_pipelines.audio.sound import Sound
from data_pipelines.corpora.corpus import Corpus, load_utterance_sound, open_corpus
from data_pipelines.reject import Unusable
from launch.speech.spoken_files import SpeechRequest
from melllm_jax.errors import Mistake


def corpus_requests(data: str, split: str, most: int = 0) -> list[SpeechRequest]:
    """The texts of the first `most` utterances, 0 for all, but those of tasks.

    Raises Mistake for a folder without that split and for a split without a text.
    """
    corpus = open_corpus(data, split)
    found = []
    for index in range(min(most or len(corpus), len(corpus))):
        utterance = corpus[index]
        if utterance.flaw or utterance.turns:
            continue  # no text with its own sound
        load = functools.partial(_load_recording, corpus, index)
        recording = None if corpus.mel is not None else load
        found.append(SpeechRequest(utterance.id, utterance.text, recording))
    if not found:
        raise Mistake(f"data={data} ({split}): holds no text to be spoken")
    return found


def _load_recording(corpus: Corpus, index: int) -> Sound:
    try:
        return load_utterance_sound(corpus[index])
    except Unusable as error:
        raise Mistake(f"data={corpus.path}: {error}") from error
