"""Writes log-mel as a PNG file with zlib alone, since matplotlib is an extra.

PNG (Portable Network Graphics) Specification, third edition, https://www.w3.org/TR/png-3/.
"""

import struct
import zlib

from jaxtyping import Float, UInt8
import numpy as np

WIDEST = 1200  # columns: longer sound is averaged into so many
SHADES = 256
# From silence to the loudest, dark to light in even steps, so that it reads in grey as well.
STOPS = ("#0b0724", "#3b0f70", "#8c2981", "#de4968", "#fe9f6d", "#fcfdbf")


def mel_png(mel: Float[np.ndarray, "frames m"]) -> bytes:
    """A PNG of one column a frame and one row a band, the lowest band at the bottom.

    Colours span the values from the 1st percentile to the 99.5th. NaN and -inf are drawn as the
    lowest, +inf as the highest.
    """
    mel = np.nan_to_num(_average_columns(mel), nan=-np.inf, posinf=np.inf)
    known = mel[np.isfinite(mel)]
    low, high = np.percentile(known, (1, 99.5)) if known.size else (0.0, 1.0)
    scaled = (mel - low) / max(high - low, 1e-6)
    shades = np.clip(np.nan_to_num(scaled, neginf=0, posinf=1), 0, 1) * (SHADES - 1)
    return palette_png(np.rint(shades).astype(np.uint8).T[::-1])


def palette_png(pixels: UInt8[np.ndarray, "rows columns"]) -> bytes:
    """A PNG of shades 0 to 255, one byte a pixel."""
    rows, columns = pixels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)  # 8 bits, colours by palette
    unfiltered = np.zeros((rows, 1), np.uint8)
    lines = np.concatenate([unfiltered, pixels], axis=1).tobytes()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", _palette()),
            _chunk(b"IDAT", zlib.compress(lines, 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _average_columns(mel: np.ndarray) -> np.ndarray:
    """`mel` in at most WIDEST columns, each the mean of its frames."""
    if len(mel) <= WIDEST:
        return mel.astype(np.float64)
    starts = np.arange(WIDEST) * len(mel) // WIDEST
    sums = np.add.reduceat(mel, starts, axis=0, dtype=np.float64)
    return sums / np.diff([*starts, len(mel)])[:, None]


def _palette() -> bytes:
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in STOPS])
    positions = np.linspace(0, len(STOPS) - 1, SHADES)
    channels = [np.interp(positions, np.arange(len(STOPS)), stops[:, i]) for i in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8).tobytes()


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
