"""Decodes sound files to 16 kHz mono float32 and encodes them; alone imports soundfile and soxr.

A file that cannot be read in full is refused with a reason, never shortened: `Unusable.reason` is
what the pipeline counts.
"""

import functools
import io
import os
import pathlib
import re
import sys
from typing import Literal
import zlib

from jaxtyping import Float32, Int16
import numpy as np
import soundfile
import soxr

from data_pipelines.reject import Unusable
from melllm_jax.errors import Fault
from melllm_jax.features.mel_filters import SAMPLE_RATE

MIN_RATE, MAX_RATE = 8_000, 48_000  # Hz: below telephone speech nothing is left to recognise
UNKNOWN_SIZE = 0x7FFF_0000  # a WAV written into a pipe claims this many bytes or more
TRUNCATION_LOG = re.compile(  # libsndfile's log on a WAV, and on an Ogg file in three places
    r"data : (\d+) \(should be (\d+)\)|File ended unexpectedly|lacks an end-of-stream|Junk after"
)

# 40 dB over full scale: floats beyond it are damaged, or on the scale of integers.
MAX_AMPLITUDE = 100.0
OPUS_LEVEL = 0.9  # libsndfile's scale from most bits (0) to fewest (1)
BIT_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# Samples of all channels decoded at a time: a damaged header may promise terabytes.
BLOCK_SAMPLES = 1 << 22
# In these libsndfile 1.2 may seek to a wrong sample, by 128 at the end of Vorbis.
LOSSY_FORMATS = ("MP3", "OGG")

AudioReason = Literal["missing", "undecodable", "empty", "not finite", "rate"]


def decode_audio(
    source: bytes | str | os.PathLike[str],
    name: str | None = None,
    part: tuple[float, float] | None = None,
    channel: int | None = None,
) -> Float32[np.ndarray, "w"]:
    """Samples in [-1, 1] at 16 kHz of a wav, flac, mp3 or ogg (Vorbis, Opus) file or its bytes.

    part: start and length in seconds of the range to decode, cut at the end of the sound. channel:
    the only one to read, from 0; else all are averaged. Rates from 8 to 48 kHz are resampled.
    Errors name the file, or bytes by `name`. Raises Unusable: "missing", also where the channel is;
    "undecodable", also where a file was cut off (which an MP3 without a length header does not
    show); "rate"; "empty"; "not finite".
    """
    name = name or _source_name(source)
    try:
        with _open_stream(source, name) as stream, soundfile.SoundFile(stream) as file:
            _check_header(file, name)
            if part is not None and file.format not in LOSSY_FORMATS:
                sound = _read_range(file, *part, name)
            else:
                sound = _read_samples(file)
                _check_complete(file, len(sound), stream, name)
                if part is not None:
                    sound = sound[_frame_range(file, len(sound), *part, name)]
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise Unusable("undecodable", f"{name}: is no sound: {error.error_string}") from error
    wave = to_mono(sound, channel, name)
    peak = max(wave.max(initial=0.0), -wave.min(initial=0.0))
    if not peak <= MAX_AMPLITUDE:  # also where it is NaN
        raise Unusable("not finite", f"{name}: holds samples up to {peak:g}: full scale is 1")
    wave = resample(wave, rate)
    if not wave.size:
        raise Unusable("empty", f"{name}: holds no sample at {SAMPLE_RATE} Hz")
    return wave


def to_mono(
    sound: Float32[np.ndarray, "w c"], channel: int | None, name: str
) -> Float32[np.ndarray, "w"]:
    """One channel of the sound, the mean of all where `channel` is None. Raises Unusable."""
    count = sound.shape[1]
    if channel is None:
        return sound[:, 0] if count == 1 else sound.mean(axis=1)
    if channel >= count:
        raise Unusable("missing", f"{name}: channel={channel}: has {count} channels, from 0")
    return np.ascontiguousarray(sound[:, channel])


def resample(wave: Float32[np.ndarray, "w"], rate: int) -> Float32[np.ndarray, "resampled"]:
    """The sound at 16 kHz instead of `rate` Hz, by soxr's HQ filter (20 bits)."""
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ")
    return np.ascontiguousarray(wave)


def read_duration(source: bytes | str | os.PathLike[str], name: str | None = None) -> float:
    """Seconds of sound, from the header alone. Raises Unusable as `decode_audio`."""
    name = name or _source_name(source)
    try:
        with _open_stream(source, name) as stream, soundfile.SoundFile(stream) as file:
            _check_header(file, name)
            return file.frames / file.samplerate
    except soundfile.LibsndfileError as error:
        raise Unusable("undecodable", f"{name}: is no sound: {error.error_string}") from error


def to_int16(wave: Float32[np.ndarray, "w"]) -> Int16[np.ndarray, "w"]:
    """Samples in [-1, 1) as whole numbers of 16 bits, those outside clipped."""
    return np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)


def to_flac(wave: Float32[np.ndarray, "w"], rate: int = SAMPLE_RATE) -> bytes:
    """FLAC of 16 bits; samples outside [-1, 1) are clipped. 16-bit sound comes back equal."""
    stream = io.BytesIO()
    soundfile.write(stream, to_int16(wave), rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def to_opus(wave: Float32[np.ndarray, "w"]) -> bytes:
    """Ogg Opus of 16 kHz sound at about 31 kbit/s, always the same bytes; decodes to w samples.

    Samples outside [-1, 1] are clipped. libsndfile gives each stream a random serial number: here
    it is 0, and the checksum of each page is computed again (RFC 3533: polynomial 0x04c11db7 from
    0, the field itself counted as 0).
    """
    stream = io.BytesIO()
    level = OPUS_LEVEL
    samples = np.clip(wave, -1.0, 1.0)
    soundfile.write(
        stream, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level
    )
    pages = bytearray(stream.getbuffer())
    start = 0
    while start < len(pages):
        segments = pages[start + 26]
        body = start + 27 + segments
        stop = body + sum(pages[start + 27 : body])
        pages[start + 14 : start + 18] = pages[start + 22 : start + 26] = bytes(4)
        pages[start + 22 : start + 26] = _ogg_checksum(pages[start:stop]).to_bytes(4, "little")
        start = stop
    return bytes(pages)


def _ogg_checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC: zlib's with bits in the other order, starting at 0 and not inverted at the end."""
    mirrored = zlib.crc32(page.translate(BIT_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _source_name(source: bytes | str | os.PathLike[str]) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)


def _open_stream(source: bytes | str | os.PathLike[str], name: str) -> io.BufferedIOBase:
    """A stream over the bytes of `source`. Raises Unusable where it is missing or empty."""
    if not isinstance(source, bytes) and not pathlib.Path(source).is_file():
        raise Unusable("missing", f"{name}: no such file")
    stream: io.BufferedIOBase
    if isinstance(source, bytes):
        stream = io.BytesIO(source)
    else:
        try:
            stream = open(source, "rb")  # noqa: SIM115  the caller closes it
        except OSError as error:
            raise Fault(f"{name}: cannot be read: {error.strerror}") from error
    if not stream.seek(0, io.SEEK_END):
        stream.close()
        raise Unusable("empty", f"{name}: holds no byte")
    stream.seek(0)
    return stream


def _check_header(file: soundfile.SoundFile, name: str) -> None:
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        rule = f"must be from {MIN_RATE} to {MAX_RATE} Hz"
        raise Unusable("rate", f"{name}: sample rate {file.samplerate}: {rule}")
    cut = TRUNCATION_LOG.search(file.extra_info)
    if cut and (cut[1] is None or int(cut[2]) < int(cut[1]) < UNKNOWN_SIZE):
        raise Unusable("undecodable", f"{name}: was cut off: {cut[0]}")
    if not file.frames:
        raise Unusable("empty", f"{name}: holds no sample")


def _read_range(
    file: soundfile.SoundFile, start: float, length: float, name: str
) -> Float32[np.ndarray, "w c"]:
    frames = _frame_range(file, file.frames, start, length, name)
    file.seek(frames.start)
    sound = _read_samples(file, frames.stop - frames.start)
    if len(sound) < frames.stop - frames.start:
        raise Unusable("undecodable", f"{name}: was cut off after offset={start} s")
    return sound


def _frame_range(
    file: soundfile.SoundFile, held: int, start: float, length: float, name: str
) -> slice:
    """The frames of a range in seconds, cut at the `held` frames of the file."""
    first = round(start * file.samplerate)
    if first >= held:
        raise Unusable("empty", f"{name}: ends before offset={start} s")
    return slice(first, min(first + round(length * file.samplerate), held))


def _read_samples(
    file: soundfile.SoundFile, limit: int = sys.maxsize
) -> Float32[np.ndarray, "w c"]:
    """The samples of all channels up to `limit` frames, however many the header promises."""
    frames = min(max(BLOCK_SAMPLES // file.channels, 1), limit)
    blocks = [file.read(frames, dtype="float32", always_2d=True)]
    while len(blocks[-1]) == frames and (limit := limit - frames):
        frames = min(frames, limit)
        blocks.append(file.read(frames, dtype="float32", always_2d=True))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _check_complete(
    file: soundfile.SoundFile, decoded: int, stream: io.BufferedIOBase, name: str
) -> None:
    """Raises Unusable where less was decoded than the file holds.

    The length of an MP3 without a length header is guessed from its first bit rate. Too high a
    guess is no fault of the sound; one too low leaves sound unread, which shows as bytes left over,
    of which a tenth and 512 may be tags. With a header, one MP3 frame may be missing: some encoders
    count the header's own.
    """
    tolerance = 0
    if file.format == "MP3":
        read = stream.tell()
        left = stream.seek(0, io.SEEK_END) - read
        if left > read // 10 + 512:
            advice = "write it anew with a length (Xing) header"
            raise Unusable("undecodable", f"{name}: {left} bytes lie past its length: {advice}")
        tolerance = 1152 if _states_length(stream) else file.frames
    if decoded < file.frames - tolerance:
        raise Unusable("undecodable", f"{name}: was cut off: {decoded} of {file.frames} samples")


def _states_length(stream: io.BufferedIOBase) -> bool:
    """Whether an MP3 has a Xing, Info or VBRI header in its first frame, after any ID3v2 tag."""
    stream.seek(0)
    head = stream.read(10)
    if head[:3] == b"ID3":  # its size is four groups of 7 bits
        size = functools.reduce(lambda size, group: size << 7 | group, head[6:10], 0)
        stream.seek(10 + size)
    else:
        stream.seek(0)
    frame = stream.read(200)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))
