"""A folder that is there whole or not at all."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import shutil

from melllm_jax import interrupt
from melllm_jax.errors import Mistake


@contextlib.contextmanager
def made(field: str, target: pathlib.Path, needed: int) -> Iterator[pathlib.Path]:
    """A new folder beside `target` that takes its place when the block ends well.

    After a fault nothing is left of it; what a killed process left is removed first. Raises
    Mistake, naming `field`, where `target` exists or the disk cannot hold the `needed` bytes.
    """
    if target.exists():
        raise Mistake(f"{field}={target}: exists already; give a new folder")
    scratch = target.with_name(f".{target.name}.unfinished")
    missing = [path for path in target.parents if not path.exists()]  # nearest first
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        if shutil.disk_usage(target.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        scratch.mkdir()
        yield scratch
        scratch.rename(target)
    except OSError as error:
        _removed(scratch)
        raise Mistake(f"{field}={target}: {_why(error, target, needed)}") from error
    finally:
        _removed(scratch)
        for path in missing:
            with contextlib.suppress(OSError):  # it holds `target`, or never came to be
                path.rmdir()


def _removed(scratch: pathlib.Path) -> None:
    with interrupt.held_back():  # a second Control-C, for whom it takes too long
        shutil.rmtree(scratch, ignore_errors=True)


def _why(error: OSError, target: pathlib.Path, needed: int) -> str:
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        free = shutil.disk_usage(target.parent).free
        return f"no space on disk: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} are free"
    return f"cannot be written: {error}"
