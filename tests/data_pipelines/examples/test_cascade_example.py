"""What is heard takes the place of the clips, in their order."""

from data_pipelines.examples.cascade_example import heard_turns
from data_pipelines.text.turns import CLIP, Turn

ANSWER = Turn("assistant", ("no",))


def test_each_clip_is_replaced_by_what_is_heard_of_it():
    turns = (
        Turn("system", ("Be brief.",)),
        Turn("user", (CLIP, "The same as", CLIP)),
        ANSWER,
        Turn("user", ("And ", "now?")),
        ANSWER,
        Turn("user", (CLIP,)),
        Turn("assistant", ("no", CLIP)),  # of a spoken answer nothing is heard
    )
    assert heard_turns(turns, ["one", "two", "three"]) == (
        turns[0],
        Turn("user", ("one\nThe same as\ntwo",)),
        ANSWER,
        turns[3],
        ANSWER,
        Turn("user", ("three",)),
        ANSWER,
    )


def test_silence_leaves_the_other_words_or_nothing():
    asked = (Turn("user", (CLIP, "Why?")), ANSWER, Turn("user", (CLIP,)), ANSWER)
    assert heard_turns(asked, ["", ""]) == (
        Turn("user", ("Why?",)),
        ANSWER,
        Turn("user", ()),
        ANSWER,
    )
