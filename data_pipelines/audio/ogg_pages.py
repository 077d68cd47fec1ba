"""Pages of an Ogg stream, whose serial number libsndfile draws at random (RFC 3533)."""

import zlib

_BIT_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def without_serial(content: bytes) -> bytes:
    """The stream with serial number 0 and the checksum of each page computed again.

    Its polynomial is 0x04c11db7 from 0, the field itself counted as 0.
    """
    pages = bytearray(content)
    start = 0
    while start < len(pages):
        segments = pages[start + 26]
        body = start + 27 + segments
        stop = body + sum(pages[start + 27 : body])
        pages[start + 14 : start + 18] = pages[start + 22 : start + 26] = bytes(4)
        pages[start + 22 : start + 26] = _checksum(pages[start:stop]).to_bytes(4, "little")
        start = stop
    return bytes(pages)


def _checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC: zlib's with bits in the other order, starting at 0 and not inverted at the end."""
    mirrored = zlib.crc32(page.translate(_BIT_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{mirrored:032b}"[::-1], 2)
