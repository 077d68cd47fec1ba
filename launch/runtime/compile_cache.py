"""XLA's compiled programs in a folder on disk, so that a resumed run does not compile again."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import tempfile

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER = str(
    pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "melllm/compiled"
)


@contextlib.contextmanager
def use_folder(folder: str) -> Iterator[None]:
    """A context in which compiled programs are written to `folder`, and read from there.

    JAX's own setting comes first, where it is made. Where the folder cannot be written, programs
    are compiled as if it were "": that costs time, and no run.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None or not _writable(folder):
        yield
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


def _writable(folder: str) -> bool:
    if not folder:
        return False
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
