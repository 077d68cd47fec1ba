"""A checkpoint that continues text, or answers it: prompts in, what it writes out, as it comes."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools

import jax
import numpy as np

from data_pipelines.text.detokenizer import Detokenizer
from data_pipelines.text.prompt import end_id
from data_pipelines.text.text_prompt import ChatUse, end_ids, text_prompt
from data_pipelines.text.tokenizer import Tokenizer
from launch.runs.model_loader import CheckpointModel
from launch.runs.transcriber import round_up_rows
from melllm_jax.checkpoints import run_folder
from melllm_jax.config.model import ModelSpec
from melllm_jax.errors import Mistake
from melllm_jax.inference.generate import Decoder, prompt_batch
from melllm_jax.inference.sampling import DecodingOptions
from melllm_jax.inference.token_loop import Generation


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    prompt: str
    text: str  # without the prompt and the end token
    ids: list[int]  # of its tokens
    looped: bool  # the repetition guard stopped it
    cut: bool  # the token limit, or the model's last position, stopped it


class TextGenerator:
    """Continues prompts with a model; each shape of a batch compiles once.

    The mesh in force must be the model's wherever it is used.
    """

    def __init__(
        self, checkpoint: CheckpointModel, tokenizer: Tokenizer, options: DecodingOptions
    ) -> None:
        self._spec, self._tokenizer = checkpoint.spec, tokenizer
        self._opening = text_opening(str(checkpoint.folder), checkpoint.spec, tokenizer)
        ends = end_ids(tokenizer, checkpoint.spec.text)
        self._decoder = Decoder(checkpoint.model, ends, options)

    def __call__(
        self,
        prompts: Sequence[str],
        tokens: int,
        *,
        batch: int = 1,
        seed: int = 0,
        chat: ChatUse = "auto",
        system: str = "",
        write: Callable[[str], None] = lambda piece: None,
    ) -> Iterator[Completion]:
        """What the model writes after each prompt, in their order, `batch` at once.

        At most `tokens` tokens each, and no more than the model has positions. `seed` is for
        sampling; `chat` and `system` are those of `text_prompt`. A prompt alone in its batch gives
        its text to `write` piece by piece, as it is written. Raises Mistake, before anything is
        written, for a prompt that cannot be used.
        """
        if tokens < 1:
            raise Mistake(f"tokens={tokens}: must be positive")
        rows = round_up_rows(batch, jax.sharding.get_mesh().size)
        asked = [
            self._check(
                prompt,
                text_prompt(
                    self._tokenizer, prompt, chat=chat, system=system, opening=self._opening
                ),
            )
            for prompt in prompts
        ]
        keys = (jax.random.fold_in(jax.random.key(seed), n) for n in itertools.count())
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            yield from self._write(prompts[part], asked[part], tokens, rows, next(keys), write)

    def _write(
        self,
        prompts: Sequence[str],
        asked: Sequence[list[int]],
        tokens: int,
        rows: int,
        key: jax.Array,
        write: Callable[[str], None],
    ) -> list[Completion]:
        """The completions of one batch."""
        room = self._spec.model.rope.longest
        limits = np.zeros(rows, np.int32)
        limits[: len(asked)] = [min(tokens, room - len(ids)) for ids in asked]
        columns = [text_columns(ids, self._patch_width) for ids in asked]
        alone, text = len(prompts) == 1, Detokenizer(self._tokenizer)
        every = 1 if alone else int(limits.max())
        for found in self._decoder.stream(prompt_batch(columns, rows), limits, key, every):
            out = jax.device_get(found)
            if alone:
                write(text(_row(out, 0)))
        if alone:
            write(text(_row(out, 0), last=True))
        return [
            Completion(
                prompt,
                self._tokenizer.decode(_row(out, i)),
                _row(out, i),
                bool(out.looped[i]),
                not (out.ended[i] or out.looped[i]),
            )
            for i, prompt in enumerate(prompts)
        ]

    @property
    def _patch_width(self) -> int:
        return 0 if self._spec.model.front == "none" else self._spec.mel.p

    def _check(self, prompt: str, ids: list[int]) -> list[int]:
        """The ids. Raises Mistake where the model has no row, or no position, for them."""
        model, short = self._spec.model, prompt if len(prompt) <= 40 else f"{prompt[:39]}…"
        if not ids:
            raise Mistake(f"prompt={short!r}: the tokenizer leaves nothing of it")
        if max(ids) >= model.v:
            raise Mistake(f"prompt={short!r}: has token {max(ids)}: must lie below v={model.v}")
        if len(ids) >= model.rope.longest:
            raise Mistake(
                f"prompt={short!r}: takes {len(ids)} positions: the model has "
                f"{model.rope.longest} (rope.longest), one of them for what it is to write"
            )
        return ids


def text_opening(folder: str, spec: ModelSpec, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids before a text: the tokenizer's own, or what a run that learnt from text alone had there.

    Such a run saw the end token before every text (`data_pipelines.examples.text_example`).
    """
    only_text = spec.model.front == "none" and spec.model.writes == "text"
    if only_text and run_folder.holds_run(folder):
        return (end_id(tokenizer, spec.text),)
    return tokenizer.opening


def text_columns(ids: Sequence[int], patch_width: int) -> dict[str, np.ndarray]:
    """The columns of a prompt without a clip, as `interleave` has them."""
    none = np.zeros(len(ids), np.int32)
    patches = np.zeros((len(ids), patch_width), np.float32)
    return {
        "tokens": np.array(ids, np.int32),
        "patches": patches,
        "frames": none,
        "clips": none,
        "loss_weight": np.zeros(len(ids), np.float32),
    }


def _row(out: Generation, i: int) -> list[int]:
    tokens: list[int] = out.tokens[i, : out.lengths[i]].tolist()
    return tokens
