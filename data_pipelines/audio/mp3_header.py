"""What an MP3 file has before its sound: a tag, and a first frame that may state its length."""

import functools

from data_pipelines.audio.sound_stream import SoundStream


def states_length(stream: SoundStream) -> bool:
    """Whether an MP3 has a Xing, Info or VBRI header in its first frame, after any ID3v2 tag."""
    frame = stream.read_at(skip_tag(stream), 200)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def skip_tag(stream: SoundStream) -> int:
    """Where a file starts, after any ID3v2 tag, whose size is four groups of 7 bits."""
    head = stream.read_at(0, 10)
    if head[:3] != b"ID3":
        return 0
    return 10 + functools.reduce(lambda size, group: size << 7 | group, head[6:10], 0)
