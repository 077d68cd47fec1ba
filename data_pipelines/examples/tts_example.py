"""One utterance to the columns of one example in which its words are read and its sound spoken.

A task whose answer has its sound is asked as any other; the answer is written in words, then
spoken, in one sequence.
"""

from collections.abc import Sequence, Set
import functools

from jaxtyping import Float
import numpy as np

from data_pipelines.corpora.utterance import Utterance
from data_pipelines.examples.asr_example import (
    TRANSFER_DTYPES,
    ExampleMaker,
    load_mel,
    too_wide_reason,
)
from data_pipelines.examples.interleave import Clip, Words, fill_turns, interleave
from data_pipelines.examples.wave_augment import NO_EFFECTS, Effects
from data_pipelines.reject import MALFORMED, Reject, Unusable
from data_pipelines.text.prompt import end_id, placeholder_id
from data_pipelines.text.tokenizer import Tokenizer
from data_pipelines.text.turn_prompt import UNSAYABLE, turn_ids
from data_pipelines.text.turns import Turn
from melllm_jax.config.features import Mel, Text
from melllm_jax.config.run import Run


class TtsExampleMaker:
    """Makes the examples of a run in which the model speaks.

    After the prompt come the clip and the token that ends a reply, which are learnt, and before
    these the words of an answer. `effects` change what is heard. `ready` are the indices of the
    corpora that hold the ids of `tokenizer` beside their text.
    """

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        effects: Effects = NO_EFFECTS,
        ready: Set[int] = frozenset(),
    ) -> None:
        self._run, self._tokenizer = run, tokenizer
        self._effects, self._ready = effects, ready
        self._end = end_id(tokenizer, run.text)
        self._audio = placeholder_id(tokenizer, run.text)

    def train(
        self, drawn: tuple[int, Utterance], rng: np.random.Generator
    ) -> dict[str, np.ndarray] | Reject[int]:
        """Columns [t ...] of (index of its corpus, utterance); what is heard is augmented."""
        source, utterance = drawn
        data, mel = self._run.data, self._run.mel
        try:
            if utterance.flaw:
                raise Unusable(MALFORMED, utterance.flaw)
            clip = Clip(load_mel(_spoken(utterance), mel, longest=data.longest), written=True)
            if utterance.turns:
                prompt = self._answer(utterance, rng)
            else:
                ids = utterance.tokens if source in self._ready else None
                prompt = [*tts_prompt(self._tokenizer, self._run.text, utterance.text, ids)]
            parts = [*prompt, clip, Words((self._end,), 1.0)]
            dtype = TRANSFER_DTYPES[data.wire]
            columns = interleave(parts, r=mel.r, m=mel.m, audio=self._audio, dtype=dtype)
            t = len(columns["tokens"])
            if t > data.t:
                raise Unusable(too_wide_reason(data), f"{utterance.id}: takes t={t} positions")
        except Unusable as error:
            return Reject(source, utterance.id, error.reason, str(error))
        columns["sources"] = np.full(t, source, np.int32)
        return columns

    @functools.cached_property
    def _listener(self) -> ExampleMaker:
        """What makes mel of what is asked in sound."""
        return ExampleMaker(self._run, self._tokenizer, self._effects, self._ready)

    def _answer(self, utterance: Utterance, rng: np.random.Generator) -> list[Clip | Words]:
        """What is asked, and the answer in words, up to where it is spoken."""
        if utterance.heard and self._run.model.front == "none":
            raise Unusable(UNSAYABLE, f"{utterance.id}: is heard, by a model without a front end")
        mels = self._listener.augmented_mels(utterance, rng) if utterance.heard else []
        asked = turn_ids(self._tokenizer, self._run.text, utterance.turns, answered=False)
        words = (*self._tokenizer.encode(utterance.text), self._audio)
        return [*fill_turns(asked, mels), Words(words, 1.0)]


def _spoken(utterance: Utterance) -> Utterance:
    """What the model is to say. Raises Unusable where there is no sound of it."""
    if not utterance.turns:
        return utterance
    if utterance.spoken is None:
        raise Unusable(UNSAYABLE, f"{utterance.id}: is a task, whose answer is no sound")
    return utterance.spoken


def tts_prompt(
    tokenizer: Tokenizer, cfg: Text, text: str, ids: Sequence[int] | None = None
) -> list[Words]:
    """What a model is given that is to say `text`, whose `ids` may be known already.

    "plain" says the text alone, the other templates a user's turn of `cfg.request` and the text. At
    the end stands the placeholder of sound as a token, which begins speech and is learnt. Raises
    Unusable for a text that is empty or that the vocabulary lacks.
    """
    begin = Words((placeholder_id(tokenizer, cfg),), 1.0)
    if cfg.template == "plain":
        return [Words(tuple(tokenizer.encode(text) if ids is None else ids), 0.0), begin]
    turns = (Turn("user", (cfg.request, text)), Turn("assistant", (text,)))
    asked = turn_ids(tokenizer, cfg, turns, answered=False)
    return [*(Words(part.ids, 0.0) for part in asked if part is not None), begin]


def tts_prompt_columns(
    tokenizer: Tokenizer,
    cfg: Text,
    mel: Mel,
    text: str,
    voice: tuple[str, Float[np.ndarray, "frames m"]] | None = None,
) -> dict[str, np.ndarray]:
    """The columns from which speech of `text` starts.

    With a `voice`, what it says and its mel, speech goes on from the whole patches of that mel as
    if the voice said both texts. Raises Unusable as `tts_prompt` does.
    """
    parts: list[Clip | Words] = [
        *tts_prompt(tokenizer, cfg, text if voice is None else f"{voice[0]} {text}")
    ]
    if voice is not None:
        parts.append(Clip(voice[1][: len(voice[1]) // mel.r * mel.r], written=True))
    return interleave(parts, r=mel.r, m=mel.m, audio=placeholder_id(tokenizer, cfg))
