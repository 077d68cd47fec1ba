from collections import Counter

from launch.corpus_report.characters import code_point, letters


def odd(text):
    """Why each odd character of a text is odd."""
    return {one.character: one.odd for one in letters(Counter(text)) if one.odd}


def test_letters_come_with_the_most_frequent_first_and_equal_ones_by_code():
    found = letters(Counter("banana split"))
    assert [(one.character, one.count) for one in found][:4] == [
        ("a", 3),
        ("n", 2),
        (" ", 1),
        ("b", 1),
    ]


def test_letters_digits_and_marks_of_plain_text_are_not_odd():
    assert odd("It's 5 o'clock: naïve, über, \"quoted\"!") == {}


def test_letters_of_another_alphabet_are_odd_where_they_are_few():
    latin = "the cat sat on the mat " * 20
    assert odd(latin + "сat") == {"с": "letters are seldom CYRILLIC here"}
    assert odd("кошка " * 30 + latin) == {}


def test_letters_that_do_not_show_are_odd():
    assert odd("half a pair: \ud800") == {"\ud800": "does not show"}
    assert odd("a\u200bb\u00a0c\x00\ufffd d\u3000e\ttab") == {
        "\u200b": "does not show",
        "\u00a0": "is another blank",
        "\x00": "does not show",
        "\ufffd": "stands for what could not be decoded",
        "\u3000": "is another blank",
        "\t": "does not show",
    }


def test_letters_of_no_text_are_none():
    assert letters({}) == ()


def test_code_point_is_named_where_unicode_has_a_name():
    assert code_point("a") == "U+0061 LATIN SMALL LETTER A"
    assert code_point("\x00") == "U+0000"
