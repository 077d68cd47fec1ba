"""UTF-8 bytes as token ids: a tokenizer that needs no training and holds any text."""

from collections.abc import Mapping, Sequence
import dataclasses
import json

from etils import epath

from data_pipelines.text.tokenizer import (
    SPECIALS,
    Tokenizer,
    check_text,
    content_hash,
    ids_to_json,
    split_at_names,
    write_tokenizer_file,
)


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0 to 255, then the special tokens."""

    names: tuple[str, ...] = SPECIALS

    @property
    def size(self) -> int:
        return 256 + len(self.names)

    @property
    def specials(self) -> Mapping[str, int]:
        return {name: 256 + i for i, name in enumerate(self.names)}

    def encode(self, text: str) -> list[int]:
        return list(check_text(text).encode())

    def encode_marked(self, text: str) -> list[int]:
        specials = self.specials
        parts = split_at_names(text, specials)
        return [i for x in parts for i in ([specials[x]] if x in specials else x.encode())]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if 0 <= i < 256).decode(errors="replace")

    def digest(self) -> str:
        return content_hash(b"bytes", ids_to_json(self.specials))

    def save(self, folder: epath.PathLike) -> None:
        write_tokenizer_file(folder, "tokenizer.bytes", ids_to_json(self.specials))


def read_byte_tokenizer(path: epath.Path) -> Tokenizer:
    """The tokenizer of bytes whose special tokens `path` lists with their ids."""
    ids = json.loads(path.read_bytes())
    return ByteTokenizer(tuple(sorted(ids, key=ids.__getitem__)))
