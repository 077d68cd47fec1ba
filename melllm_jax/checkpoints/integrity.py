"""Seals a checkpoint by sizes and CRC-32 sums of its files, and checks them before it is read.

A checkpoint is whole if its files match its seal or, without one, if Orbax marked its save as
completed. Reading leaves everything as it is.
"""

from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import os
import pathlib
import zlib

from melllm_jax import files
from melllm_jax.errors import Mistake
from melllm_jax.json_text import parse_json

SEAL = "sums.json"
COMMITTED, UNCOMMITTED = (
    "commit_success.txt",
    "commit_held.txt",
)  # Orbax's mark of a whole checkpoint


def newest_checkpoint(directory: pathlib.Path) -> pathlib.Path:
    """The folder of the newest whole checkpoint in a run's `checkpoints`.

    Raises Mistake where there is none.
    """
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    for step in sorted((int(name) for name in names if name.isdigit()), reverse=True):
        if find_damage(directory / str(step)) is None:
            return directory / str(step)
    raise Mistake(f"checkpoints={directory}: holds no whole checkpoint")


def checkpoint_digest(folder: pathlib.Path) -> str:
    """Hash of a whole checkpoint's content: 16 hexadecimal digits."""
    sealed = (folder / SEAL).exists()
    sums = (folder / SEAL).read_text() if sealed else json.dumps(_sums(folder))
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def write_seal(folder: pathlib.Path) -> None:
    """Write the seal: size and CRC-32 of every file. Raises OSError."""
    files.replace_file(folder / SEAL, json.dumps(_sums(folder)).encode())


def find_damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint's files; None where they are as they were written."""
    seal = folder / SEAL
    if not seal.exists():
        # Killed between Orbax's last rename and the seal, or never whole.
        return None if (folder / COMMITTED).exists() else "it was never completed"
    try:
        sums = parse_json(seal.read_bytes())
    except json.JSONDecodeError:
        return f"{SEAL} is no JSON"
    for name, expected in sums.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != expected[0]:
            return f"{name} has {path.stat().st_size} bytes, not {expected[0]}"
        if _sum(path) != expected:
            return f"{name} has changed since it was written"
    return None


def _sums(folder: pathlib.Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file by its path in the folder."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib lets go of the interpreter's lock
        paths = _files(folder)
        found = pool.map(_sum, paths)
        return {str(path.relative_to(folder)): x for path, x in zip(paths, found, strict=True)}


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _sum(path: pathlib.Path) -> list[int]:
    """Size in bytes and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
