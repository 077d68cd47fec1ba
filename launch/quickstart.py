"""`melllm quickstart`: make a spoken corpus, train on it, score it, transcribe it."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
import time

from tqdm import tqdm

from data_pipelines import corpus, sources, vocabulary
from data_pipelines.examples import heard
from data_pipelines.grammar import Split
from launch import evaluate, pictures, transcribe
from launch.arguments import parse
from launch.train import fit
from melllm_jax import config, presets
from melllm_jax.errors import Mistake

COUNTS: dict[Split, int] = {"train": 5000, "dev": 100, "test": 300}
HOP = 0.01  # seconds a mel frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Speak a corpus, train a small model on it, score voices it never heard, transcribe one file.

    About four minutes on two cores. Stopped anywhere, the same command goes on.
    """

    workdir: str = "quickstart"  # folder for data, run and pictures
    seed: int = 0  # of corpus and training
    fresh: bool = False  # throw away what an earlier quickstart left in the folder


def main(argv: Sequence[str]) -> int:
    """`melllm quickstart [--workdir DIR]`."""
    arguments = parse(Arguments, argv, prog="melllm quickstart")
    folder = pathlib.Path(arguments.workdir)
    if arguments.fresh and folder.exists():
        _throw_away(folder)
    began = time.perf_counter()
    data, run_folder, tokenizer = (str(folder / name) for name in ("data", "run", "tokenizer"))
    with _timed("1/4 speaking a corpus of sentences with synthetic voices"):
        run = presets.preset("quickstart")
        _speak(data, run.mel, arguments.seed)
        train = sources.open_source(data, "train")
        texts = (train[index].text for index in range(len(train)))
        size = vocabulary.train_sentencepiece(texts, tokenizer, 0).size
    with _timed(f"2/4 training on it: {run.optim.steps} updates, {size} word pieces"):
        changes = {"data.sources": [{"path": data}], "text.tokenizer": tokenizer}
        run = config.override(run, changes | {"seed": arguments.seed})
        fit(run, run_folder)
    with _timed("3/4 scoring sentences it never saw, in voices it never heard"):
        scored = evaluate.Arguments(
            run=run_folder, data=data, split="test", batch=50, normalizer="none", name="test"
        )
        summary = evaluate.evaluate(scored)
    with _timed("4/4 transcribing one file"):
        pictured = _transcribe_one(folder, run, run_folder, arguments.seed)
    _draw_curve(folder, run_folder)
    seconds = time.perf_counter() - began
    print(
        f"WER on held-out voices and sentences: {summary['wer']:.1%} "
        f"({summary['utterances']} utterances, RTFx {summary['rtfx']:.0f})\n"
        f"{pictured}\n"
        f"pictures: {folder / 'curve.png'}, {folder / 'mel.png'}\n"
        f"all in {seconds:.0f} s; next: melllm transcribe --run {run_folder} YOUR.wav"
    )
    return 0


def _speak(data: str, mel: config.Mel, seed: int) -> None:
    if (pathlib.Path(data) / "index.json").exists():
        return
    with tqdm(total=sum(COUNTS.values()), unit="utterance", disable=None) as bar:

        def tick() -> None:
            bar.update()

        corpus.write_shards(data, COUNTS, mel, seed=seed, tick=tick)


def _transcribe_one(folder: pathlib.Path, run: config.Run, run_folder: str, seed: int) -> str:
    one = corpus.utterance("test", 0, seed)
    path = folder / "samples" / f"{one.id}.flac"
    path.parent.mkdir(exist_ok=True)
    assert isinstance(one.audio, bytes)
    path.write_bytes(one.audio)
    arguments = transcribe.Arguments(files=(str(path),), run=run_folder)
    found = transcribe.transcribe(arguments)[0].text
    raw = dataclasses.replace(run.mel, normalize="none")
    mel = heard(one, raw, longest=run.data.longest)
    pictures.spectrogram(mel, one.text, found, folder / "mel.png", HOP)
    return f"{path} ({one.speaker})\n  said:  {one.text}\n  heard: {found}"


def _draw_curve(folder: pathlib.Path, run_folder: str) -> None:
    metrics = pathlib.Path(run_folder, "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    curve = lambda name: {line["step"]: line[name] for line in lines if name in line}
    title = "an encoder-free speech LM learns to read mel spectrograms"
    pictures.curve(curve("loss"), curve("wer"), folder / "curve.png", title)


def _throw_away(folder: pathlib.Path) -> None:
    known = {"data", "run", "tokenizer", "samples", "curve.png", "mel.png"}
    strange = sorted({path.name for path in folder.iterdir()} - known)
    if strange:
        raise Mistake(f"workdir={folder}: holds {strange[0]}, which no quickstart made")
    shutil.rmtree(folder)


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    print(what, file=sys.stderr, flush=True)
    yield
    print(f"    {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
