"""`melllm data speak`: makes speech in any size, of a grammar or of any text, as shards."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from data_pipelines.prepare.validate import RecordConfig
from data_pipelines.synthetic import spoken_text, synthetic_shards
from data_pipelines.synthetic.grammar import Split
from data_pipelines.synthetic.spoken_text import Manner, Voices
from data_pipelines.synthetic.text_sentences import Sentences, find_sentences, spoken_words
from launch.terminal.flags import parse
from launch.terminal.progress_bar import count_progress
from launch.terminal.text_input import read_text
from melllm_jax.config.features import Mel
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog

TEXT_FLAGS: Mapping[str, object] = {"voices": "espeak", "words": (3, 20), "clean": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakArguments:
    """Speak sentences of 66 words with 273 voices, what quickstart trains on, or any English text.

    Test has sentences and voices that no other split has; with natural voices alone, of which there
    is one, only its sentences are new. The same flags and text give the same shards.
    """

    out: Annotated[str, Positional, arg(metavar="DIR")]  # folder of the shards; must hold none yet
    train: int = 5000  # utterances, of 2.3 s each, or about twice that of a text
    dev: int = 100
    test: int = 300
    noise: tuple[float, float] | None = None  # lowest and highest dB of speech over pink noise
    seed: int = 0  # of sentences, voices and noise
    # file of the sentences, a document a line, or "-" for standard input; a sentence's words decide
    # its split: 8 of 10 are train, 1 dev, 1 test
    text: str = ""
    words: tuple[int, int] = (3, 20)  # fewest and most of a sentence; longer ones are cut at marks
    voices: Voices = "espeak"  # both: half of train and dev is natural, test is espeak-ng's
    clean: bool = False  # the voices as they are: no level, noise or pace is drawn
    store: Literal["mel", "audio"] | None = (
        None  # quickstart's mel, or FLAC, as of --text if unsaid
    )

    def __post_init__(self) -> None:
        for name in ("train", "dev", "test"):
            if getattr(self, name) < 1:
                raise Mistake(f"{name}={getattr(self, name)}: must be positive")
        if self.seed < 0:
            raise Mistake(f"seed={self.seed}: must be 0 or more")
        if self.noise is not None and not -60 <= self.noise[0] <= self.noise[1] <= 60:
            low, high = self.noise
            raise Mistake(f"noise={low:g} {high:g}: must be LOW HIGH in dB, from -60 to 60")
        if not 1 <= self.words[0] <= self.words[1]:
            raise Mistake(f"words={self.words[0]} {self.words[1]}: must be FEWEST MOST, from 1")
        for name, plain in TEXT_FLAGS.items():
            if not self.text and getattr(self, name) != plain:
                raise Mistake(f"{name}: is of a text: it needs --text")


def main(argv: Sequence[str]) -> int:
    """`melllm data speak DIR --train 84000 --noise -20 10`."""
    arguments = parse(SpeakArguments, argv, prog="melllm data speak")
    if (pathlib.Path(arguments.out) / "index.json").exists():
        raise Mistake(f"out={arguments.out}: holds a corpus already")
    counts: dict[Split, int] = {
        "train": arguments.train,
        "dev": arguments.dev,
        "test": arguments.test,
    }
    store = arguments.store or ("audio" if arguments.text else "mel")
    if store == "mel":
        record_config = RecordConfig("mel", catalog.preset("quickstart").mel)
    else:
        record_config = RecordConfig("flac", Mel())
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
    there = ", ".join(f"{len(some):,} {split}" for split, some in found.splits.items())
    lines.append(f"sentences in the text: {there}")
    left_out = [f"{count:,} {reason}" for reason, count in found.left_out.items()]
    lines += [f"left out: {', '.join(left_out)}"] if left_out else []
    return "\n".join(lines)


def _words(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in spoken_words(text)]
