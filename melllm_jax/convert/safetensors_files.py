"""Reads safetensors files by blocks of rows, and writes them in any order.

The format is eight bytes of length, a JSON header, then the numbers of every tensor in C order
(https://github.com/huggingface/safetensors). A tensor is never mapped into memory, and read whole
only when asked for, so that a checkpoint of any size passes through a small process.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import math
import operator
import os
import pathlib
import struct
from typing import Any

import ml_dtypes
import numpy as np

from melllm_jax.convert.weight_map import Shape
from melllm_jax.errors import Fault, Mistake
from melllm_jax.json_text import parse_json

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
DTYPES: Mapping[str, np.dtype] = {  # what we compute with
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
ELEMENT_BYTES: Mapping[str, int] = {  # an element of any tensor that may lie in a file
    **{kind: 8 for kind in ("F64", "I64", "U64", "C64")},
    **{kind: 4 for kind in ("F32", "I32", "U32")},
    **{kind: 2 for kind in ("F16", "BF16", "I16", "U16")},
    **{kind: 1 for kind in ("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")},
}
MAX_HEADER_BYTES = 100_000_000  # bytes of a header, as in the reference implementation
TORCH_CONVERSION = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{0}', dtype='auto').save_pretrained('{0}-safetensors')\""
)


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One tensor in a file."""

    name: str
    file: pathlib.Path
    kind: str  # its dtype as the header has it
    shape: Shape
    start: int  # byte in the file

    @property
    def dtype(self) -> np.dtype:
        """Raises Mistake for one that no weight of ours has."""
        if self.kind not in DTYPES:
            raise Mistake(f"{self.file}: {self.name} is {self.kind}: must be {', '.join(DTYPES)}")
        return DTYPES[self.kind]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.kind]

    def rows(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The rows from `start` to before `stop`, read into memory of their own."""
        stop = self.shape[0] if stop is None else stop
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        row = out.itemsize * math.prod(self.shape[1:])
        remaining = out.reshape(-1).view(np.uint8).data
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.start + start * row)
                while remaining:
                    count = file.readinto(remaining)
                    if not count:
                        raise Mistake(f"{self.file}: ends inside {self.name}")
                    remaining = remaining[count:]
        except OSError as error:
            raise Fault(f"{self.file}: cannot be read: {error.strerror}") from error
        return out


def list_tensors(
    folder: pathlib.Path, conversion: str = TORCH_CONVERSION
) -> dict[str, TensorEntry]:
    """Every tensor of a checkpoint's folder by name: one file, or many with their index.

    `conversion` is the command that makes them of torch files, for the message. Raises Mistake for
    a folder without, for files that are missing, cut short or no safetensors, and for a tensor that
    two files have or that is not where the index says.
    """
    index = folder / INDEX_FILE
    if not index.exists():
        if not (folder / SINGLE_FILE).exists():
            raise Mistake(_no_tensors_message(folder, conversion))
        return read_header(folder / SINGLE_FILE)
    try:
        file_names: dict[str, str] = parse_json(index.read_bytes())["weight_map"]
        files = sorted({folder / name for name in file_names.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"{index}: is no index of safetensors: {error!r}") from error
    found: dict[str, TensorEntry] = {}
    for file in files:
        if not file.exists():
            raise Mistake(f"{index}: names {file.name}, which is not there")
        for tensor, entry in read_header(file).items():
            if tensor in found:
                raise Mistake(f"{tensor}: is in {found[tensor].file.name} and in {file.name}")
            found[tensor] = entry
    for tensor, name in file_names.items():
        if tensor not in found or found[tensor].file.name != name:
            raise Mistake(f"{index}: puts {tensor} in {name}, which does not have it")
    return found


def read_header(file: pathlib.Path) -> dict[str, TensorEntry]:
    """Every tensor of one file by name. Raises Mistake where the file is not whole."""
    size = file.stat().st_size
    with file.open("rb") as source:
        (length,) = struct.unpack("<Q", source.read(8).ljust(8, b"\0"))
        if size < 8 + length or length > MAX_HEADER_BYTES:
            raise Mistake(f"{file}: is cut short or no safetensors: {size} bytes")
        try:
            tree: dict[str, Any] = parse_json(source.read(length))
            tree.pop("__metadata__", None)
            entries = [
                TensorEntry(
                    name,
                    file,
                    str(x["dtype"]),
                    tuple(map(operator.index, x["shape"])),
                    8 + length + operator.index(start),
                )
                for name, x in tree.items()
                for start, _ in [x["data_offsets"]]
            ]
            ends = [8 + length + operator.index(x["data_offsets"][1]) for x in tree.values()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Mistake(f"{file}: its header is no safetensors header: {error!r}") from error
    at = 8 + length
    for end, entry in sorted(zip(ends, entries, strict=True), key=lambda x: (x[1].start, x[0])):
        if entry.kind not in ELEMENT_BYTES:
            raise Mistake(f"{file}: {entry.name} is of the unknown type {entry.kind}")
        if entry.start != at or entry.start + entry.bytes != end:
            raise Mistake(f"{file}: {entry.name} does not fill the bytes that are its own")
        if end > size:
            raise Mistake(f"{file}: is cut short: {size} bytes, {entry.name} ends at {end}")
        at = end
    return {entry.name: entry for entry in entries}


class SafetensorsWriter:
    """Writes a folder of safetensors, tensors and blocks of their rows in any order.

    Files of at most `largest` bytes, with an index where they are several. Every byte is reserved
    when the writer is made. Use as a context manager. Raises OSError where the disk is full.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        tensors: Mapping[str, tuple[np.dtype, Shape]],
        largest: int = 5_000_000_000,
        single: str = SINGLE_FILE,
    ):
        self._locations: dict[str, tuple[int, int, np.dtype, Shape]] = {}
        self._files = contextlib.ExitStack()
        groups = list(_groups(tensors, largest))
        stem = single.removesuffix(".safetensors")
        names = [
            f"{stem}-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)
        ]
        names = [single] if len(groups) == 1 else names
        try:
            for name, group in zip(names, groups, strict=True):
                self._reserve(folder / name, group, tensors)
        except BaseException:
            self._files.close()
            raise
        if len(groups) > 1:
            total = sum(_size(*tensors[tensor]) for tensor in tensors)
            file_names = {
                tensor: name for name, group in zip(names, groups, strict=True) for tensor in group
            }
            tree = {
                "metadata": {"total_size": total},
                "weight_map": dict(sorted(file_names.items())),
            }
            (folder / f"{single}.index.json").write_text(json.dumps(tree, indent=2) + "\n")

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self._files.close()

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write rows of a tensor, from row `start` on."""
        file, offset, dtype, shape = self._locations[name]
        if rows.dtype != dtype or rows.shape[1:] != shape[1:]:
            raise ValueError(f"{name} is {dtype} {shape}, not {rows.dtype} {rows.shape}")
        offset += start * dtype.itemsize * math.prod(shape[1:])
        remaining = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        while remaining:
            count = os.pwrite(file, remaining, offset)
            remaining, offset = remaining[count:], offset + count

    def _reserve(
        self, path: pathlib.Path, group: list[str], tensors: Mapping[str, tuple[np.dtype, Shape]]
    ) -> None:
        """Creates one file: its header, and its bytes reserved."""
        kinds = {dtype: kind for kind, dtype in DTYPES.items()}
        tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses it without
        at = 0
        for name in group:
            dtype, shape = tensors[name]
            end = at + _size(dtype, shape)
            tree[name] = {"dtype": kinds[dtype], "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(tree).encode()
        text += b" " * (-len(text) % 8)
        file = self._files.enter_context(path.open("wb", buffering=0))
        file.write(struct.pack("<Q", len(text)) + text)
        reserve = getattr(os, "posix_fallocate", lambda file, _, size: os.truncate(file, size))
        reserve(file.fileno(), 0, 8 + len(text) + at)
        for name in group:
            start = 8 + len(text) + tree[name]["data_offsets"][0]
            self._locations[name] = file.fileno(), start, *tensors[name]


def _size(dtype: np.dtype, shape: Shape) -> int:
    return dtype.itemsize * math.prod(shape)


def _groups(tensors: Mapping[str, tuple[np.dtype, Shape]], largest: int) -> Iterator[list[str]]:
    """Names in order, in groups of at most `largest` bytes where no single one is larger."""
    group: list[str] = []
    size = 0
    for name, (dtype, shape) in tensors.items():
        more = _size(dtype, shape)
        if group and size + more > largest:
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    yield group


def _no_tensors_message(folder: pathlib.Path, conversion: str) -> str:
    if not folder.is_dir():
        return f"HF_DIR={folder}: is no folder"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        how = conversion.format(folder)
        return f"HF_DIR={folder}: holds torch files, which are programs: convert them with {how}"
    return f"HF_DIR={folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}"
