"""Small files that many processes read and write: each is there whole, or not at all.

On a disk a file is written beside its place, flushed, and renamed or linked to its name. In a
bucket an object is one request, which is all or nothing, and making it anew is one that the store
refuses where it exists.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
import uuid

from etils import epath
import fsspec

from melllm_jax import interrupts
from melllm_jax.errors import Fault, Mistake


def write_text(path: epath.Path, text: str) -> None:
    """Put `text` there in place of what there was. Raises Fault where that cannot be."""
    try:
        if _is_remote(path):
            store, name = fsspec.core.url_to_fs(os.fspath(path))
            store.pipe_file(name, text.encode())
            return
        with _scratch_file(path, text) as scratch:
            os.replace(scratch, path)
    except OSError as error:
        raise Fault(f"{path}: cannot be written: {error.strerror or error}") from error


def create_text(path: epath.Path, text: str) -> bool:
    """Put `text` there if nothing is: whether it was this call that did.

    Of any number of callers at once, one gets True. Raises Fault where it cannot be written.
    """
    try:
        if not _is_remote(path):
            with _scratch_file(path, text) as scratch:
                return _link(scratch, path)
        store, name = fsspec.core.url_to_fs(os.fspath(path))
        try:
            store.pipe_file(name, text.encode(), mode="create")
        except FileExistsError:
            return False
        return True
    except OSError as error:
        raise Fault(f"{path}: cannot be written: {error.strerror or error}") from error


def _link(scratch: pathlib.Path, path: epath.Path) -> bool:
    """Give a file its name too, if nothing has it: whether that was so."""
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    return True


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


@contextlib.contextmanager
def _scratch_file(path: epath.Path, text: str) -> Iterator[pathlib.Path]:
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
        _sync_folder(place.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _sync_folder(folder: pathlib.Path) -> None:
    """Let the names in a folder outlive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_folder(field: str, target: pathlib.Path, needed: int) -> Iterator[pathlib.Path]:
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
        _remove(scratch)
        raise Mistake(f"{field}={target}: {_reason(error, target, needed)}") from error
    finally:
        _remove(scratch)
        for path in missing:
            with contextlib.suppress(OSError):  # it holds `target`, or never came to be
                path.rmdir()


def _remove(scratch: pathlib.Path) -> None:
    with interrupts.defer_interrupts():  # a second Control-C, for whom it takes too long
        shutil.rmtree(scratch, ignore_errors=True)


def _reason(error: OSError, target: pathlib.Path, needed: int) -> str:
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        free = shutil.disk_usage(target.parent).free
        return f"no space on disk: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} are free"
    return f"cannot be written: {error}"


def write_bytes(final: epath.Path, content: bytes) -> None:
    """A file that appears whole or not at all. Raises Fault."""
    try:
        part = scratch_path(final)
        part.write_bytes(content)
        move_into_place(part, final)
    except OSError as error:
        raise Fault(f"{final}: cannot be written: {error}") from error


def move_into_place(part: pathlib.Path, final: epath.Path) -> None:
    """Renames `part`, or uploads it: an object appears in a bucket only once it is whole."""
    if "://" in os.fspath(final):
        epath.Path(part).copy(final, overwrite=True)
        part.unlink()
    else:
        os.replace(part, os.fspath(final))


def scratch_path(final: epath.Path) -> pathlib.Path:
    """Where a file is written before it becomes `final`: beside it, or on this machine."""
    if "://" in os.fspath(final):
        handle, path = tempfile.mkstemp(final.name)
        os.close(handle)
        return pathlib.Path(path)
    return pathlib.Path(os.fspath(final) + ".part")
