"""An object store in memory that answers to s3://: no renames, no links, creation if absent."""

import sys

from etils import epath
from fsspec.implementations.memory import MemoryFileSystem


def bucket(monkeypatch):
    """An empty folder in it."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", MemoryFileSystem)
    return epath.Path("s3://bucket/sweep")
