import dataclasses

import numpy as np
import pytest

from data_pipelines.corpora.utterance import Utterance, decode_record, encode_record

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
