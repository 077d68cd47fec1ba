"""Text comes piece by piece, no piece with half a letter, all of them together the whole."""

import pytest

from data_pipelines.text.byte_tokenizer import ByteTokenizer
from data_pipelines.text.detokenizer import REPLACEMENT, Detokenizer
from data_pipelines.text.load_tokenizer import load_tokenizer
from tests.support.families import FAMILIES, write_tokenizer

TEXT = "aé€😀\n z"


def pieces(tokenizer, ids):
    text = Detokenizer(tokenizer)
    return [*(text(ids[: i + 1]) for i in range(len(ids))), text(ids, last=True)]


def test_letter_of_several_bytes_comes_with_its_last():
    found = pieces(ByteTokenizer(), list("aé€".encode()))
    assert found == ["a", "", "é", "", "", "€", ""]


def test_bytes_that_never_become_a_letter_come_when_that_is_sure():
    found = pieces(ByteTokenizer(), [0xE2, 0x82, ord("a"), 0xFF, 0xF0])
    assert found == ["", "", f"{REPLACEMENT}a", "", "", REPLACEMENT * 2]


@pytest.mark.parametrize("name", ["Phi-3-mini", "Phi-4-mini", "SmolLM2"])
def test_pieces_together_are_the_whole_text(name, tmp_path):
    write_tokenizer(tmp_path, FAMILIES[name])
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode_marked(f"{TEXT}{FAMILIES[name].end}{TEXT}")
    found = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids)
    assert not any(REPLACEMENT in piece for piece in found)
    assert sum(map(bool, found)) > len(TEXT)
