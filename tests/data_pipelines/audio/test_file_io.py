"""Every format and rate that is read, and every reason to refuse a file."""

import errno
import io
import json
import pickle
import struct

import numpy as np
import pytest
import soundfile

from data_pipelines.audio import file_io
from data_pipelines.audio.file_io import (
    decode_audio,
    decode_sound,
    read_duration,
    to_flac,
    to_opus,
)
from data_pipelines.audio.sound import resample
from data_pipelines.reject import Unusable
from melllm_jax.errors import Fault, Mistake
from tests.support.paths import FSDD

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
PICTURE = b"ID3\x03\x00\x00\x00\x01\x00\x00" + bytes(16_384)  # an ID3v2 tag of that size
RATES = (8000, 11_025, 16_000, 22_050, 44_100, 48_000)  # Opus has those that 8000 divides
# Of a tone of 0.5 at 440 Hz: 16 bits lose 3e-5; a delay of one sample would show as 0.09.
LOSS = {"wav": 1e-4, "float wav": 1e-4, "flac": 1e-4, "vorbis": 0.07, "opus": 0.07, "mp3": 0.07}


def tone(rate, seconds=1.0, hertz=440.0, strength=0.5):
    time = np.arange(int(rate * seconds)) / rate
    return (strength * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def noise(seconds=3.0):
    """16-bit values: FLAC and WAV keep them."""
    values = np.random.default_rng(0).integers(-8000, 8000, int(16_000 * seconds))
    return (values / 32_768).astype(np.float32)


def encoded(sound, rate=16_000, kind="wav"):
    stream = io.BytesIO()
    container, subtype = FORMATS[kind]
    soundfile.write(stream, sound, rate, format=container, subtype=subtype)
    return stream.getvalue()


def reason(call, source):
    with pytest.raises(Unusable) as caught:
        call(source)
    return caught.value.reason


def without_xing(mp3):
    """The frames after the first, which holds the length."""
    mark = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    assert mark > 0
    return mp3[mp3.index(mp3[:2], mark) :]


@pytest.mark.parametrize("kind", ["wav", "float wav", "flac"])
def test_decode_of_a_lossless_file_gives_its_samples(kind):
    wave = decode_audio(encoded(noise(), kind=kind))
    assert wave.dtype == np.float32
    np.testing.assert_array_equal(wave, noise())


@pytest.mark.parametrize(
    ("rate", "kind"),
    [(rate, kind) for rate in RATES for kind in FORMATS if kind != "opus" or rate % 8000 == 0],
)
def test_decode_of_a_tone_at_any_rate_gives_it_at_16_khz(rate, kind):
    wave = decode_audio(encoded(tone(rate), rate, kind))
    assert abs(wave.size - 16_000) <= 1
    middle = slice(2000, 14_000)  # lossy codecs and filters ring at the ends
    error = wave[middle] - tone(16_000)[middle]
    assert np.abs(error).max() < LOSS[kind]


@pytest.mark.parametrize("kind", FORMATS)
def test_decode_of_two_channels_averages_them(kind):
    both = np.stack([tone(16_000, strength=0.6), tone(16_000, strength=0.2)], axis=1)
    middle = slice(2000, 14_000)
    error = decode_audio(encoded(both, kind=kind))[middle] - tone(16_000, strength=0.4)[middle]
    assert np.abs(error).max() < LOSS[kind]


@pytest.mark.parametrize("part", [None, (0.5, 0.25)])
def test_decode_of_one_channel_leaves_the_other_out(part):
    left, right = noise(), tone(16_000, 3.0)
    both = encoded(np.stack([left, right], axis=1))
    for channel, sound in enumerate((left, right)):
        alone = decode_audio(encoded(sound), part=part)
        assert np.array_equal(decode_audio(both, part=part, channel=channel), alone)
    with pytest.raises(Unusable, match=r"x: channel=2: has 2 channels") as caught:
        decode_audio(both, "x", channel=2)
    assert caught.value.reason == "missing"


def test_resample_removes_what_16_khz_cannot_hold():
    assert np.abs(resample(tone(48_000, hertz=10_000), 48_000)[500:-500]).max() < 1e-4


def test_resample_at_16_khz_changes_nothing():
    np.testing.assert_array_equal(resample(noise(), 16_000), noise())


def test_decode_of_a_path_equals_decode_of_its_bytes(tmp_path):
    file = tmp_path / "a.flac"
    file.write_bytes(encoded(noise(), kind="flac"))
    np.testing.assert_array_equal(decode_audio(file), decode_audio(file.read_bytes()))
    np.testing.assert_array_equal(decode_audio(str(file)), decode_audio(file))


def test_to_flac_of_16_bit_values_comes_back_equal():
    extremes = np.concatenate([noise(), np.array([-1, 32_767 / 32_768], np.float32)])
    np.testing.assert_array_equal(decode_audio(to_flac(extremes)), extremes)


def test_to_flac_of_samples_out_of_range_clips_them():
    loud = np.array([-3, 3, 0], np.float32)
    np.testing.assert_array_equal(decode_audio(to_flac(loud)), np.float32([-1, 32_767 / 32_768, 0]))


def test_to_opus_decodes_to_as_many_samples_and_nearly_the_same_sound():
    for samples in (1, 319, 16_000, 33_333):
        assert decode_audio(to_opus(tone(16_000, 3)[:samples])).size == samples
    middle = slice(2000, 14_000)
    error = decode_audio(to_opus(tone(16_000)))[middle] - tone(16_000)[middle]
    assert np.abs(error).max() < LOSS["opus"]


def test_to_opus_gives_the_same_bytes_each_time():
    stream = io.BytesIO()
    soundfile.write(stream, noise(), 16_000, format="OGG", subtype="OPUS")
    first, second = to_opus(noise()), to_opus(noise())
    assert first == second
    assert first[14:18] == bytes(4) != stream.getvalue()[14:18]  # the serial number, by chance


def test_decode_of_a_header_that_promises_terabytes_takes_no_such_memory():
    whole = bytearray(encoded(noise(), kind="flac"))
    whole[21] |= 0x0F  # the number of samples: 36 bits from the middle of byte 21 on
    whole[22] = 0xFF
    assert reason(decode_audio, bytes(whole)) == "undecodable"


@pytest.mark.parametrize("kind", FORMATS)
def test_duration_of_a_file_is_that_of_its_sound(kind):
    assert read_duration(encoded(tone(48_000, seconds=1.5), 48_000, kind)) == pytest.approx(1.5)


def test_duration_decodes_nothing():
    whole = encoded(noise(), kind="flac")
    spoiled = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    assert read_duration(spoiled) == 3.0
    assert reason(decode_audio, spoiled) == "undecodable"


@pytest.mark.parametrize("share", [0.34, 0.66, 0.95])
@pytest.mark.parametrize("kind", FORMATS)
def test_decode_of_a_file_cut_off_is_undecodable(kind, share):
    whole = encoded(noise(), kind=kind)
    assert reason(decode_audio, whole[: int(len(whole) * share)]) == "undecodable"


def wav_that_says(data, riff=None, kind="wav"):
    """A WAV of 3 s of noise with these sizes of its data and, if given, of all in its header."""
    content = bytearray(encoded(noise(), kind=kind))
    content[40:44] = struct.pack("<I", data)
    content[4:8] = content[4:8] if riff is None else struct.pack("<I", riff)
    return bytes(content)


def flac_that_says(samples, content=None):
    content = bytearray(content or encoded(noise(), kind="flac"))
    word = int.from_bytes(content[18:26], "big") >> 36 << 36 | samples
    content[18:26] = word.to_bytes(8, "big")
    return bytes(content)


def rf64_that_says(data):
    stream = io.BytesIO()
    soundfile.write(stream, noise(), 16_000, format="RF64", subtype="PCM_16")
    content = bytearray(stream.getvalue())
    at = content.index(b"ds64") + 8
    content[at : at + 16] = struct.pack("<QQ", data + 80 if data else 0, data)
    return bytes(content)


@pytest.mark.parametrize("size", [0, 2_000_000_000, 96_044, 0x7FFF_FFFF, 0xFFFF_FFFF])
@pytest.mark.parametrize("riff", [None, 0xFFFF_FFFF])
def test_decode_of_a_wav_of_unknown_length_takes_it_to_its_end(size, riff):
    content = wav_that_says(size, riff)
    np.testing.assert_array_equal(decode_audio(content), noise())
    assert read_duration(content) == 3.0


@pytest.mark.parametrize(
    "content",
    [
        flac_that_says(0),
        flac_that_says(24_000),
        flac_that_says(1, encoded(np.concatenate([noise(2.99), noise(0.01)]), kind="flac")),
        PICTURE + flac_that_says(24_000),
        rf64_that_says(0),
    ],
    ids=["no length", "half", "one", "half after a tag", "RF64"],
)
def test_decode_of_a_header_that_says_less_gives_the_whole_sound(content, capfd):
    assert read_duration(content) == 3.0
    assert decode_audio(content).size == 48_000
    assert decode_audio(content, part=(2.5, 9.0)).size == 8_000
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (wav_that_says(48_000), "48000 bytes lie where its header says that the sound ends"),
        (wav_that_says(48_000, 48_036), "48000 bytes lie where its header says"),
        (wav_that_says(96_000) * 2, "96044 bytes lie where its header says"),
        (wav_that_says(97_000, 97_036), "cut off: its data chunk says 97000 bytes, 96000 are"),
        (rf64_that_says(96_000)[:50_000], "cut off: its data chunk says 96000 bytes"),
        (flac_that_says(49_000), r"its header \(STREAMINFO\) says 49000 samples, .* end at 48000"),
        (flac_that_says(96_000), r"its header \(STREAMINFO\) says 96000 samples"),
        (flac_that_says((1 << 36) - 1), r"its header \(STREAMINFO\) says 68719476735 samples"),
        (flac_that_says(0)[:-50_000] + bytes(50_000), "gives no length, and no last frame"),
    ],
)
def test_a_header_that_no_sound_bears_out_is_refused_by_name(content, told, capfd):
    for call in (decode_audio, read_duration):
        with pytest.raises(Unusable, match=told) as caught:
            call(content)
        assert caught.value.reason == "undecodable"
    assert capfd.readouterr().err == ""


def test_decode_of_a_flac_behind_another_is_undecodable():
    assert reason(decode_audio, encoded(noise(), kind="flac") * 2) == "undecodable"


@pytest.mark.parametrize(
    "rest", [b"LIST\4\0\0\0INFO", b"abcd\1\0\0\0x", b"TAG" + bytes(125), bytes(2048)]
)
def test_decode_of_a_wav_with_more_than_its_sound_gives_the_sound(rest):
    np.testing.assert_array_equal(decode_audio(encoded(noise()) + rest), noise())


@pytest.mark.parametrize("kind", ["wav", "flac", "opus", "mp3"])
def test_decode_of_channels_that_cancel_each_other_says_so(kind):
    both = np.stack([tone(16_000), -tone(16_000)], axis=1)
    assert reason(decode_audio, encoded(both, kind=kind)) == "channels cancel each other"
    one = np.stack([tone(16_000), np.zeros(16_000, np.float32)], axis=1)
    assert decode_audio(encoded(one, kind=kind)).size == 16_000


def test_a_disk_that_fails_while_a_sound_is_read_is_a_fault(monkeypatch, tmp_path, capfd):
    class Failing(io.BytesIO):
        def readinto(self, buffer):
            if self.tell() > 40_000:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    content = encoded(noise(), kind="flac")
    monkeypatch.setattr(file_io, "open_file", lambda path, name: Failing(content))
    with pytest.raises(Fault, match=r"a\.flac: cannot be read: Input/output error"):
        decode_audio(tmp_path / "a.flac")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_sound_of_telephone_speech_keeps_its_rate(rate):
    sound = decode_sound(encoded(tone(rate), rate))
    assert (sound.rate, sound.wave.size) == ((8000, 8000) if rate == 8000 else (16_000, 16_000))
    assert sound.seconds == 1.0
    assert sound.changed(lambda wave: wave) is sound
    louder = sound.changed(lambda wave: wave * np.float32(2))
    assert louder.rate == sound.rate
    np.testing.assert_allclose(louder.wave[500:-500], 2 * sound.wave[500:-500], atol=1e-3)


def test_decode_of_an_mp3_read_short_for_want_of_a_length_is_undecodable():
    rising = tone(16_000, 10) + noise(10) * np.linspace(0, 1, 160_000, dtype=np.float32)
    bare = without_xing(encoded(rising, kind="mp3"))
    with pytest.raises(Unusable, match="bytes lie past its length: write it anew") as caught:
        decode_audio(bare)
    assert caught.value.reason == "undecodable"


def test_decode_of_an_mp3_with_a_picture_before_it_is_whole():
    assert decode_audio(PICTURE + encoded(tone(16_000), kind="mp3")).size == 16_000


def test_decode_of_an_mp3_with_a_picture_cut_off_is_undecodable():
    whole = encoded(noise(), kind="mp3")
    assert reason(decode_audio, PICTURE + whole[: int(len(whole) * 0.66)]) == "undecodable"


@pytest.mark.parametrize("call", [decode_audio, read_duration])
def test_text_as_audio_is_undecodable(call):
    assert reason(call, b"no sound, but a sentence\n" * 50) == "undecodable"


@pytest.mark.parametrize("call", [decode_audio, read_duration])
def test_a_file_of_no_bytes_is_empty(call, tmp_path):
    (tmp_path / "none.wav").touch()
    assert reason(call, tmp_path / "none.wav") == "empty"
    assert reason(call, b"") == "empty"


@pytest.mark.parametrize("call", [decode_audio, read_duration])
@pytest.mark.parametrize("kind", ["wav", "float wav"])
def test_a_header_without_samples_is_empty(kind, call):
    assert reason(call, encoded(np.zeros(0, np.float32), kind=kind)) == "empty"


@pytest.mark.parametrize("call", [decode_audio, read_duration])
def test_a_path_that_is_no_file_is_missing(call, tmp_path):
    assert reason(call, tmp_path / "gone.wav") == "missing"
    assert reason(call, tmp_path) == "missing"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -32_768.0])
def test_decode_of_samples_that_are_no_sound_is_not_finite(value):
    sound = noise()
    sound[1234] = value
    assert reason(decode_audio, encoded(sound, kind="float wav")) == "not finite"


@pytest.mark.parametrize("call", [decode_audio, read_duration])
@pytest.mark.parametrize("rate", [4000, 7999, 48_001, 96_000])
def test_a_rate_outside_8_to_48_khz_is_refused(rate, call):
    assert reason(call, encoded(tone(rate), rate)) == "rate"


def test_bad_audio_names_the_file_or_the_name_given(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("no sound")
    with pytest.raises(Mistake, match=r"notes\.txt: is no sound"):
        decode_audio(file)
    with pytest.raises(Mistake, match="utterance 7: is no sound"):
        decode_audio(file.read_bytes(), name="utterance 7")


def test_bad_audio_keeps_its_reason_between_processes():
    error = pickle.loads(pickle.dumps(Unusable("rate", "a.wav: too slow")))
    assert (type(error), error.reason, str(error)) == (Unusable, "rate", "a.wav: too slow")


def test_a_file_that_may_not_be_read_is_a_fault(tmp_path):
    file = tmp_path / "closed.wav"
    file.write_bytes(encoded(noise()))
    loop = tmp_path / "loop.wav"
    loop.symlink_to(loop)
    assert reason(decode_audio, loop) == "missing"
    file.chmod(0)
    try:
        file.read_bytes()
    except PermissionError:
        with pytest.raises(Fault, match=r"closed\.wav: cannot be read"):
            decode_audio(file)
    else:
        pytest.skip("this user may read everything")


def test_real_recordings_at_8_khz_have_the_manifests_durations():
    manifest = FSDD / "test.jsonl"
    if not manifest.exists():
        pytest.skip("no recordings of digits beside the project")
    for line in manifest.read_text().splitlines()[:40]:
        row = json.loads(line)
        file = FSDD / row["audio_filepath"]
        assert read_duration(file) == pytest.approx(row["duration"], abs=1e-3)
        assert decode_audio(file).size == pytest.approx(16_000 * read_duration(file), abs=1)


@pytest.mark.parametrize("kind", FORMATS)
def test_stretch_of_a_file_is_that_part_of_the_whole(kind):
    content = encoded(noise(), kind=kind)
    whole = decode_audio(content)
    np.testing.assert_array_equal(decode_audio(content, part=(0.25, 0.1)), whole[4000:5600])
    end = whole.size / 16_000
    np.testing.assert_array_equal(decode_audio(content, part=(end - 0.1, 9.0)), whole[-1600:])


def test_stretch_that_is_not_there_says_why():
    content = encoded(noise(), kind="flac")
    end = len(noise()) / 16_000
    assert reason(lambda source: decode_audio(source, part=(end, 0.1)), content) == "empty"
    assert reason(lambda source: decode_audio(source, part=(0.1, 0.0)), content) == "empty"
    cut = content[: len(content) // 2]
    assert decode_audio(cut, part=(0.0, 0.1)).size == 1600
    assert reason(lambda source: decode_audio(source, part=(0.9 * end, 0.05)), cut) == "undecodable"
