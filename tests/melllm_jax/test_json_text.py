import json

import pytest

from melllm_jax.json_text import parse_json


@pytest.mark.parametrize(
    "text", ["1" + "0" * 308, b'{"a": ' + b"9" * 5000 + b"}", "-1" + "0" * 308]
)
def test_whole_number_that_no_float_holds_is_no_json(text):
    with pytest.raises(json.JSONDecodeError, match=r"^a whole number of \d+ digits"):
        parse_json(text)


def test_bytes_are_read_in_the_encoding_of_their_mark():
    assert parse_json("[1, 1.5]".encode("utf-16")) == [1, 1.5]
    assert parse_json(b"\xef\xbb\xbf[10]") == [10]
    with pytest.raises(json.JSONDecodeError, match="is no text"):
        parse_json(b'["\xff"]')
