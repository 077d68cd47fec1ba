"""Turns one utterance into what a cascade works on: a Whisper hears it, then an LLM is asked.

What is no task is what the Whisper hears. A task keeps its turns, and each of its clips is heard by
itself: `heard_turns` then says them in words.
"""

from collections.abc import Sequence
import dataclasses

from data_pipelines.corpora.corpus import load_utterance_sound
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import EvalExample
from data_pipelines.examples.whisper_example import WhisperExampleMaker
from data_pipelines.reject import Reject, Unusable
from data_pipelines.text.prompt import end_id
from data_pipelines.text.tokenizer import Tokenizer
from data_pipelines.text.turn_prompt import turn_ids
from data_pipelines.text.turns import CLIP, Turn
from melllm_jax.config.features import Mel, Text


@dataclasses.dataclass(frozen=True)
class CascadeTask(EvalExample):
    """A task whose prompt is not known before its clips are heard: it has no columns yet."""

    turns: tuple[Turn, ...] = ()
    clips: tuple[EvalExample, ...] = ()  # the windows of each, in order


class CascadeExampleMaker(WhisperExampleMaker):
    """Makes what a Whisper hears of one utterance, and what the LLM after it is asked."""

    def __init__(self, mel: Mel, window: int, tokenizer: Tokenizer, cfg: Text) -> None:
        """`mel` and `window` are the Whisper's; `tokenizer` and `cfg`, its template, the LLM's."""
        super().__init__(mel, window)
        self._tokenizer, self._cfg = tokenizer, cfg

    def eval_example(self, utterance: Utterance) -> EvalExample | Reject[int]:
        """The windows of an utterance of any length, or a CascadeTask; its reference unchanged."""
        if utterance.flaw or not utterance.turns:
            return super().eval_example(utterance)
        unheard = heard_turns(utterance.turns, [""] * len(utterance.heard))
        encode = self._tokenizer.encode
        try:
            turn_ids(self._tokenizer, self._cfg, unheard, answered=False)  # all but what is heard
            end = end_id(self._tokenizer, self._cfg)
            choices = tuple((*encode(option), end) for option in utterance.options)
            clips = [
                self.sound_example(load_utterance_sound(clip), clip.id) for clip in utterance.heard
            ]
        except Unusable as error:
            return Reject(0, utterance.id, error.reason, str(error))
        return CascadeTask(
            utterance.id,
            utterance.text,
            sum((clip.duration for clip in clips), 0.0),
            {},
            utterance.task,
            utterance.metric,
            utterance.answers,
            utterance.options,
            choices,
            utterance.turns,
            tuple(clips),
        )


def heard_turns(turns: Sequence[Turn], texts: Sequence[str]) -> tuple[Turn, ...]:
    """The turns with a text in place of each clip, a line apart from the other words of its turn.

    A clip in which nothing was heard leaves nothing; that of a spoken answer is not heard.
    """
    heard, found = iter(texts), list[Turn]()
    for turn in turns:
        if turn.role != "user":
            turn = Turn(turn.role, tuple(part for part in turn.parts if part is not CLIP))
        elif CLIP in turn.parts:
            words = "\n".join(
                text for part in turn.parts if (text := next(heard) if part is CLIP else part)
            )
            turn = Turn(turn.role, (words,) if words else ())
        found.append(turn)
    return tuple(found)
