"""`melllm speak`: texts to sound files, or answers to questions, by a run whose model speaks."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from launch.runtime import compile_cache
from launch.speech.corpus_requests import corpus_requests
from launch.speech.run_speaker import RunSpeaker, SpeakerChoice, open_speaker
from launch.speech.speaking_model import Question, Reply, Voice
from launch.speech.spoken_files import (
    MANIFEST,
    SpeechRequest,
    SpokenSound,
    speak_folder,
    write_sound,
)
from launch.speech.streaming import open_streaming_speaker, take_parts
from launch.terminal.flags import parse
from launch.terminal.progress_bar import count_progress
from launch.terminal.text_input import STDIN, read_text
from melllm_jax import files
from melllm_jax.errors import Mistake
from melllm_jax.inference.synthesize import SpeakingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakArguments:
    """Speak texts with a run: one into --out FILE.wav, several into a folder with spoken.jsonl.

    Texts are given as words, in a file with one a line, or as those of a corpus's split, whose
    recordings are then laid beside what is spoken, to be compared by `melllm evaluate --speech`.
    The same command goes on where it was stopped. With --answer or --question one text, or a sound,
    is asked: the model writes its answer in words, then speaks it.
    """

    texts: Annotated[tuple[str, ...], Positional, arg(metavar="TEXT")] = ()  # "-": standard input
    run: str  # folder of the run
    out: str  # FILE.wav of one text, or else a folder
    file: str = ""  # file of texts, one a line; "-" is standard input
    data: str = ""  # folder of shards or manifests, the texts of whose split are spoken
    split: str = "test"  # of data
    most: int = 0  # texts of data at most; 0 is all
    vocoder: str = ""  # folder of a vocoder, imported or trained; without one, Griffin-Lim
    voice: str = ""  # sound to go on from, in whose voice the text is spoken
    voice_text: str = ""  # what is said in it
    answer: bool = False  # the text is a question, whose answer is spoken
    question: str = ""  # sound that is asked, before the text if there is one
    seed: int = 0  # of what is drawn
    batch: int = 1  # texts spoken at once
    # seconds of sound at a time, made while the model writes on; 0 makes all at once. With --out -
    # one text goes to standard output as it comes, 16-bit samples in a WAV of unknown length
    stream: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and products
    picture: str = ""  # FILE.png: mel of one text, and how likely each patch is the last
    json: bool = False  # one JSON object a text on standard output, each in a line
    speaking: SpeakingOptions = dataclasses.field(default_factory=SpeakingOptions)


def main(argv: Sequence[str]) -> int:
    """`melllm speak --run DIR "TEXT" --out FILE.wav`."""
    arguments = parse(SpeakArguments, argv, prog="melllm speak")
    if arguments.stream or arguments.out == STDIN:
        return _stream(arguments)
    one_file = arguments.out.lower().endswith(".wav")
    out = files.local_path("out", arguments.out)
    question = _question(arguments)
    if question is not None:
        if not one_file:
            raise Mistake(f"out={arguments.out}: an answer is one file: give FILE.wav")
        return _answer(arguments, out, question)
    requests = _requests(arguments)
    if one_file and len(requests) != 1:
        raise Mistake(f"out={arguments.out}: is one file for {len(requests)} texts: give a folder")
    if arguments.picture and not one_file:
        raise Mistake(f"picture={arguments.picture}: is of one text: give --out FILE.wav")
    with (
        compile_cache.use_folder(compile_cache.FOLDER),
        open_speaker(_choice(arguments)) as speaker,
    ):
        for request in requests:
            speaker.model.check(request.text)
        if one_file:
            return _speak_one(arguments, out, requests[0].text, speaker)
        return _speak_all(arguments, out, requests, speaker)


def _answer(arguments: SpeakArguments, out: pathlib.Path, question: Question) -> int:
    """Writes the one file of an answer, and says what it is."""
    with (
        compile_cache.use_folder(compile_cache.FOLDER),
        open_speaker(_choice(arguments)) as speaker,
    ):
        reply = speaker.model.reply(question)
        return _speak_one(arguments, out, reply, speaker)


def _question(arguments: SpeakArguments) -> Question | None:
    """What is asked, if anything is. Raises Mistake for more than one question."""
    if not arguments.answer and not arguments.question:
        return None
    for name in ("data", "file", "voice"):
        if getattr(arguments, name):
            raise Mistake(f"{name}={getattr(arguments, name)}: goes with no question")
    if len(arguments.texts) > 1:
        raise Mistake(f"texts: one question is asked, not {len(arguments.texts)}")
    words = [read_text(STDIN).strip() if x == STDIN else x for x in arguments.texts]
    return Question(arguments.question or None, "".join(words))


def _choice(arguments: SpeakArguments) -> SpeakerChoice:
    return SpeakerChoice(
        run=arguments.run,
        vocoder=arguments.vocoder,
        voice=_voice(arguments),
        dtype=arguments.dtype,
        options=arguments.speaking,
        seed=arguments.seed,
        batch=arguments.batch,
    )


def _stream(arguments: SpeakArguments) -> int:
    """Speaks one text in parts, to a file or to standard output, and says when the first came."""
    to_output = arguments.out == STDIN
    if not arguments.stream:
        raise Mistake("out=-: takes sound as it comes: give --stream SECONDS")
    if to_output and arguments.json:
        raise Mistake("json: standard output takes the sound: give --out FILE.wav")
    if not to_output and not arguments.out.lower().endswith(".wav"):
        raise Mistake(f"out={arguments.out}: --stream speaks one text: give FILE.wav, or -")
    text: str | Question | None = _question(arguments)
    if text is None:
        requests = _requests(arguments)
        if len(requests) != 1:
            raise Mistake(f"stream={arguments.stream:g}: speaks one text, not {len(requests)}")
        text = requests[0].text
    out = None if to_output else files.local_path("out", arguments.out)
    with (
        compile_cache.use_folder(compile_cache.FOLDER),
        open_streaming_speaker(_choice(arguments)) as speak_text,
    ):
        speech = speak_text(text, arguments.stream)
        sound = take_parts(speech, sys.stdout.buffer if to_output else None)
    if out is not None:
        write_sound(out, sound)
        if arguments.picture:
            _draw(arguments, sound)
    if arguments.json:
        what = {"out": arguments.out, "text": sound.spoken.text, "vocoder": arguments.vocoder}
        print(json.dumps({**what, **sound.figures}))
        return 0
    if isinstance(text, Question):
        print(sound.spoken.text, file=sys.stderr if to_output else sys.stdout)
    print(
        f"{arguments.out}: {sound.duration:.2f} s in {sound.seconds:.2f} s, the first of it after "
        f"{sound.first:.2f} s{'' if sound.spoken.stopped else _unended(sound)}",
        file=sys.stderr if to_output else sys.stdout,
    )
    return 0


def _requests(arguments: SpeakArguments) -> list[SpeechRequest]:
    """The texts of a corpus, or of words and of a file. Raises Mistake for none, and for both."""
    if arguments.data:
        if arguments.texts or arguments.file:
            raise Mistake(f"data={arguments.data}: and other texts: give one of them")
        return corpus_requests(arguments.data, arguments.split, arguments.most)
    texts = [read_text(STDIN).strip() if x == STDIN else x for x in arguments.texts]
    if arguments.file:
        texts += [line for line in read_text(arguments.file).splitlines() if line.strip()]
    if not texts:
        raise Mistake("texts: give one at least, --file FILE or --data DIR")
    return [SpeechRequest(f"{number:04d}", text) for number, text in enumerate(texts, start=1)]


def _voice(arguments: SpeakArguments) -> Voice | None:
    if arguments.voice:
        return Voice(arguments.voice, arguments.voice_text)
    if arguments.voice_text:
        raise Mistake("voice_text: goes with --voice FILE")
    return None


def _speak_one(
    arguments: SpeakArguments, out: pathlib.Path, text: str | Reply, speaker: RunSpeaker
) -> int:
    """Writes the one file and its picture, and says what it is, of an answer its words as well."""
    (sound,) = speaker([text])
    vocoder = speaker.vocoder.name
    write_sound(out, sound)
    if arguments.picture:
        _draw(arguments, sound)
    if arguments.json:
        _print_json({"out": str(out), "text": sound.spoken.text, "vocoder": vocoder}, sound)
        return 0
    if isinstance(text, Reply):
        print(text.text)
    ended = "" if sound.spoken.stopped else _unended(sound)
    print(f"{out}: {sound.duration:.2f} s in {sound.seconds:.2f} s, sound by {vocoder}{ended}")
    return 0


def _speak_all(
    arguments: SpeakArguments,
    out: pathlib.Path,
    requests: Sequence[SpeechRequest],
    speaker: RunSpeaker,
) -> int:
    """Speaks into the folder, and says how many and how fast."""
    requests = [dataclasses.replace(x, voice=arguments.voice) for x in requests]
    with count_progress(len(requests), "texts") as advance:
        lines = speak_folder(requests, out, speaker.settings, speaker, advance)
    if arguments.json:
        for line in lines:
            print(json.dumps(line))
        return 0
    lasts, took = (sum(line[name] for line in lines) for name in ("duration", "seconds"))
    unended = sum(not line["flags"]["stopped"] for line in lines)
    print(
        f"{len(lines)} texts, {lasts:.0f} s of sound in {took:.0f} s, by {speaker.vocoder.name}; "
        f"{unended} ended by their limit: {out / MANIFEST}"
    )
    return 0


def _unended(sound: SpokenSound) -> str:
    return "; ended where it was not finite" if sound.spoken.broken else "; ended by its limit"


def _print_json(what: Mapping[str, Any], sound: SpokenSound) -> None:
    print(json.dumps({**what, **sound.figures}))


def _draw(arguments: SpeakArguments, sound: SpokenSound) -> None:
    from launch.charts import figures  # noqa: PLC0415 matplotlib is an extra

    spoken = sound.spoken
    path = pathlib.Path(arguments.picture)
    figures.draw_speech(spoken.mel, spoken.stops, spoken.text, path, spoken.hop_seconds)
