"""`melllm quickstart`: make a spoken corpus, train on it, score it, transcribe it."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
import time

from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.examples.asr_example import load_mel
from data_pipelines.synthetic import synthetic_shards
from data_pipelines.synthetic.grammar import Split
from data_pipelines.text.tokenizer_training import train_sentencepiece
from launch.charts import figures
from launch.evaluation.score_split import score_split
from launch.runs.fit import fit
from launch.runs.transcribe_files import transcribe_files
from launch.runtime import folder_claim
from launch.runtime.folder_claim import FolderClaim
from launch.speech import speech_quickstart
from launch.terminal.flags import parse
from launch.terminal.progress_bar import count_progress
from melllm_jax import files
from melllm_jax.config.features import Mel
from melllm_jax.config.overrides import override
from melllm_jax.config.run import Run
from melllm_jax.errors import Mistake
from melllm_jax.presets import catalog

KNOWN = (  # what it makes
    *("data", "run", "tokenizer", "samples", "curve.png", "mel.png"),
    *speech_quickstart.OWN,
)
COUNTS: dict[Split, int] = {"train": 5000, "dev": 100, "test": 300}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartArguments:
    """Speak a corpus, train a small model on it, score voices it never heard, transcribe one file.

    About four minutes on two cores. Stopped anywhere, the same command goes on. With --speech the
    model reads aloud, in one voice: it and a vocoder train, and sentences they never saw are spoken
    and compared with the voice's own.
    """

    workdir: str = ""  # folder for data, runs and pictures: quickstart, or quickstart_speech
    speech: bool = False  # teach it to speak
    seed: int = 0  # of corpus and training
    fresh: bool = False  # throw away what an earlier quickstart left in the folder


def main(argv: Sequence[str]) -> int:
    """`melllm quickstart [--workdir DIR]`."""
    arguments = parse(QuickstartArguments, argv, prog="melllm quickstart")
    default = "quickstart_speech" if arguments.speech else "quickstart"
    folder = files.local_path("workdir", arguments.workdir or default)
    if arguments.fresh and folder.exists():
        _check_known(folder)
    folder_claim.refuse_if_held(str(folder / "run"))
    with FolderClaim(str(folder)):
        if arguments.fresh:
            _throw_away(folder)
        if arguments.speech:
            speech_quickstart.run(folder, arguments.seed, _timer)
        else:
            _run(folder, arguments.seed)
    return 0


def _run(folder: pathlib.Path, seed: int) -> None:
    began = time.perf_counter()
    data, run_folder, tokenizer = (str(folder / name) for name in ("data", "run", "tokenizer"))
    with _timer("1/4 speaking a corpus of sentences with synthetic voices"):
        run = catalog.preset("quickstart")
        _speak(data, run.mel, seed)
        train = open_corpus(data, "train")
        texts = (train[index].text for index in range(len(train)))
        size = train_sentencepiece(texts, tokenizer, 0).size
    with _timer(f"2/4 training on it: {run.optim.steps} updates, {size} word pieces"):
        changes = {"data.sources": [{"path": data}], "text.tokenizer": tokenizer}
        run = override(run, changes | {"seed": seed})
        fit(run, run_folder)
    with _timer("3/4 scoring sentences it never saw, in voices it never heard"):
        scored = score_split(run_folder, data, "test", batch=50, normalizer="none", name="test")
        summary = scored.summary
        print(f"hypotheses: {scored.hypotheses}", file=sys.stderr)
    with _timer("4/4 transcribing one file"):
        pictured = _transcribe_one(folder, run, run_folder, seed)
    _draw_curve(folder, run_folder)
    seconds = time.perf_counter() - began
    print(
        f"WER on held-out voices and sentences: {summary['wer']:.1%} "
        f"({summary['utterances']} utterances, RTFx {summary['rtfx']:.0f})\n"
        f"{pictured}\n"
        f"pictures: {folder / 'curve.png'}, {folder / 'mel.png'}\n"
        f"all in {seconds:.0f} s; next: melllm transcribe --run {run_folder} YOUR.wav"
    )


def _speak(data: str, mel: Mel, seed: int) -> None:
    if (pathlib.Path(data) / "index.json").exists():
        return
    with count_progress(sum(COUNTS.values()), "utterances") as advance:
        synthetic_shards.write_shards(data, COUNTS, mel, seed=seed, progress=advance)


def _transcribe_one(folder: pathlib.Path, run: Run, run_folder: str, seed: int) -> str:
    one = synthetic_shards.make_utterance("test", 0, seed)
    path = folder / "samples" / f"{one.id}.flac"
    path.parent.mkdir(exist_ok=True)
    assert isinstance(one.audio, bytes)
    path.write_bytes(one.audio)
    found = transcribe_files([str(path)], run_folder)[0].line
    raw = dataclasses.replace(run.mel, normalize="none")
    mel = load_mel(one, raw, longest=run.data.longest)
    figures.draw_spectrogram(mel, one.text, found, folder / "mel.png", run.mel.hop_seconds)
    return f"{path} ({one.speaker})\n  said:  {one.text}\n  heard: {found}"


def _draw_curve(folder: pathlib.Path, run_folder: str) -> None:
    metrics = pathlib.Path(run_folder, "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in metrics.splitlines() if line.strip()]
    curve = lambda name: {line["step"]: line[name] for line in lines if name in line}
    title = "an encoder-free speech LM learns to read mel spectrograms"
    figures.draw_curves(curve("loss"), curve("wer"), folder / "curve.png", title)


def _check_known(folder: pathlib.Path) -> None:
    """Raises Mistake where the folder holds what no quickstart made, or is none."""
    if not folder.is_dir():
        raise Mistake(f"workdir={folder}: is no folder")
    strange = sorted({path.name for path in folder.iterdir()} - {*KNOWN, folder_claim.FOLDER})
    if strange:
        raise Mistake(f"workdir={folder}: holds {strange[0]}, which no quickstart made")


def _throw_away(folder: pathlib.Path) -> None:
    for path in (folder / name for name in KNOWN):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _timer(what: str) -> Iterator[None]:
    began = time.perf_counter()
    print(what, file=sys.stderr, flush=True)
    yield
    print(f"    {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
