"""Small files that many processes read and write: each is there whole, or not at all.

On a disk a file is written beside its place, flushed, and renamed or linked to its name. In a
bucket an object is one request, which is all or nothing, and making it anew is one that the store
refuses where it exists.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import uuid

from etils import epath
import fsspec

from melllm_jax.errors import Fault


def write(path: epath.Path, text: str) -> None:
    """Put `text` there in place of what there was. Raises Fault where that cannot be."""
    try:
        if _remote(path):
            store, name = fsspec.core.url_to_fs(os.fspath(path))
            store.pipe_file(name, text.encode())
            return
        with _beside(path, text) as scratch:
            os.replace(scratch, path)
    except OSError as error:
        raise Fault(f"{path}: cannot be written: {error.strerror or error}") from error


def create(path: epath.Path, text: str) -> bool:
    """Put `text` there if nothing is: whether it was this call that did.

    Of any number of callers at once, one gets True. Raises Fault where it cannot be written.
    """
    try:
        if not _remote(path):
            with _beside(path, text) as scratch:
                return _linked(scratch, path)
        store, name = fsspec.core.url_to_fs(os.fspath(path))
        try:
            store.pipe_file(name, text.encode(), mode="create")
        except FileExistsError:
            return False
        return True
    except OSError as error:
        raise Fault(f"{path}: cannot be written: {error.strerror or error}") from error


def _linked(scratch: pathlib.Path, path: epath.Path) -> bool:
    """Give a file its name too, if nothing has it: whether that was so."""
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    return True


def _remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


@contextlib.contextmanager
def _beside(path: epath.Path, text: str) -> Iterator[pathlib.Path]:
    """A file beside `path` that holds `text`, flushed; gone afterwards, if it is still there."""
    place = pathlib.Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}")
    try:
        with scratch.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield scratch
        _keep(place.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _keep(folder: pathlib.Path) -> None:
    """Let the names in a folder outlive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
