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

    @functools.cached_property
    def table(self) -> Any:
        """The library's tokenizer over `source`, special tokens in text taken as plain text."""
        table = tokenizers.Tokenizer.from_str(self.source)
        table.encode_special_tokens = True
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
        coded = self.table.encode(check_text(text), add_special_tokens=False)
        if self.unknown in coded.ids:
            refuse_character(text[coded.offsets[coded.ids.index(self.unknown)][0]])
        return require_ids(coded.ids)

    def decode(self, ids: Sequence[int]) -> str:
        mute = set(self.specials.values())
        return self.table.decode([i for i in ids if 0 <= i < self.size and i not in mute])

    def digest(self) -> str:
        return content_hash(b"json", self.source.encode())

    def save(self, folder: epath.PathLike) -> None:
        write_tokenizer_file(folder, "tokenizer.json", self.source.encode())


def read_json_tokenizer(path: epath.Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`. Raises Mistake where it would drop characters."""
    tokenizer = JsonTokenizer(path.read_bytes().decode("utf-8-sig"))
    model = tokenizer.table.model
    lacks_bytes = isinstance(model, tokenizers.models.BPE) and not model.byte_fallback
    byte_level = tokenizer.table.get_vocab().keys() >= _BYTE_LETTERS
    if lacks_bytes and not byte_level and tokenizer.unknown is None:
        raise Mistake(f"{path}: would drop characters: it has no unknown token, nor all bytes")
    return tokenizer


# The 256 letters that stand for bytes in a byte-level table.
_BYTE_LETTERS = frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())
