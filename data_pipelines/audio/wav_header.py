"""How many bytes of a WAV file are its sound, where the data chunk says something else.

A size that an encoder wrote before it knew the length is taken for "to the end of the file"; one
that says less than there is leaves bytes behind that are no chunk, and the file is refused.
"""

import struct

from data_pipelines.audio.sound_stream import SoundStream
from data_pipelines.reject import Unusable

ORDERS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<"}
UNKNOWN_SIZE = 0x7FFF_0000  # a WAV written into a pipe claims this many bytes or more
UNKNOWN_ROUND = 1_000_000_000  # or this many, or twice: a number that a programmer chose
IN_DS64 = 0xFFFF_FFFF  # of an RF64: the size is one of 64 bits, in the chunk ds64
# Chunks that may follow the sound, however damaged; another one must fit into the file.
KNOWN_CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"JUNK", b"junk", b"PAD ", b"cue ", b"fact")
NO_CHUNK = (*ORDERS, b"fLaC", b"OggS")  # another file, appended
PADDING = 4096  # zero bytes that may fill up a block of a disk


def endless_header(rate: int) -> bytes:
    """The header of a WAV whose length is not known yet: 16-bit samples of one channel follow."""
    chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    data = struct.pack("<4sI", b"data", UNKNOWN_SIZE)
    return struct.pack("<4sI4s", b"RIFF", UNKNOWN_SIZE + 36, b"WAVE") + chunk + data


def correct_size(stream: SoundStream, start: int, name: str) -> None:
    """Corrects the size of the data chunk of the WAV at `start` where it stands for "unknown".

    Raises Unusable "undecodable" where the file was cut off, and where the chunk says less than
    there is.
    """
    head = stream.read_at(start, 12)
    if head[:4] not in ORDERS or head[8:] != b"WAVE":
        return
    order, total = ORDERS[head[:4]], stream.size()
    place, wide = start + 12, 0  # wide: where ds64 has the size of the data
    while True:
        kind, said = _chunk(stream, place, order)
        if kind == b"data" or not kind:
            break
        if kind == b"ds64":
            wide = place + 16
        place += 8 + said + said % 2
    if not kind:
        return
    field, size = (place + 4, 4)
    if head[:4] == b"RF64" and wide and said == IN_DS64:
        field, size = wide, 8
        said = int.from_bytes(stream.read_at(wide, 8), "little")
    sound = place + 8
    rest = total - sound
    riff_ends_there = struct.unpack(f"{order}I", head[4:8])[0] + 8 + start == total
    if said > rest:
        unknown = said >= UNKNOWN_SIZE or said % UNKNOWN_ROUND == 0 or said == total
        if not (unknown or riff_ends_there):
            detail = f"its data chunk says {said} bytes, {rest} are there"
            raise Unusable("undecodable", f"{name}: was cut off: {detail}")
    elif said or _is_chunk(stream, sound, order, total):
        _check_end(stream, sound + said, order, total, name)
        return
    if rest < 1 << 8 * size:
        content = rest.to_bytes(size, "little" if order == "<" else "big")
        stream.corrections = {field: content}


def _chunk(stream: SoundStream, place: int, order: str) -> tuple[bytes, int]:
    """Name and size of the chunk at `place`; no name where the file ends."""
    head = stream.read_at(place, 8)
    if len(head) < 8:
        return b"", 0
    return head[:4], struct.unpack(f"{order}I", head[4:])[0]


def _is_chunk(stream: SoundStream, place: int, order: str, total: int) -> bool:
    kind, size = _chunk(stream, place, order)
    if kind in KNOWN_CHUNKS:
        return True
    named = all(0x20 <= byte < 0x7F for byte in kind) and kind not in NO_CHUNK
    return bool(kind) and named and place + 8 + size <= total


def _check_end(stream: SoundStream, stop: int, order: str, total: int, name: str) -> None:
    """Raises Unusable where what follows the sound is neither a chunk nor padding nor a tag."""
    left = total - stop
    if left < 8 or any(_is_chunk(stream, place, order, total) for place in (stop, stop + 1)):
        return
    content = stream.read_at(stop, PADDING)
    if left <= PADDING and not any(content) or content.startswith((b"TAG", b"ID3", b"APETAGEX")):
        return
    detail = "its header says that the sound ends, and what follows is no chunk of a WAV"
    raise Unusable("undecodable", f"{name}: {left} bytes lie where {detail}")
