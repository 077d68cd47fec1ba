"""A `tokenizer.json` of the tokenizers library as a tokenizer, as Phi-4 ships one.

A vocabulary that would silently drop characters is refused.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
from typing import Any

from etils import epath
import tokenizers

from data_pipelines.text.chat_template import ChatTemplate, read_chat_template
from data_pipelines.text.tokenizer import (
    Tokenizer,
    check_text,
    content_hash,
    refuse_character,
    require_ids,
    write_tokenizer_file,
)
from melllm_jax.errors import Mistake


@dataclasses.dataclass(frozen=True)
class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` of the tokenizers library, as Phi-4 has it."""

    source: str = dataclasses.field(repr=False)  # content of tokenizer.json
    chat: ChatTemplate | None = dataclasses.field(default=None, repr=False, compare=False)

    @functools.cached_property
    def table(self) -> Any:
        """The library's tokenizer over `source`, special tokens in text taken as plain text."""
        table = self._read_table()
        table.encode_special_tokens = True
        return table

    @functools.cached_property
    def _marked_table(self) -> Any:
        """The same, the names of special tokens standing for them."""
        return self._read_table()

    def _read_table(self) -> Any:
        table = tokenizers.Tokenizer.from_str(self.source)
        table.no_truncation()
        table.no_padding()
        return table

    @functools.cached_property
    def specials(self) -> Mapping[str, int]:
        added = self.table.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    @functools.cached_property
    def unknown(self) -> int | None:
        """Id of the unknown token; None where there is none."""
        model = json.loads(self.source)["model"]
        name = model.get("unk_token")
        return self.table.token_to_id(name) if name else model.get("unk_id")

    @functools.cached_property
    def size(self) -> int:
        return max(self.table.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        return require_ids(self._ids(self.table, check_text(text)))

    def encode_marked(self, text: str) -> list[int]:
        return self._ids(self._marked_table, text)

    @functools.cached_property
    def opening(self) -> tuple[int, ...]:
        plain, whole = (
            self._marked_table.encode("a", add_special_tokens=added).ids for added in (False, True)
        )
        start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return tuple(whole[:start])

    def _ids(self, table: Any, text: str) -> list[int]:
        coded = table.encode(text, add_special_tokens=False)
        ids: list[int] = coded.ids
        if self.unknown in ids:
            refuse_character(text[coded.offsets[ids.index(self.unknown)][0]])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        mute = set(self.specials.values())
        return self.table.decode([i for i in ids if 0 <= i < self.size and i not in mute])

    def with_specials(self, names: Sequence[str]) -> Tokenizer:
        table = tokenizers.Tokenizer.from_str(self.source)
        table.add_special_tokens(
            [tokenizers.AddedToken(name, normalized=False, special=True) for name in names]
        )
        return JsonTokenizer(table.to_str(), self.chat)

    def digest(self) -> str:
        return content_hash(b"json", self.source.encode())

    def save(self, folder: epath.PathLike) -> None:
        write_tokenizer_file(folder, "tokenizer.json", self.source.encode())


def read_json_tokenizer(path: epath.Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`. Raises Mistake where it would drop characters."""
    content = path.read_bytes().decode("utf-8-sig")
    tokenizer = JsonTokenizer(content, read_chat_template(path.parent))
    model = tokenizer.table.model
    lacks_bytes = isinstance(model, tokenizers.models.BPE) and not model.byte_fallback
    byte_level = tokenizer.table.get_vocab().keys() >= _BYTE_LETTERS
    if lacks_bytes and not byte_level and tokenizer.unknown is None:
        raise Mistake(f"{path}: would drop characters: it has no unknown token, nor all bytes")
    return tokenizer


# The 256 letters that stand for bytes in a byte-level table.
_BYTE_LETTERS = frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())
