"""What libsndfile reads a sound file through: its bytes, some of them corrected, errors kept.

libsndfile calls back into Python, where an exception would end as a traceback on standard error
and as a file that seems to stop there.
"""

from collections.abc import Mapping
import io
from typing import Any


class SoundStream(io.BufferedIOBase):
    """Another stream, in which `corrections` stand at their places; `error` is what its disk said.

    `stream` stays open. A place that cannot be gone to leaves it where it is.
    """

    def __init__(self, stream: io.BufferedIOBase) -> None:
        super().__init__()
        self.corrections: Mapping[int, bytes] = {}  # by the position of their first byte
        self.error: OSError | None = None
        self._stream = stream

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` and returns how many bytes there were, 0 after an error."""
        try:
            start = self._stream.tell() if self.corrections else 0
            count = self._stream.readinto(buffer)
        except OSError as error:
            self.error = error
            return 0
        for at, content in self.corrections.items():
            low, high = max(at, start), min(at + len(content), start + count)
            if low < high:
                buffer[low - start : high - start] = content[low - at : high - at]
        return count

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, to the end where it is negative."""
        count = self.left() if size is None or size < 0 else size
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def read_at(self, place: int, size: int) -> bytes:
        """Up to `size` bytes from `place` on."""
        self.seek(place)
        return self.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place, if there can be such a one."""
        try:
            return self._stream.seek(offset, whence)
        except (OSError, OverflowError, ValueError):  # before the start, or beyond 2^63
            return self._stream.tell()

    def tell(self) -> int:
        """The place where it is."""
        return self._stream.tell()

    def size(self) -> int:
        """How many bytes there are; goes to their end."""
        return self.seek(0, io.SEEK_END)

    def left(self) -> int:
        """How many bytes follow; goes to their end."""
        place = self.tell()
        left = self.size() - place
        self.seek(place)
        return left
