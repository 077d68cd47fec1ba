"""Tokenizers: words to ids and back, behind one protocol and three kinds of table.

Text never turns into a special token, whatever it spells: only `special` gives their ids. Text
that a table cannot hold is refused, not encoded with a hole in it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
from typing import Any, NoReturn, Protocol, runtime_checkable

from etils import epath
import sentencepiece
import tokenizers

from melllm_jax.errors import Mistake

# Names as Phi-3 and Phi-4 have them; the last holds the place of a patch of sound.
SPECIALS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|audio|>")


class BadText(Mistake):
    """Text that cannot be encoded; `reason` is a few fixed words to count such texts by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason

    def __str__(self) -> str:
        return ": ".join(self.args)


@runtime_checkable
class Tokenizer(Protocol):
    """A table of tokens: immutable, equal where its content is, and fit to be pickled."""

    @property
    def size(self) -> int:
        """One more than the largest id; a model's `v` may be larger."""

    @property
    def specials(self) -> Mapping[str, int]:
        """Name → id of the tokens that stand for no text."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing put before or after. Raises BadText.

        The reason is "empty transcript" where no more than blanks are left of it, or "unknown
        characters" where the table lacks one; the message names the first.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens and ids outside the table have none."""

    def special(self, name: str) -> int:
        """Id of a special token. Raises Mistake, naming it and those that exist."""
        if name not in self.specials:
            known = ", ".join(sorted(self.specials)) or "none"
            raise Mistake(f"tokenizer has no special token {name}: it has {known}")
        return self.specials[name]

    def digest(self) -> str:
        """Hash of what decides the ids: 16 hexadecimal digits."""

    def save(self, folder: epath.PathLike) -> None:
        """Writes what `load` reads back equal, given the folder or the file in it."""


@dataclasses.dataclass(frozen=True)
class Bytes(Tokenizer):
    """UTF-8 bytes as ids 0 to 255, then the special tokens."""

    names: tuple[str, ...] = SPECIALS

    @property
    def size(self) -> int:
        return 256 + len(self.names)

    @property
    def specials(self) -> Mapping[str, int]:
        return {name: 256 + i for i, name in enumerate(self.names)}

    def encode(self, text: str) -> list[int]:
        return list(_checked(text).encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if 0 <= i < 256).decode(errors="replace")

    def digest(self) -> str:
        return _hash(b"bytes", _json(self.specials))

    def save(self, folder: epath.PathLike) -> None:
        _write(folder, "tokenizer.bytes", _json(self.specials))


@dataclasses.dataclass(frozen=True)
class SentencePiece(Tokenizer):
    """A SentencePiece model, and special tokens with ids past its own as Phi-3 has them."""

    model: bytes = dataclasses.field(repr=False)  # content of tokenizer.model
    added: Mapping[str, int]  # name → id; ids from the number of pieces on

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
        ids = self.pieces.encode(_checked(text))
        unknown = self.pieces.unk_id()
        if unknown in ids:
            lost = self.pieces.encode_as_pieces(text)[ids.index(unknown)]
            _refuse(lost[0])
        return _some(ids)

    def decode(self, ids: Sequence[int]) -> str:
        mute = set(self.specials.values())
        return self.pieces.decode([i for i in ids if 0 <= i < len(self.pieces) and i not in mute])

    def digest(self) -> str:
        return _hash(b"sentencepiece", self.model, _json(self.added))

    def save(self, folder: epath.PathLike) -> None:
        _write(folder, "tokenizer.model", self.model)
        _write(folder, "added_tokens.json", _json(self.added))


@dataclasses.dataclass(frozen=True)
class Json(Tokenizer):
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
        """Id that stands for what the table lacks; None where it has no such id."""
        model = json.loads(self.source)["model"]
        name = model.get("unk_token")
        return self.table.token_to_id(name) if name else model.get("unk_id")

    @functools.cached_property
    def size(self) -> int:
        return max(self.table.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        coded = self.table.encode(_checked(text), add_special_tokens=False)
        if self.unknown in coded.ids:
            _refuse(text[coded.offsets[coded.ids.index(self.unknown)][0]])
        return _some(coded.ids)

    def decode(self, ids: Sequence[int]) -> str:
        mute = set(self.specials.values())
        return self.table.decode([i for i in ids if 0 <= i < self.size and i not in mute])

    def digest(self) -> str:
        return _hash(b"json", self.source.encode())

    def save(self, folder: epath.PathLike) -> None:
        _write(folder, "tokenizer.json", self.source.encode())


def load(spec: epath.PathLike) -> Tokenizer:
    """The tokenizer that `spec` names: "bytes", a file, or a folder with such a file.

    A file is `*.model` (SentencePiece, read with the special tokens listed beside it), `*.json`
    (tokenizers) or `*.bytes`; in a folder their name is `tokenizer`, and the first of the three
    counts. Raises Mistake where there is none or it cannot be read.
    """
    if spec == "bytes":
        return Bytes()
    path = epath.Path(spec)
    if path.is_dir():
        files = [path / f"tokenizer{kind}" for kind in _KINDS]
        path = next((file for file in files if file.exists()), files[0])
    if not path.exists():
        raise Mistake(f"text.tokenizer={spec}: is neither bytes nor a tokenizer's file or folder")
    if path.suffix not in _KINDS:
        raise Mistake(f"text.tokenizer={spec}: must end in one of {', '.join(_KINDS)}")
    try:
        return _KINDS[path.suffix](path)
    except Mistake:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise Mistake(f"text.tokenizer={spec}: {path.name} cannot be read: {error}") from error


def _bytes(path: epath.Path) -> Tokenizer:
    ids = json.loads(path.read_bytes())
    return Bytes(tuple(sorted(ids, key=ids.__getitem__)))


def _sentencepiece(path: epath.Path) -> Tokenizer:
    model = path.read_bytes()
    pieces = SentencePiece(model, {}).pieces
    added: dict[str, int] = {}
    for name, i in _listed(path.parent):
        if i < len(pieces) and pieces.id_to_piece(i) != name:
            raise Mistake(f"{path.parent}: {name} has id {i}, which is {pieces.id_to_piece(i)}")
        if added.setdefault(name, i) != i:
            raise Mistake(f"{path.parent}: {name} has two ids, {added[name]} and {i}")
    return SentencePiece(model, {name: i for name, i in added.items() if i >= len(pieces)})


def _listed(folder: epath.Path) -> list[tuple[str, int]]:
    """(name, id) of every token in the three files of a folder that may list added tokens."""
    trees = {}
    for name in ("added_tokens.json", "tokenizer_config.json", "tokenizer.json"):
        file = folder / name
        trees[name] = json.loads(file.read_bytes()) if file.exists() else {}
    plain, config, whole = trees.values()
    decoder = config.get("added_tokens_decoder", {})
    return [
        *plain.items(),
        *((token["content"], int(i)) for i, token in decoder.items()),
        *((token["content"], token["id"]) for token in whole.get("added_tokens", [])),
    ]


def _table(path: epath.Path) -> Tokenizer:
    tokenizer = Json(path.read_bytes().decode())
    model = tokenizer.table.model
    holed = isinstance(model, tokenizers.models.BPE) and not model.byte_fallback
    whole = tokenizer.table.get_vocab().keys() >= _LETTERS
    if holed and not whole and tokenizer.unknown is None:
        raise Mistake(f"{path}: would drop characters: it has no unknown token, nor all bytes")
    return tokenizer


# The 256 letters that stand for bytes in a byte-level table.
_LETTERS = frozenset(tokenizers.pre_tokenizers.ByteLevel.alphabet())
_KINDS: Mapping[str, Callable[[epath.Path], Tokenizer]] = {
    ".model": _sentencepiece,
    ".json": _table,
    ".bytes": _bytes,
}


def _checked(text: str) -> str:
    if not text.strip():
        raise BadText("empty transcript", repr(text))
    for character in text:
        if "\ud800" <= character <= "\udfff":  # half of a pair: no text, and UTF-8 has none
            _refuse(character)
    return text


def _some(ids: list[int]) -> list[int]:
    if not ids:
        raise BadText("empty transcript", "the tokenizer normalizes all of it away")
    return ids


def _refuse(character: str) -> NoReturn:
    raise BadText("unknown characters", f"{character!r} (U+{ord(character):04X})")


def _json(ids: Mapping[str, int]) -> bytes:
    return json.dumps(dict(ids), sort_keys=True, indent=1).encode()


def _hash(*parts: bytes) -> str:
    lengths = "".join(f"{len(part)} " for part in parts).encode()
    return hashlib.sha256(lengths + b"".join(parts)).hexdigest()[:16]


def _write(folder: epath.PathLike, name: str, content: bytes) -> None:
    path = epath.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
