import random

import pytest

from data_pipelines.reject import Unusable
from data_pipelines.text.load_tokenizer import load_tokenizer
from data_pipelines.text.tokenizer import SPECIALS
from data_pipelines.text.tokenizer_training import train_sentencepiece
from melllm_jax.errors import Mistake

SAID = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty red green blue "
    "yellow black white dog cat bird fish horse house street river mountain ocean morning "
    "evening night winter summer apple bread water coffee"
)
WORDS = SAID.split()


@pytest.fixture(scope="module")
def sayings():
    """300 lines of 8 words out of 50."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=8)) for _ in range(300)]


def test_train_fifty_words_come_out_whole(sayings, tmp_path):
    tokenizer = train_sentencepiece(sayings, tmp_path, 0)
    assert all(len(tokenizer.encode(word)) == 1 for word in WORDS)
    assert tokenizer.size < 128
    assert tokenizer.decode(tokenizer.encode("forty black horse")) == "forty black horse"


def test_train_given_size_is_the_size_and_special_tokens_are_in_it(sayings, tmp_path):
    tokenizer = train_sentencepiece(sayings, tmp_path, 60)
    assert tokenizer.size == 60
    assert all(0 < tokenizer.special(name) < 60 for name in SPECIALS)
    assert tokenizer.decode([tokenizer.special("<|end|>"), *tokenizer.encode("six")]) == "six"


def test_train_size_beyond_the_texts_is_a_mistake_saying_the_largest(sayings, tmp_path):
    largest = train_sentencepiece(sayings, tmp_path, 0).size
    with pytest.raises(
        Mistake, match=f"size=4000: is more than the texts yield: at most {largest}$"
    ):
        train_sentencepiece(sayings, tmp_path, 4000)
    assert train_sentencepiece(sayings, tmp_path, largest).size == largest


def test_train_size_below_the_characters_is_a_mistake_saying_the_least(sayings, tmp_path):
    characters = len(set("".join(sayings)))  # the blank is one of them, as ▁
    least = characters + 1 + len(SPECIALS)  # and <unk>
    with pytest.raises(Mistake, match=f"size=20: is too few .*: at least {least}$"):
        train_sentencepiece(sayings, tmp_path, 20)


def test_train_no_texts_is_a_mistake(tmp_path):
    with pytest.raises(Mistake, match="size=100: there are no texts to train on"):
        train_sentencepiece([], tmp_path, 100)


def test_train_twice_gives_the_same_table(sayings, tmp_path):
    once = train_sentencepiece(sayings, tmp_path / "once", 70)
    again = train_sentencepiece(iter(sayings), tmp_path / "again", 70)
    assert once == again
    assert load_tokenizer(tmp_path / "once") == once


def test_train_text_longer_than_the_librarys_limit_is_not_left_out(tmp_path):
    texts = ["a b c d"] * 5 + ["z " * 3000]  # 6000 bytes; the library's own limit is 4192
    tokenizer = train_sentencepiece(texts, tmp_path, 0)
    assert tokenizer.decode(tokenizer.encode("z")) == "z"


def test_train_another_script_is_refused_without_byte_fallback(sayings, tmp_path):
    tokenizer = train_sentencepiece(sayings, tmp_path, 0)
    with pytest.raises(Unusable, match=r"unknown characters: 'д' \(U\+0434\)") as caught:
        tokenizer.encode("one два three")
    assert caught.value.reason == "unknown characters"


def test_train_whole_words_name_the_word_that_none_of_them_is(tmp_path):
    tokenizer = train_sentencepiece(["red cat", "blue cat"], tmp_path, 0, kind="word")
    assert len(tokenizer.encode("blue cat")) == 2
    with pytest.raises(Unusable, match="unknown characters: no token is the word 'green'"):
        tokenizer.encode("red green dog cat")


def test_train_another_script_is_spelt_in_bytes_with_byte_fallback(sayings, tmp_path):
    tokenizer = train_sentencepiece(sayings, tmp_path, 0, byte_fallback=True)
    assert tokenizer.decode(tokenizer.encode("one два three")) == "one два three"


def test_train_text_that_spells_a_special_token_is_refused_as_text(sayings, tmp_path):
    tokenizer = train_sentencepiece(sayings, tmp_path, 0)
    with pytest.raises(Unusable, match="unknown characters: '<'"):
        tokenizer.encode("one<|end|>")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char", "word"])
def test_train_each_kind_gives_the_size_asked_for_and_reads_back(sayings, tmp_path, kind):
    most = train_sentencepiece(sayings, tmp_path / "most", 0, kind=kind)
    size = most.size if kind == "char" else most.size - 4
    tokenizer = train_sentencepiece(sayings, tmp_path / "less", size, kind=kind)
    assert tokenizer.size == size
    assert load_tokenizer(tmp_path / "less") == tokenizer
    if kind != "word":  # the rarest words are unknown then
        assert tokenizer.decode(tokenizer.encode(sayings[0])) == sayings[0]


def test_train_kinds_cut_texts_as_their_names_say(sayings, tmp_path):
    pieces = {
        kind: train_sentencepiece(sayings, tmp_path / kind, 0, kind=kind).pieces.encode_as_pieces
        for kind in ("char", "word")
    }
    assert pieces["char"]("red cat") == ["▁", "r", "e", "d", "▁", "c", "a", "t"]
    assert pieces["word"]("red cat") == ["▁red", "▁cat"]


@pytest.mark.parametrize("off", [-1, 1])
def test_train_characters_of_another_size_than_there_are_is_a_mistake(sayings, tmp_path, off):
    size = train_sentencepiece(sayings, tmp_path / "all", 0, kind="char").size
    with pytest.raises(Mistake, match=f"size={size + off}: .*: at (least|most) {size}$"):
        train_sentencepiece(sayings, tmp_path / "off", size + off, kind="char")
    assert not (tmp_path / "off").exists()


def test_train_words_without_room_for_one_is_a_mistake(sayings, tmp_path):
    least = len(SPECIALS) + 2
    with pytest.raises(Mistake, match=f"size=6: leaves no room for a word: at least {least}"):
        train_sentencepiece(sayings, tmp_path, 6, kind="word")
    tokenizer = train_sentencepiece(sayings, tmp_path, least, kind="word")
    assert sum(len(tokenizer.pieces.encode_as_ids(w)) == 1 for w in WORDS) == len(WORDS)


def test_train_prints_nothing(sayings, tmp_path, capfd):
    train_sentencepiece(sayings, tmp_path, 0)
    assert capfd.readouterr() == ("", "")
