import dataclasses

import numpy as np
import pytest

from data_pipelines.corpora.utterance import Utterance, decode_record, encode_record
from data_pipelines.text.turns import CLIP, Turn

SPOKEN = Utterance("a/1", "grüß dich", 1.25, "Zoë", audio=b"fLaC\x00\xff")


def test_record_of_encoded_audio_comes_back_equal():
    assert decode_record(encode_record(SPOKEN)) == SPOKEN


def test_record_keeps_optional_fields_only_where_there_are_some():
    told = dataclasses.replace(SPOKEN, language="de", source="talks", tokens=(5, 0, 7), channel=0)
    assert decode_record(encode_record(told)) == told
    assert decode_record(encode_record(dataclasses.replace(SPOKEN, tokens=()))).tokens == ()
    for name in (b"language", b"source", b"tokens", b"channel"):
        assert name in encode_record(told)
        assert name not in encode_record(SPOKEN)


def test_record_of_mel_comes_back_as_its_nearest_bfloat16():
    mel = np.array([[1.0, 257.0], [-0.5, 3.14159]], np.float32)
    back = decode_record(encode_record(dataclasses.replace(SPOKEN, audio=None, mel=mel)))
    assert back.audio is None
    assert back.mel.tolist() == [[1.0, 256.0], [-0.5, 3.140625]]  # 8 bits of mantissa


def test_record_of_a_path_is_refused():
    with pytest.raises(TypeError, match="a/1: a record needs mel or encoded audio"):
        encode_record(dataclasses.replace(SPOKEN, audio=None))


@pytest.mark.parametrize("size", [0, 3, 20])
def test_record_cut_short_is_refused(size):
    with pytest.raises(ValueError):
        decode_record(encode_record(SPOKEN)[:size])


ASKED = dataclasses.replace(
    SPOKEN,
    turns=(Turn("user", ("Which?", CLIP, CLIP)), Turn("assistant", ("grüß dich",))),
    task="greetings",
    metric="choice",
    answers=("grüß dich",),
    options=("grüß dich", "hallo"),
    more=(Utterance("a/1#2", "", 0.5, "", audio=b"RIFF", channel=1),),
)


def test_record_of_a_task_holds_its_turns_and_each_clip():
    assert decode_record(encode_record(ASKED)) == ASKED
    assert ASKED.seconds == 1.75


def test_record_of_a_task_with_ready_mel_parts_it_by_clip():
    clips = [np.full((n, 2), n, np.float32) for n in (3, 1)]
    (second,) = ASKED.more
    second = dataclasses.replace(second, audio=None, channel=None, mel=clips[1])
    held = dataclasses.replace(ASKED, audio=None, mel=clips[0], more=(second,))
    back = decode_record(encode_record(held))
    assert [clip.mel.tolist() for clip in back.clips] == [clip.tolist() for clip in clips]


def test_record_of_a_spoken_answer_has_its_sound_last():
    turns = (Turn("user", (CLIP, "Which?")), Turn("assistant", ("grüß dich", CLIP)))
    back = decode_record(encode_record(dataclasses.replace(ASKED, turns=turns)))
    assert (back.spoken, back.heard) == (ASKED.more[0], (back,))


def test_record_of_text_alone_has_no_sound():
    turns = (Turn("user", ("Say hi",)), Turn("assistant", ("hi",)))
    alone = Utterance("t", "hi", 0.0, "", turns=turns, answers=("hi",))
    assert decode_record(encode_record(alone)) == alone


def test_record_of_a_transcript_is_what_it_always_was():
    header = '{"id": "a/1", "text": "grüß dich", "duration": 1.25, "speaker": "Zoë"}'.encode()
    assert encode_record(SPOKEN) == len(header).to_bytes(4, "little") + header + SPOKEN.audio
