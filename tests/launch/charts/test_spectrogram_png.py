import io
import struct
import zlib

import numpy as np
import pytest

from launch.charts import spectrogram_png

image = pytest.importorskip("PIL.Image", reason="another reader of PNG than the writer")


def opened(content):
    picture = image.open(io.BytesIO(content))
    picture.load()
    return picture


def test_indexed_pixels_come_back_through_another_reader():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    picture = opened(spectrogram_png.palette_png(pixels))
    assert (picture.size, picture.mode) == ((7, 5), "P")
    np.testing.assert_array_equal(np.asarray(picture), pixels)
    assert picture.getpalette()[:3] == [0x0B, 0x07, 0x24]
    assert picture.getpalette()[-3:] == [0xFC, 0xFD, 0xBF]


def test_indexed_chunks_carry_their_own_sums():
    content = spectrogram_png.palette_png(np.zeros((1, 1), np.uint8))
    place, names = 8, []
    while place < len(content):
        (size,) = struct.unpack_from(">I", content, place)
        body = content[place + 4 : place + 8 + size]
        assert struct.unpack_from(">I", content, place + 8 + size)[0] == zlib.crc32(body)
        names.append(body[:4])
        place += 12 + size
    assert names == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]


def test_mel_picture_has_time_across_and_the_lowest_band_at_the_bottom():
    mel = np.zeros((30, 8), np.float32)
    mel[10:, 0] = 1.0
    shades = np.asarray(opened(spectrogram_png.mel_png(mel)))
    assert shades.shape == (8, 30)
    assert (shades[-1, 10:] == 255).all() and (shades[:-1] == 0).all() and shades[-1, 9] == 0


def test_mel_picture_of_long_sound_is_averaged_into_its_widest():
    mel = np.repeat(np.arange(2.0, dtype=np.float32), spectrogram_png.WIDEST)[:, None] * np.ones(
        4, np.float32
    )
    shades = np.asarray(opened(spectrogram_png.mel_png(mel)))
    assert shades.shape == (4, spectrogram_png.WIDEST)
    half = spectrogram_png.WIDEST // 2
    assert (shades[:, :half] == 0).all() and (shades[:, half:] == 255).all()


def test_mel_picture_of_what_is_not_finite_or_all_equal_is_drawn():
    mel = np.full((4, 2), -5.0, np.float32)
    mel[0, 0], mel[1, 1] = np.nan, np.inf
    shades = np.asarray(opened(spectrogram_png.mel_png(mel)))
    assert shades[1, 0] == 0 and shades[0, 1] == 255
    assert (
        np.asarray(opened(spectrogram_png.mel_png(np.full((3, 2), np.nan, np.float32)))).max() == 0
    )
