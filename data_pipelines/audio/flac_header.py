"""How long a FLAC file is by its last frame, where STREAMINFO says something else (RFC 9639).

An encoder that writes into a pipe leaves 0 there, and one that is stopped what it knew last;
libsndfile stops at that number. Every frame says where it starts and how many samples it holds.
"""

from collections.abc import Iterator
import dataclasses

from data_pipelines.audio.sound_stream import SoundStream
from data_pipelines.reject import Unusable

MARK = b"fLaC"
STREAMINFO = 34  # bytes of the block that comes first
TAGS = 4096  # bytes after the last frame in which it is looked past
_FRAME_HEADER = 16  # bytes, at most
_LENGTH = 10  # bytes of STREAMINFO before its 64 bits of rate, channels, width and length
_LENGTH_BITS = 36


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A frame by its header."""

    at: int  # its first byte in the file
    number: int  # of the frame, or of its first sample where block sizes vary
    size: int  # samples of a channel


def correct_length(stream: SoundStream, start: int, name: str) -> str:
    """Corrects the length in the header of the FLAC at `start` where its last frame says more.

    Returns what is wrong where that says less, else nothing. Raises Unusable "undecodable" where
    nothing tells the length. A last frame that cannot be found leaves a length as it is: decoding
    shows whether it is true.
    """
    head = stream.read_at(start, len(MARK) + 4 + STREAMINFO)
    if len(head) < len(MARK) + 4 + STREAMINFO or head[4] & 0x7F:
        return ""
    info = head[8:]
    word = int.from_bytes(info[_LENGTH : _LENGTH + 8], "big")
    said = word & (1 << _LENGTH_BITS) - 1
    held = _held_samples(stream, start, info, said)
    if held is None and not said:
        rule = "its header (STREAMINFO) gives no length, and no last frame tells it"
        raise Unusable("undecodable", f"{name}: {rule}")
    if held is None or held == said:
        return ""
    if held < said:
        detail = f"its header (STREAMINFO) says {said} samples, its frames end at {held}"
        return f"was cut off, or its header is wrong: {detail}"
    corrected = (word >> _LENGTH_BITS << _LENGTH_BITS | held).to_bytes(8, "big")
    stream.corrections = {start + 8 + _LENGTH: corrected}
    return ""


def _held_samples(stream: SoundStream, start: int, info: bytes, said: int) -> int | None:
    """Samples up to the end of the last frame, None where that is not found.

    What looks like a frame's header may be chance: it counts where it ends as the header says,
    where the frame before it ends at its start, or where it is the first.
    """
    begin = _first_frame_place(stream, start)
    head = stream.read_at(begin, _FRAME_HEADER)
    first = _parse_frame(head, begin)
    if first is None:
        return None
    # A frame's number counts frames of one size, or samples.
    unit = 1 if head[1] & 1 else first.size
    later: _Frame | None = None
    for frame in _frames_from_the_end(stream, first, head, info):
        end = (frame.number - first.number) * unit + frame.size
        if later is None and end == said:
            return end
        if later is not None and end == (later.number - first.number) * unit:
            return end + later.size
        if frame.at == begin:
            return end
        later = frame
    return None


def _first_frame_place(stream: SoundStream, start: int) -> int:
    """Where the blocks of metadata end."""
    place, last = start + len(MARK), 0
    while not last:
        head = stream.read_at(place, 4)
        if len(head) < 4:
            break
        last = head[0] & 0x80
        place += 4 + int.from_bytes(head[1:], "big")
    return place


def _frames_from_the_end(
    stream: SoundStream, first: _Frame, head: bytes, info: bytes
) -> Iterator[_Frame]:
    """What may be frames in the last bytes of the file, the last one first.

    Only so far back that the last two must be among them, as long as verbatim samples make them.
    """
    size = stream.size()
    channels = 1 + (info[12] >> 1 & 7)
    width = 1 + ((info[12] & 1) << 4 | info[13] >> 4)  # bits a sample
    block = max(first.size, int.from_bytes(info[2:4], "big"))
    longest = block * channels * (width // 8 + 1) + 64
    end = size
    for reach in (longest, 2 * longest + TAGS):
        begin = max(first.at, size - reach)
        content = stream.read_at(begin, size - begin)
        found = content.rfind(head[:2], 0, end - begin)
        while found >= 0:
            frame = _parse_frame(content[found : found + _FRAME_HEADER], begin + found)
            if frame is not None and content[found + 2] & 15 == head[2] & 15:  # the rate's code
                yield frame
            found = content.rfind(head[:2], 0, found)
        if begin == first.at:
            return
        end = begin + 1  # where a mark of two bytes may begin before those seen


def _parse_frame(head: bytes, at: int) -> _Frame | None:
    """The frame whose header `head` starts with; None for what is none."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return None
    size_code, rate_code, channel_code = head[2] >> 4, head[2] & 15, head[3] >> 4
    if not size_code or rate_code == 15 or channel_code > 10 or head[3] & 1:
        return None
    ones = 8 - (~head[4] & 0xFF).bit_length()  # of the number, coded as UTF-8 codes characters
    if ones in (1, 8):
        return None
    number, place = head[4] & (0x7F >> ones), 5
    for byte in head[5 : 4 + ones]:
        number, place = number << 6 | byte & 0x3F, place + 1
    extra = {6: 1, 7: 2}.get(size_code, 0)
    said = int.from_bytes(head[place : place + extra], "big") + 1
    place += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if place >= len(head) or _checksum(head[:place]) != head[place]:
        return None
    if size_code == 1:
        return _Frame(at, number, 192)
    if size_code < 6:
        return _Frame(at, number, 576 << size_code - 2)
    return _Frame(at, number, said if extra else 256 << size_code - 8)


def _checksum(content: bytes) -> int:
    """The CRC of 8 bits of a frame's header: x^8 + x^2 + x + 1."""
    crc = 0
    for byte in content:
        crc = _CRC8[crc ^ byte]
    return crc


def _crc8_row(crc: int) -> int:
    for _ in range(8):
        crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc


_CRC8 = tuple(map(_crc8_row, range(256)))
