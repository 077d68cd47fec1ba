"""Finds the places that paths name, and writes files and folders whole or not at all.

A path is one of this machine, plain or as file://, or of a bucket: resolve_uri, place, list_folder.

On a disk a file or folder is written beside its place and renamed to its name. In a bucket, a path
with "://", an object is one request, which is all or nothing, and making it anew is one that the
store refuses where it exists.

write_text, write_bytes, create_text: small files, which any number of processes may write at once
and which outlive a crash of the machine: they are flushed, and so is the name. new_file,
scratch_path, move_into_place: large files of one writer, which are not flushed. new_folder: a
folder of files.
"""

from collections.abc import Iterator
import contextlib
import errno
import importlib.util
import os
import pathlib
import re
import shutil
import tempfile
import urllib.parse
import uuid

from etils import epath
import fsspec

from melllm_jax import interrupts
from melllm_jax.errors import Fault, Mistake

AnyPath = os.PathLike[str]
_BUCKET = re.compile(r"(gs|s3|az|hf):/")  # pathlib makes one / of two
_FLAG_OF_URI = re.compile(r"(--[\w.-]+=)?(?=[A-Za-z][\w+.-]*://)")


def resolve_uri(path: str) -> str:
    """The path that file:// names, any other as it is. Raises Mistake for an unknown scheme."""
    scheme, mark, rest = path.partition("://")
    if not mark:
        return path
    if scheme.lower() == "file":
        host, slash, below = rest.partition("/")
        return urllib.parse.unquote(slash + below if host == "localhost" else rest)
    try:
        epath.Path(f"{scheme}://")
    except KeyError as error:
        rule = "must be a path of this machine, or of a bucket: gs://, s3://, az:// or hf://"
        raise Mistake(f"{path}: nothing reads {scheme}://: {rule}") from error
    return path


def resolve_word(word: str) -> str:
    """A word of a command line, a path or --flag=PATH, with the path as `resolve_uri` has it."""
    found = _FLAG_OF_URI.match(word)
    return word if found is None else found[0] + resolve_uri(word[found.end() :])


def local_path(field: str, path: AnyPath | str) -> pathlib.Path:
    """The path, which must be on this machine. Raises Mistake, naming `field`, for a bucket's."""
    found = resolve_uri(os.fspath(path))
    if _BUCKET.match(found):
        raise Mistake(f"{field}={path}: must be on a disk: mount the bucket, and name that")
    return pathlib.Path(found)


def place(path: epath.PathLike) -> epath.Path:
    """The place that a path names.

    Raises Mistake for an unknown scheme, and where what reads a bucket is not installed.
    """
    found = resolve_uri(os.fspath(path))
    if _is_remote(found) and importlib.util.find_spec("tensorflow") is None:  # it reads them too
        try:
            fsspec.get_filesystem_class(found.partition("://")[0])
        except ImportError as error:
            raise Mistake(f"{path}: cannot be read here: {error}") from error
    return epath.Path(found)


def list_folder(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder, in order of names, without what macOS adds to it."""
    return sorted(path for path in folder.iterdir() if not is_litter(path.name))


def is_litter(name: str) -> bool:
    """Whether macOS puts files of this name beside others: they hold nothing of the user's."""
    return name.startswith("._") or name in (".DS_Store", "__MACOSX")


def write_text(path: AnyPath, text: str) -> None:
    """Write a small file, in place of what there was. Raises Fault where that cannot be."""
    write_bytes(path, text.encode())


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Write a small file, in place of what there was. Raises Fault where that cannot be."""
    with _errors_as_faults(path):
        replace_file(path, content)


def replace_file(path: AnyPath, content: bytes) -> None:
    """`write_bytes` that raises OSError. What is no plain file, as /dev/stdout, is written to."""
    if _is_remote(path) or (os.path.exists(path) and not os.path.isfile(path)):
        epath.Path(path).write_bytes(content)
        return
    with _scratch_file(path, content) as scratch:
        os.replace(scratch, path)


def create_text(path: AnyPath, text: str) -> bool:
    """Write a small file if there is none of that name: whether it was this call that did.

    Of any number of callers at once, one gets True. Raises Fault where it cannot be written.
    """
    with _errors_as_faults(path):
        if not _is_remote(path):
            with _scratch_file(path, text.encode()) as scratch:
                return _link(scratch, path)
        store, name = fsspec.core.url_to_fs(os.fspath(path))
        try:
            store.pipe_file(name, text.encode(), mode="create")
        except FileExistsError:
            return False
        return True


@contextlib.contextmanager
def new_file(path: AnyPath) -> Iterator[pathlib.Path]:
    """A scratch path for a large file, which is moved to `path` when the block ends well.

    After an error in the block nothing is left. Raises Fault for an OSError.
    """
    with _errors_as_faults(path):
        scratch = scratch_path(path)
        try:
            yield scratch
            move_into_place(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def scratch_path(path: AnyPath) -> pathlib.Path:
    """Where a file is written before it becomes `path`: beside it, or on this machine."""
    if _is_remote(path):
        handle, scratch = tempfile.mkstemp(os.path.basename(path))
        os.close(handle)
        return pathlib.Path(scratch)
    return pathlib.Path(os.fspath(path) + ".part")


def move_into_place(scratch: pathlib.Path, path: AnyPath) -> None:
    """Renames `scratch`, or uploads it: an object appears in a bucket only once it is whole."""
    if _is_remote(path):
        epath.Path(scratch).copy(path, overwrite=True)
        scratch.unlink()
    else:
        os.replace(scratch, path)


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


@contextlib.contextmanager
def _errors_as_faults(path: AnyPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Fault(f"{path}: cannot be written: {error.strerror or error}") from error


def _is_remote(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def _link(scratch: pathlib.Path, path: AnyPath) -> bool:
    """Give a file its name too, if nothing has it: whether that was so."""
    try:
        os.link(scratch, path)
    except FileExistsError:
        # Where NFS's answer was lost, the request is sent again, and meets its own work.
        return scratch.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return _create(path, scratch.read_bytes())
    return True


def _create(path: AnyPath, content: bytes) -> bool:
    """Make a file on a system without links, as mounted buckets are: it is empty for a moment."""
    try:
        with open(path, "xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _scratch_file(path: AnyPath, content: bytes) -> Iterator[pathlib.Path]:
    """A file beside `path` with that content, flushed; gone afterwards, if it is still there."""
    final = pathlib.Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield scratch
        _sync_folder(final.parent)
    finally:
        scratch.unlink(missing_ok=True)


def _sync_folder(folder: pathlib.Path) -> None:
    """Let the names in a folder outlive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
