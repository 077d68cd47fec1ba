"""`melllm data speak`: makes speech, of a grammar, of any text or of questions, as shards."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from data_pipelines.prepare.validate import RecordConfig
from data_pipelines.synthetic import spoken_text, synthetic_shards
from data_pipelines.synthetic.grammar import Split
from data_pipelines.synthetic.spoken_questions import read_questions
from data_pipelines.synthetic.spoken_text import Manner, Voices
from data_pipelines.synthetic.text_sentences import Sentences, find_sentences, spoken_words
from launch.terminal.flags import parse
from launch.terminal.progress_bar import count_progress
from launch.terminal.text_input import read_text
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog

# Flags at their defaults, and those of which one must be given to change them.
OF_WORDS: Mapping[str, tuple[object, tuple[str, ...]]] = {
    "voices": ("espeak", ("text", "questions")),
    "words": ((3, 20), ("text",)),
    "clean": (False, ("text", "questions")),
}
SIZES: Mapping[Split, int] = {"train": 5000, "dev": 100, "test": 300}  # but of questions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakCorpusArguments:
    """Speak sentences of 66 words with 273 voices, what quickstart trains on, or any English text.

    With --questions they are to be answered, not transcribed. Test has sentences and voices that no
    other split has; with natural voices alone, of which there is one, only its sentences are new.
    The same flags and text give the same shards.
    """

    out: Annotated[str, Positional, arg(metavar="DIR")]  # folder of the shards; must hold none yet
    # utterances, of 2.3 s each, or about twice that of a text: 5,000 if unsaid, or all questions
    train: int | None = None
    dev: int | None = None  # 100 if unsaid, or all questions of the split
    test: int | None = None  # 300 if unsaid, or all questions of the split
    noise: tuple[float, float] | None = None  # lowest and highest dB of speech over pink noise
    seed: int = 0  # of sentences, voices and noise
    # file of the sentences, a document a line, or "-" for standard input; a sentence's words decide
    # its split: 8 of 10 are train, 1 dev, 1 test
    text: str = ""
    # .jsonl file, or "-": {"question": "Who?", "answer": "Ann"} a line; the answer may be a list of
    # those that are right; a "split" in the line, or else the question's words, decide its split
    questions: str = ""
    words: tuple[int, int] = (3, 20)  # fewest and most of a sentence; longer ones are cut at marks
    voices: Voices = "espeak"  # both: half of train and dev is natural, test is espeak-ng's
    clean: bool = False  # the voices as they are: no level, noise or pace is drawn
    store: Literal["mel", "audio"] | None = (
        None  # quickstart's mel, or FLAC, as of --text and --questions if unsaid
    )

    def __post_init__(self) -> None:
        for split, count in self.counts.items():
            if count is not None and count < 1:
                raise Mistake(f"{split}={count}: must be positive")
        if self.seed < 0:
            raise Mistake(f"seed={self.seed}: must be 0 or more")
        if self.noise is not None and not -60 <= self.noise[0] <= self.noise[1] <= 60:
            low, high = self.noise
            raise Mistake(f"noise={low:g} {high:g}: must be LOW HIGH in dB, from -60 to 60")
        if not 1 <= self.words[0] <= self.words[1]:
            raise Mistake(f"words={self.words[0]} {self.words[1]}: must be FEWEST MOST, from 1")
        if self.text and self.questions:
            raise Mistake(f"questions={self.questions}: and text={self.text}: give one of them")
        for name, (plain, sources) in OF_WORDS.items():
            if getattr(self, name) != plain and not any(getattr(self, x) for x in sources):
                needed = " or ".join(f"--{source}" for source in sources)
                raise Mistake(f"{name}: is of a text: it needs {needed}")

    @property
    def counts(self) -> dict[Split, int | None]:
        """Utterances of each split; None where that is not said."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


def main(argv: Sequence[str]) -> int:
    """`melllm data speak DIR --train 84000 --noise -20 10`."""
    arguments = parse(SpeakCorpusArguments, argv, prog="melllm data speak")
    if (pathlib.Path(arguments.out) / "index.json").exists():
        raise Mistake(f"out={arguments.out}: holds a corpus already")
    store = arguments.store or ("audio" if arguments.text or arguments.questions else "mel")
    if store == "mel":
        record_config = RecordConfig("mel", catalog.preset("quickstart").mel)
    else:
        record_config = RecordConfig("flac", Mel())
    if arguments.questions:
        return _speak_questions(arguments, record_config)
    counts = {split: count or SIZES[split] for split, count in arguments.counts.items()}
    if not arguments.text:
        jobs = synthetic_shards.grammar_jobs(counts, arguments.seed, arguments.noise)
        _write(arguments.out, jobs, record_config)
        return 0
    found = find_sentences(read_text(arguments.text).splitlines(), *arguments.words)
    drawn = {split: found.draw(split, count, arguments.seed) for split, count in counts.items()}
    spoken_text.check_voices(arguments.voices)
    manner = Manner(arguments.voices, arguments.clean, arguments.seed)
    jobs = synthetic_shards.text_jobs(drawn, manner, arguments.noise)
    _write(arguments.out, jobs, record_config)
    print(_format_sentences(found, drawn))
    return 0


def _speak_questions(arguments: SpeakCorpusArguments, record_config: RecordConfig) -> int:
    """Speaks the first questions of each split of a file, or all of them."""
    found = read_questions(arguments.questions, read_text(arguments.questions))
    for split, count in arguments.counts.items():
        if count is not None and count > len(found.splits[split]):
            rule = f"the file has {len(found.splits[split])} questions of that split"
            raise Mistake(f"{split}={count}: {rule}")
    drawn = {split: found.splits[split][:count] for split, count in arguments.counts.items()}
    spoken_text.check_voices(arguments.voices)
    manner = Manner(arguments.voices, arguments.clean, arguments.seed)
    _write(
        arguments.out,
        synthetic_shards.question_jobs(drawn, manner, arguments.noise),
        record_config,
    )
    print("\n".join(_format_found("questions in the file", found.splits, found.left_out)))
    return 0


def _write(out: str, jobs: synthetic_shards.Jobs, record_config: RecordConfig) -> None:
    """Writes the shards, and says what they hold and what could not be used."""
    total = sum(map(len, jobs.values()))
    with count_progress(total, "utterances") as advance:
        index = synthetic_shards.write_utterances(out, jobs, record_config, progress=advance)
    shards = [shard for listed in index.splits.values() for shard in listed]
    hours = sum(shard.seconds for shard in shards) / 3600
    print(f"{sum(shard.count for shard in shards):,} utterances, {hours:.1f} h: {out}")
    for split, facts in index.facts.items():
        for reason, count in facts.rejects.items():
            print(f"{split}: {count:,} unusable: {reason}")


def _format_sentences(found: Sentences, drawn: Mapping[Split, Sequence[str]]) -> str:
    """What is known of the sentences: the words of train and test, and what was left out."""
    known, new = ({*_words(drawn[split])} for split in ("train", "test"))
    said = _words(drawn["test"])
    unheard = sum(word not in known for word in said)
    lines = [
        f"{len(known):,} words in train; of test's {len(new):,} words {len(new - known):,} are not "
        f"among them ({unheard / len(said):.1%} of what test says)"
    ]
    lines += _format_found("sentences in the text", found.splits, found.left_out)
    return "\n".join(lines)


def _format_found(
    what: str, splits: Mapping[Split, Sequence[object]], left_out: Mapping[str, int]
) -> list[str]:
    """How many there are of each split, and how many were left out, if any."""
    there = ", ".join(f"{len(some):,} {split}" for split, some in splits.items())
    reasons = [f"{count:,} {reason}" for reason, count in left_out.items()]
    return [f"{what}: {there}", *([f"left out: {', '.join(reasons)}"] if reasons else [])]


def _words(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in spoken_words(text)]
