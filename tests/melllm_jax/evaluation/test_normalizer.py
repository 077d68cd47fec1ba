"""Our normaliser counts errors that the library's hides, and else says what the library's says."""

import sys

import pytest

from melllm_jax.evaluation.wer import score_transcripts

english = pytest.importorskip("whisper_normalizer.english", reason="comes with the extra eval")
pytest.importorskip("jiwer", reason="the extra eval brings the scorer")
from melllm_jax.evaluation.normalizer import WhisperNormalizer  # noqa: E402 needs the extra

ours = WhisperNormalizer(english.EnglishTextNormalizer())
TOO_LONG = "1" * 4301  # a digit more than Python reads as a number


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("नमस्ते दुनिया कैसे हो", "नमस्ता दनिया कैसा ही"),
        ("தமிழ் மொழி", "தமழ மொழ"),
        ("বাংলা ভাষা", "বংল ভষ"),
        ("น้ำมัน ดี", "นามน ดา"),
        ("ខ្មែរ ភាសា", "ខមរ ភស"),
        ("שָׁלוֹם עוֹלָם", "שָׁלִם עִלָם"),
        ("مَن كَتَبَ", "مِن كُتِبَ"),
        ("мой ЙОД", "мои иод"),
        ("ない が", "なぃ か"),
    ],
)
def test_words_that_differ_by_marks_of_their_script_are_errors(said, heard):
    wrong, right = (score_transcripts([said], [text], "whisper") for text in (heard, said.lower()))
    assert wrong.substitutions == wrong.words == len(said.split())
    assert right.wer == 0


def test_one_letter_spelt_in_two_ways_is_the_same():
    assert ours("क\u093c") == ours("\u0958")  # a dot below, apart and with its letter
    assert ours("葛\U000e0100") == ours("葛")  # chooses a glyph


@pytest.mark.parametrize(
    "text",
    [
        "The colour, Mr. Smith: twenty-two and a half per cent of $1,000!",
        "Café naïve Ørsted İstanbul Straße Vũ ﬁn ½ ① ２３ ❤️ 5️⃣ (uh) [noise] it's o'clock",
        "Привет, мир! ΚΑΛΟΣ ΟΔΟΣ 你好 한국어 سلام ０ 3.5 5$ £20 and 7 cents",
        "（uh） 1" + "0" * 4000 + " million",
    ],
)
def test_text_without_such_marks_is_the_librarys(text):
    assert ours(text).split() == english.EnglishTextNormalizer()(text).split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TOO_LONG, [TOO_LONG]),
        (f"a {TOO_LONG} b", ["a", TOO_LONG, "b"]),
        (f"${TOO_LONG}", [f"${TOO_LONG}"]),
        (f"{TOO_LONG} dollars", [f"${TOO_LONG}"]),
        (f"{TOO_LONG}% of", [f"{TOO_LONG}%", "of"]),
        (f"{TOO_LONG}.5 million", [f"{TOO_LONG}500000"]),
        (f"{TOO_LONG} twenty two", [f"{TOO_LONG}22"]),
    ],
)
def test_number_too_long_for_python_is_one_word(text, words):
    limit = sys.get_int_max_str_digits()
    assert ours(text).split() == words
    assert sys.get_int_max_str_digits() == limit


def test_number_that_grows_too_long_while_it_is_read_is_one_word():
    assert len(ours("twenty twenty million " * 700).split()) == 1


@pytest.mark.parametrize("text", ["wait...", "wait…", "... wait .", "% wait $", "wait. . ."])
def test_dots_and_symbols_alone_are_no_words(text):
    assert ours(text) == "wait"


def test_reference_of_dots_alone_is_left_out_as_empty():
    result = score_transcripts(["...", "yes"], ["well", "yes"], "whisper")
    assert (result.empty, result.words, result.wer) == (1, 1, 0)
