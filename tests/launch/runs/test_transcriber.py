"""A transcript says what stopped it: its end, the repetition guard, or the limit of tokens."""

import numpy as np

from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.text.load_tokenizer import load_tokenizer
from launch.runs import transcriber
from launch.runs.transcriber import Transcriber
from melllm_jax.inference.sampling import GREEDY
from melllm_jax.inference.token_loop import Generation


class Decoder:
    """Says `a` in every row: one ends by itself, one is stopped by the guard, one by its limit."""

    options = GREEDY
    compile_seconds = 0.0

    def __call__(self, batch, limits):
        del batch, limits
        ended, looped = np.array([True, False, False]), np.array([False, True, False])
        return Generation(np.full((3, 4), ord("a")), np.array([1, 2, 3]), ended, looped)


def test_transcript_stopped_by_the_guard_was_not_cut_off(monkeypatch):
    reads = object.__new__(Transcriber)  # no model
    reads.decoder, reads.seconds, reads._tokenizer = Decoder(), 0.0, load_tokenizer("bytes")
    monkeypatch.setattr(transcriber, "prompt_batch", lambda rows, size: None)
    trials = [EvalExample(f"u{n}", "", 1.0, {}) for n in range(3)]
    found = [(t.text, t.looped, t.cut) for t in reads(trials, 3)]
    assert found == [("a", False, False), ("aa", True, False), ("aaa", False, True)]
