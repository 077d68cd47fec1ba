import json

from etils import epath
import pytest

from data_pipelines.corpora import manifest
from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.text.turns import CLIP, Turn

ASKED = {"audio": "q.wav", "instruction": "What?", "answer": "a cat"}
HEARD = {"role": "user", "content": ["First", {"audio": "a.wav"}, {"audio_url": "b.wav"}]}
SAID = {"role": "assistant", "content": "a cat"}


def parsed(row):
    return manifest.parse_line(json.dumps(row).encode(), epath.Path("/corpus"), "here:1")


def test_instruction_and_answer_are_two_turns_around_the_clip():
    heard = parsed(ASKED | {"id": "i", "system": "Be brief.", "speaker": "s", "duration": 2.0})
    assert heard.turns == (
        Turn("system", ("Be brief.",)),
        Turn("user", (CLIP, "What?")),
        Turn("assistant", ("a cat",)),
    )
    assert (heard.id, heard.text, heard.speaker, heard.seconds) == ("i", "a cat", "s", 2.0)
    assert heard.audio == epath.Path("/corpus/q.wav")
    assert (heard.task, heard.metric, heard.answers) == ("instruct", "exact_match", ("a cat",))


def test_question_that_is_sound_needs_no_instruction_and_text_alone_no_sound():
    assert parsed({"audio_filepath": "q.wav", "answer": "a"}).turns[0] == Turn("user", (CLIP,))
    alone = parsed({"instruction": "Say a", "answer": ["a", "A"], "answers": "an a"})
    assert (alone.clips, alone.seconds, alone.audio) == ((), 0.0, None)
    assert alone.answers == ("a", "A", "an a")


def test_several_clips_have_places_and_durations_of_their_own():
    clips = [{"path": "a.wav", "duration": 1.5, "offset": 3.0}, "b.wav"]
    heard = parsed({"audio": clips, "answer": "a", "id": "i"})
    assert heard.turns[0].parts == (CLIP, CLIP)
    assert [(x.id, x.audio.name, x.offset) for x in heard.clips] == [
        ("i", "a.wav", 3.0),
        ("i#2", "b.wav", None),
    ]
    assert heard.seconds == 1.5


def test_messages_are_turns_of_text_and_clips_in_their_order():
    more = [HEARD, SAID, {"role": "user", "content": {"type": "text", "text": "Sure?"}}, SAID]
    heard = parsed({"messages": more, "options": ["a cat", "a dog"], "task": "pets"})
    assert [turn.parts for turn in heard.turns] == [
        ("First", CLIP, CLIP),
        ("a cat",),
        ("Sure?",),
        ("a cat",),
    ]
    assert [clip.audio.name for clip in heard.clips] == ["a.wav", "b.wav"]
    assert (heard.task, heard.metric, heard.options) == ("pets", "choice", ("a cat", "a dog"))


@pytest.mark.parametrize(
    "row",
    [
        ASKED | {"answer_audio": {"path": "a.wav", "duration": 1.5}},
        {
            "messages": [
                {"role": "user", "content": [{"audio": "q.wav"}, "What?"]},
                {"role": "assistant", "content": ["a cat", {"path": "a.wav", "duration": 1.5}]},
            ]
        },
    ],
)
def test_answer_may_have_its_sound_which_is_not_heard(row):
    asked = parsed(row)
    assert asked.turns[-1] == Turn("assistant", ("a cat", CLIP))
    assert (asked.text, asked.answers, asked.seconds) == ("a cat", ("a cat",), 1.5)
    assert [clip.audio.name for clip in asked.clips] == ["q.wav", "a.wav"]
    assert (asked.heard, asked.spoken) == (asked.clips[:1], asked.clips[1])
    alone = parsed({"instruction": "What?", "answer": "a", "answer_audio": "a.wav"})
    assert (alone.heard, alone.spoken.audio.name) == ((), "a.wav")
    assert parsed(ASKED).spoken is None


def test_id_that_is_not_given_is_a_hash_of_the_line(tmp_path):
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(ASKED)}\r\n {json.dumps(ASKED)}\n")
    first, second = open_corpus(tmp_path, "train")
    assert first.id == second.id == parsed(ASKED).id
    assert parsed(ASKED | {"task": "x"}).id != first.id


def test_number_is_an_answer_and_is_scored_by_distance():
    heard = parsed(ASKED | {"answer": 34, "metric": "mae"})
    assert (heard.text, heard.metric) == ("34", "mae")


def test_task_asr_is_scored_by_word_errors():
    assert parsed(ASKED | {"task": "asr"}).metric == "wer"


def test_texts_are_all_words_that_a_tokenizer_meets():
    heard = parsed(ASKED | {"options": ["a cat", "a dog"]})
    assert heard.texts == ("What?", "a cat", "a cat", "a dog")


def test_line_of_a_transcript_is_read_as_ever():
    row = {"audio_filepath": "a.flac", "text": "one", "duration": 1.0, "id": "i", "task": "x"}
    heard = parsed(row | {"options": ["b"], "metric": 7, "system": "z"})
    assert (heard.text, heard.turns, heard.task, heard.options) == ("one", (), "", ())
    assert (heard.clips, heard.texts) == ((heard,), ("one",))


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (
            {"audio": "q.wav", "instruction": "What?"},
            "instruction='What?': lacks answer: has audio",
        ),
        ({"instruction": "What?", "answer": None, "text": "a"}, "lacks answer"),
        ({"instruction": "What?", "answer": " "}, "answer=' ': must not be empty"),
        ({"instruction": "What?", "answer": []}, "answer=[]: must hold one at least"),
        ({"instruction": 5, "answer": "a"}, "instruction=5: must be a string"),
        ({"answer": "a"}, "turn 1 is user's: must not be empty"),
        (ASKED | {"answer": True}, "answer=True: must be text"),
        (ASKED | {"options": ["a cat"]}, "options=['a cat']: must be two or more, none twice"),
        (ASKED | {"options": ["x", "y"]}, "answer='a cat': must be one of options=['x', 'y']"),
        (ASKED | {"metric": "bleu"}, "metric='bleu': must be one of wer, exact_match"),
        (ASKED | {"metric": "choice"}, "metric=choice: needs options"),
        (ASKED | {"metric": "mae"}, "answer='a cat': must be a number"),
        (ASKED | {"audio": 5}, "audio=5: must be a path, or an object with one"),
        (ASKED | {"audio": {"path": "a.wav", "duration": "1"}}, "duration='1': must be a number"),
        (ASKED | {"offset": 1.0}, "offset=1.0: needs the duration of the stretch"),
        (ASKED | {"id": 5}, "id=5: must be a string"),
        ({"instruction": "What?", "answer": "a", "speaker": 7}, "speaker=7: must be a string"),
        ({"messages": "hi"}, "messages='hi': must be a list of role and content"),
        ({"messages": [HEARD]}, "lacks an answer: the last turn must be the assistant's"),
        ({"messages": [SAID]}, "turn 1 is assistant's: must be user's"),
        ({"messages": [HEARD, HEARD, SAID]}, "turn 2 is user's: must be assistant's"),
        ({"messages": [HEARD | {"role": "you"}, SAID]}, "role='you': must be system, user"),
        ({"messages": [HEARD | {"content": [3]}, SAID]}, "content=3: must be text"),
        ({"messages": [SAID | {"role": "user"}, HEARD | {"role": "assistant"}]}, "without sound"),
        ({"messages": [HEARD, SAID], "answer": "a"}, "answer='a': must stand in a turn"),
        ({"audio": "q.wav", "text": "a", "answer_audio": "a.wav"}, "lacks answer"),
        (ASKED | {"answer_audio": 5}, "audio=5: must be a path, or an object with one"),
        (
            {"messages": [HEARD, SAID | {"content": ["a", {"audio": "a.wav"}, "b"]}]},
            "without sound; behind the last may stand the sound of it",
        ),
        (
            {"messages": [HEARD, SAID | {"content": ["a", {"audio": "a.wav"}]}, HEARD, SAID]},
            "turn 2 is assistant's: must be one text, without sound",
        ),
    ],
)
def test_task_that_is_wrong_is_an_utterance_with_a_flaw(row, rule):
    heard = parsed(row)
    assert heard.flaw.startswith("here:1: ")
    assert rule in heard.flaw
    assert "\n" not in heard.flaw
