"""A SentencePiece model (`*.model`) as a tokenizer, with the special tokens of files beside it."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
from typing import Any

from etils import epath
import sentencepiece

from data_pipelines.text.chat_template import ChatTemplate, read_chat_template
from data_pipelines.text.tokenizer import (
    UNKNOWN_CHARACTERS,
    Tokenizer,
    check_text,
    content_hash,
    ids_to_json,
    refuse_character,
    require_ids,
    split_at_names,
    unusable_text,
    write_tokenizer_file,
)
from melllm_jax.errors import Mistake
from melllm_jax.json_text import read_object

WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"  # before the letters of a piece that begins a word


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, and special tokens with ids past its own as Phi-3 has them."""

    model: bytes = dataclasses.field(repr=False)  # content of tokenizer.model
    added: Mapping[str, int]  # name → id; ids from the number of pieces on
    chat: ChatTemplate | None = dataclasses.field(default=None, repr=False, compare=False)
    # Special tokens that, in a chat template's text, take the blanks after them.
    stripping: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)
    opening: tuple[int, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @functools.cached_property
    def pieces(self) -> Any:
        """The library's processor over `model`."""
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @functools.cached_property
    def specials(self) -> Mapping[str, int]:
        pieces = self.pieces
        mute = (i for i in range(len(pieces)) if pieces.is_control(i) or pieces.is_unknown(i))
        return {pieces.id_to_piece(i): i for i in mute} | dict(self.added)

    @property
    def size(self) -> int:
        return max(len(self.pieces) - 1, *self.added.values(), 0) + 1

    def encode(self, text: str) -> list[int]:
        return require_ids(self._ids(check_text(text)))

    def encode_marked(self, text: str) -> list[int]:
        specials, ids, before = self.specials, list[int](), ""
        for part in split_at_names(text, specials):
            stripped = part.lstrip() if before in self.stripping else part
            ids += [specials[part]] if part in specials else self._ids(stripped)
            before = part
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.pieces.encode(text)
        unknown = self.pieces.unk_id()
        if unknown in ids:
            lost = self.pieces.encode_as_pieces(text)[ids.index(unknown)]
            if lost.startswith(WORD_START):  # the vocabulary is of whole words
                word = lost.split(WORD_START)[1]  # unknown ones in a row are one piece
                raise unusable_text(UNKNOWN_CHARACTERS, f"no token is the word {word!r}")
            refuse_character(lost[0])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        mute = set(self.specials.values())
        return self.pieces.decode([i for i in ids if 0 <= i < len(self.pieces) and i not in mute])

    def digest(self) -> str:
        return content_hash(b"sentencepiece", self.model, ids_to_json(self.added))

    def save(self, folder: epath.PathLike) -> None:
        write_tokenizer_file(folder, "tokenizer.model", self.model)
        write_tokenizer_file(folder, "added_tokens.json", ids_to_json(self.added))


def read_sentencepiece(path: epath.Path) -> Tokenizer:
    """The tokenizer in `path`, with added tokens. Raises Mistake for contradictory ids."""
    model = path.read_bytes()
    pieces = SentencePieceTokenizer(model, {}).pieces
    added: dict[str, int] = {}
    listed = _added_tokens(path.parent)
    for name, i, _ in listed:
        if i < len(pieces) and pieces.id_to_piece(i) != name:
            raise Mistake(f"{path.parent}: {name} has id {i}, which is {pieces.id_to_piece(i)}")
        if added.setdefault(name, i) != i:
            raise Mistake(f"{path.parent}: {name} has two ids, {added[name]} and {i}")
    return SentencePieceTokenizer(
        model,
        {name: i for name, i in added.items() if i >= len(pieces)},
        read_chat_template(path.parent),
        frozenset(name for name, _, strips in listed if strips),
        _opening(path.parent, pieces.bos_id()),
    )


def _opening(folder: epath.Path, bos: int) -> tuple[int, ...]:
    """The id that stands before every text, where tokenizer_config.json asks for it.

    transformers' LlamaTokenizer, whose files these are, does so unless it is told not to.
    """
    file = folder / "tokenizer_config.json"
    config = read_object(file) if file.exists() else {}
    wanted = config.get("add_bos_token", "Llama" in str(config.get("tokenizer_class")))
    return (bos,) if wanted and bos >= 0 else ()


def _added_tokens(folder: epath.Path) -> list[tuple[str, int, bool]]:
    """(name, id, whether it takes the blanks after it) of every token that a folder's files add."""
    trees = {}
    for name in ("added_tokens.json", "tokenizer_config.json", "tokenizer.json"):
        file = folder / name
        trees[name] = json.loads(file.read_bytes()) if file.exists() else {}
    plain, config, full = trees.values()
    decoder = config.get("added_tokens_decoder", {})
    return [
        *((name, i, False) for name, i in plain.items()),
        *((token["content"], int(i), bool(token.get("rstrip"))) for i, token in decoder.items()),
        *(
            (token["content"], token["id"], bool(token.get("rstrip")))
            for token in full.get("added_tokens", [])
        ),
    ]
