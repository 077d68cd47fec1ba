"""The tokenizer protocol, text to ids and back, and what its three implementations share.

Text never becomes a special token, whatever it spells: only `special` gives their ids, and
`encode_marked` for what a chat template wrote. Text with characters that a vocabulary lacks is
refused, not encoded without them.
"""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
import json
import re
from typing import NoReturn, Protocol, runtime_checkable

from etils import epath

from data_pipelines.reject import Unusable
from data_pipelines.text.chat_template import ChatTemplate
from melllm_jax.errors import Mistake

# Names as Phi-3 and Phi-4 have them; the last stands for a patch of sound.
SPECIALS = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|audio|>")
EMPTY_TRANSCRIPT, UNKNOWN_CHARACTERS = "empty transcript", "unknown characters"  # of Unusable


@runtime_checkable
class Tokenizer(Protocol):
    """A vocabulary: immutable, equal to another with the same content, and can be pickled."""

    @property
    def size(self) -> int:
        """One more than the largest id; a model's `v` may be larger."""

    @property
    def specials(self) -> Mapping[str, int]:
        """Name → id of the tokens that stand for no text."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing put before or after. Raises Unusable.

        The reason is "empty transcript" where only blanks are left of it, or "unknown characters"
        where the vocabulary lacks one; the message names the first.
        """

    def encode_marked(self, text: str) -> list[int]:
        """Ids of `text`, in which a special token's name stands for it. Raises Unusable.

        Blanks alone, and nothing at all, are text here.
        """

    @property
    def chat(self) -> ChatTemplate | None:
        """The chat template in the files that it was read from; no part of its digest."""
        return None

    @property
    def opening(self) -> tuple[int, ...]:
        """Ids that its own library puts before every text, such as that of <s>; mostly none."""
        return ()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens and ids outside the vocabulary are skipped."""

    def special(self, name: str) -> int:
        """Id of a special token. Raises Mistake, naming it and those that exist."""
        if name not in self.specials:
            known = ", ".join(sorted(self.specials)) or "none"
            raise Mistake(f"tokenizer has no special token {name}: it has {known}")
        return self.specials[name]

    def with_specials(self, names: Sequence[str]) -> "Tokenizer":
        """This tokenizer with special tokens of these names, new ids after its own.

        Raises Mistake where its files take no new tokens.
        """
        raise Mistake(f"text.missing=added: {names[0]}: only a tokenizer.json takes new tokens")

    def digest(self) -> str:
        """Hash of what decides the ids: 16 hexadecimal digits."""

    def save(self, folder: epath.PathLike) -> None:
        """Writes files from which `load_tokenizer` reads an equal tokenizer."""


def check_text(text: str) -> str:
    """Returns `text`. Raises Unusable where it is empty or no valid Unicode."""
    if not text.strip():
        raise unusable_text(EMPTY_TRANSCRIPT, repr(text))
    for character in text:
        if "\ud800" <= character <= "\udfff":  # half of a pair: no text, and UTF-8 has none
            refuse_character(character)
    return text


def require_ids(ids: list[int]) -> list[int]:
    """Returns `ids`. Raises Unusable where there are none."""
    if not ids:
        raise unusable_text(EMPTY_TRANSCRIPT, "the tokenizer normalizes all of it away")
    return ids


def refuse_character(character: str) -> NoReturn:
    """Raises Unusable that names a character which the tokenizer does not know."""
    raise unusable_text(UNKNOWN_CHARACTERS, f"{character!r} (U+{ord(character):04X})")


def unusable_text(reason: str, detail: str) -> Unusable:
    """The exception for a text that cannot be encoded: its message begins with the reason."""
    return Unusable(reason, f"{reason}: {detail}")


def split_at_names(text: str, names: Iterable[str]) -> list[str]:
    """`text` in parts, each one of `names` or free of them; the longest name counts."""
    longest = sorted(names, key=len, reverse=True)
    return [part for part in re.split(f"({'|'.join(map(re.escape, longest))})", text) if part]


def ids_to_json(ids: Mapping[str, int]) -> bytes:
    """Token ids by name as the bytes of a JSON file."""
    return json.dumps(dict(ids), sort_keys=True, indent=1).encode()


def content_hash(*parts: bytes) -> str:
    """Hash of several contents: 16 hexadecimal digits."""
    lengths = "".join(f"{len(part)} " for part in parts).encode()
    return hashlib.sha256(lengths + b"".join(parts)).hexdigest()[:16]


def write_tokenizer_file(folder: epath.PathLike, name: str, content: bytes) -> None:
    """Writes one file of a tokenizer into `folder`, which is created if it is missing."""
    path = epath.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(content)
