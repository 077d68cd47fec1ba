"""Decodes sound files to mono float32 and encodes them; alone imports soundfile.

A file that cannot be read in full is refused with a reason, never shortened: `Unusable.reason` is
what the pipeline counts.
"""

from collections.abc import Iterator
import contextlib
import errno
import io
import os
import re
import stat
import sys
from typing import Literal

from jaxtyping import Float32, Int16
import numpy as np
import soundfile

from data_pipelines.audio import flac_header, mp3_header, ogg_pages, wav_header
from data_pipelines.audio.sound import MAX_AMPLITUDE, MAX_RATE, MIN_RATE, Sound, to_mono
from data_pipelines.audio.sound_stream import SoundStream
from data_pipelines.reject import Unusable
from melllm_jax.errors import Fault
from melllm_jax.features.mel_filters import SAMPLE_RATE

TRUNCATION_LOG = re.compile(  # libsndfile's log on a WAV, and on an Ogg file in three places
    r"data : (\d+) \(should be (\d+)\)|File ended unexpectedly|lacks an end-of-stream|Junk after"
)

# What the system says of a path that names no file, and not of a disk in trouble.
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
OPUS_LEVEL = 0.9  # libsndfile's scale from most bits (0) to fewest (1)
# Samples of all channels decoded at a time: a damaged header may promise terabytes.
BLOCK_SAMPLES = 1 << 22
# In these libsndfile 1.2 may seek to a wrong sample, by 128 at the end of Vorbis.
LOSSY_FORMATS = ("MP3", "OGG")
AudioReason = Literal[
    "missing", "undecodable", "empty", "not finite", "rate", "channels cancel each other"
]


def decode_audio(
    source: bytes | str | os.PathLike[str],
    name: str | None = None,
    part: tuple[float, float] | None = None,
    channel: int | None = None,
) -> Float32[np.ndarray, "w"]:
    """Samples in [-1, 1] at 16 kHz of a sound file, as `decode_sound` reads it."""
    return decode_sound(source, name, part, channel).at(SAMPLE_RATE).wave


def decode_sound(
    source: bytes | str | os.PathLike[str],
    name: str | None = None,
    part: tuple[float, float] | None = None,
    channel: int | None = None,
) -> Sound:
    """The sound of a wav, flac, mp3 or ogg (Vorbis, Opus) file or its bytes.

    part: start and length in seconds of the range to decode, cut at the end of the sound. channel:
    the only one to read, from 0; else all are averaged. Rates from 8 to 48 kHz are resampled to 16,
    and 8 stays. Errors name the file, or bytes by `name`.
    Raises Unusable: "missing", also where the channel is; "undecodable", also where a file was cut
    off (which an MP3 without a length header does not show); "rate"; "empty"; "not finite";
    "channels cancel each other". Raises Fault where the disk, not the file, is at fault.
    """
    name = name or _source_name(source)
    with _open_sound(source, name, part is not None) as (file, stream):
        if part is not None and file.format not in LOSSY_FORMATS:
            sound = _read_range(file, *part, name)
        else:
            sound = _read_samples(file)
            _check_complete(file, len(sound), stream, name)
            if part is not None:
                sound = sound[_frame_range(file, len(sound), *part, name)]
        rate = file.samplerate
    wave = to_mono(sound, channel, name)
    peak = max(wave.max(initial=0.0), -wave.min(initial=0.0))
    if not peak <= MAX_AMPLITUDE:  # also where it is NaN
        raise Unusable("not finite", f"{name}: holds samples up to {peak:g}: full scale is 1")
    found = Sound.of(wave, rate)
    if not found.wave.size:
        raise Unusable("empty", f"{name}: holds no sample at {SAMPLE_RATE} Hz")
    return found


def read_duration(source: bytes | str | os.PathLike[str], name: str | None = None) -> float:
    """Seconds of sound, by the header, which a FLAC's last frame may correct. Raises as
    `decode_sound`, for what shows without decoding.
    """
    with _open_sound(source, name or _source_name(source)) as (file, _):
        return float(file.frames / file.samplerate)


def to_int16(wave: Float32[np.ndarray, "w"]) -> Int16[np.ndarray, "w"]:
    """Samples in [-1, 1) as whole numbers of 16 bits, those outside clipped."""
    return np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)


def to_flac(wave: Float32[np.ndarray, "w"], rate: int = SAMPLE_RATE) -> bytes:
    """FLAC of 16 bits; samples outside [-1, 1) are clipped. 16-bit sound comes back equal."""
    stream = io.BytesIO()
    soundfile.write(stream, to_int16(wave), rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def to_wav(wave: Float32[np.ndarray, "w"], rate: int = SAMPLE_RATE) -> bytes:
    """WAV of 16 bits; samples outside [-1, 1) are clipped."""
    stream = io.BytesIO()
    soundfile.write(stream, to_int16(wave), rate, format="WAV", subtype="PCM_16")
    return stream.getvalue()


def to_opus(wave: Float32[np.ndarray, "w"], rate: int = SAMPLE_RATE) -> bytes:
    """Ogg Opus at about 31 kbit/s of 16 kHz, always the same bytes; decodes to w samples.

    Samples outside [-1, 1] are clipped.
    """
    stream = io.BytesIO()
    level = OPUS_LEVEL
    samples = np.clip(wave, -1.0, 1.0)
    soundfile.write(stream, samples, rate, format="OGG", subtype="OPUS", compression_level=level)
    return ogg_pages.without_serial(stream.getvalue())


def _source_name(source: bytes | str | os.PathLike[str]) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)


def open_file(path: str | os.PathLike[str], name: str) -> io.BufferedReader:
    """A file on this machine, to read its bytes.

    Raises Unusable "missing" for what names no regular file, Fault where the disk is at fault.
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
    except ValueError as error:  # a byte 0, or half of a surrogate pair
        raise Unusable("missing", f"{name}: no such file: {error}") from error
    except OSError as error:
        if error.errno not in NO_FILE:
            raise Fault(f"{name}: cannot be read: {error.strerror}") from error
    raise Unusable("missing", f"{name}: no such file")


@contextlib.contextmanager
def _open_sound(
    source: bytes | str | os.PathLike[str], name: str, part: bool = False
) -> Iterator[tuple[soundfile.SoundFile, SoundStream]]:
    """The file as libsndfile reads it, its header corrected, and the stream that it reads.

    Of a FLAC that was cut off a part may be there: it is opened where only that is wanted.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_file(source, name) as raw:
        stream, cut = SoundStream(raw), ""
        try:
            if not stream.size():
                raise Unusable("empty", f"{name}: holds no byte")
            start = mp3_header.skip_tag(stream)
            mark = stream.read_at(start, 4)
            if mark == flac_header.MARK:
                cut = flac_header.correct_length(stream, start, name)
            elif mark in wav_header.ORDERS:
                wav_header.correct_size(stream, start, name)
            if cut and not part:
                raise Unusable("undecodable", f"{name}: {cut}")
            stream.seek(0)
            with soundfile.SoundFile(stream) as file:
                _check_header(file, name)
                yield file, stream
        except (soundfile.LibsndfileError, Unusable) as error:
            if stream.error is not None:
                raise Fault(f"{name}: cannot be read: {stream.error.strerror}") from stream.error
            if isinstance(error, Unusable):
                raise
            detail = cut or f"is no sound: {error.error_string}"
            raise Unusable("undecodable", f"{name}: {detail}") from error


def _check_header(file: soundfile.SoundFile, name: str) -> None:
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        rule = f"must be from {MIN_RATE} to {MAX_RATE} Hz"
        raise Unusable("rate", f"{name}: sample rate {file.samplerate}: {rule}")
    cut = TRUNCATION_LOG.search(file.extra_info)
    if cut and (cut[1] is None or int(cut[2]) < int(cut[1])):
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
    file: soundfile.SoundFile, decoded: int, stream: SoundStream, name: str
) -> None:
    """Raises Unusable where less was decoded than the file holds.

    Sound that is left unread shows as bytes left over, of which a tenth and 512 may be tags: that
    of a FLAC behind another, or of an MP3 without a length header, whose length is guessed from its
    first bit rate. Too high a guess is no fault of the sound. With a header, one MP3 frame may be
    missing: some encoders count the header's own.
    """
    tolerance = 0
    if file.format in ("MP3", "FLAC"):
        read, left = stream.tell(), stream.left()
        if left > read // 10 + 512:
            advice = "write it anew" + " with a length (Xing) header" * (file.format == "MP3")
            raise Unusable("undecodable", f"{name}: {left} bytes lie past its length: {advice}")
    if file.format == "MP3":
        tolerance = 1152 if mp3_header.states_length(stream) else file.frames
    if decoded < file.frames - tolerance:
        raise Unusable("undecodable", f"{name}: was cut off: {decoded} of {file.frames} samples")
