"""Files damaged at random end in one line: no traceback, no hang, nothing half-written.

A valid file of each kind is damaged again and again, and the command that reads it run in this
process; where it would begin to train, it is stopped. The long test takes MELLLM_FUZZ_FILES files
of a kind, 2,000 at most, but 500 of what converts, fits or prepares, and 200 of what sets up a
training.
"""

import dataclasses
import functools
import json
import random
import re
import shutil

import pytest

from data_pipelines.prepare.prepare_corpus import prepare
from data_pipelines.prepare.validate import Limits
from launch import cli
from launch.scaling import law_fit, law_json
from melllm_jax.telemetry.goodput import Goodput
from melllm_jax.telemetry.metrics_writer import MetricsWriter
from tests.support import families, laws, phi_files, sweep_folders
from tests.support.corpora import write_corpus
from tests.support.fuzzing import FILES_OF_A_KIND, SEED, damaged, damaged_safetensors, outcome
from tests.support.runs import TINY, everything

LINES = 4  # of a corpus
TRAIN = f"train digits --data IN/raw --workdir IN/run {' '.join(TINY)}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A file that is damaged, and the words that read it: IN is its folder, OUT a new one."""

    make: object  # writes the valid folder
    file: str
    words: str
    damage: object = damaged
    short: int = 8  # files of the short test
    long: int = 2000


def jsonl(folder):
    write_corpus(folder, LINES)


def nemo(folder):
    write_corpus(folder, LINES, changes={2: {"offset": 0.1, "lang": "en", "channel": 0}})
    (folder / "train.jsonl").rename(folder / "train_manifest.json")


def common_voice(folder):
    write_corpus(folder, LINES)
    (folder / "audio").rename(folder / "clips")
    (folder / "train.jsonl").unlink()
    rows = [f"speaker\t{i}.flac\tone two\t2\t0\ten" for i in range(LINES)]
    head = "client_id\tpath\tsentence\tup_votes\tdown_votes\tlocale"
    (folder / "train.tsv").write_text("\n".join([head, *rows, ""]))
    times = [f"{i}.flac\t{300 + i}" for i in range(LINES)]
    (folder / "clip_durations.tsv").write_text("\n".join(["clip\tduration[ms]", *times, ""]))


def kaldi(folder):
    write_corpus(folder, LINES)
    names = [f"speaker-{i}" for i in range(LINES)]
    tables = {
        "wav.scp": [f"{name} {folder}/audio/{i}.flac" for i, name in enumerate(names)],
        "text": [f"{name} one two" for name in names],
        "utt2spk": [f"{name} speaker" for name in names],
        "segments": [f"{name} {name} 0.0 0.1" for name in names],
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join([*lines, ""]))


def lhotse(folder):
    write_corpus(folder, LINES)
    (folder / "train.jsonl").unlink()
    cuts = [
        {
            "id": f"cut-{i}",
            "start": 0.05,
            "duration": 0.1,
            "channel": 0,
            "type": "MonoCut",
            "supervisions": [
                {
                    "id": f"s{i}",
                    "recording_id": f"r{i}",
                    "start": 0.0,
                    "duration": 0.1,
                    "channel": 0,
                    "text": "one two",
                    "language": "en",
                    "speaker": "speaker",
                }
            ],
            "recording": {
                "id": f"r{i}",
                "sources": [
                    {"type": "file", "channels": [0], "source": f"{folder}/audio/{i}.flac"}
                ],
                "sampling_rate": 16000,
                "num_samples": 4800,
                "duration": 0.3,
                "channel_ids": [0],
                "transforms": [{"name": "Resample", "kwargs": {}}],
            },
        }
        for i in range(LINES)
    ]
    (folder / "cuts_train.jsonl").write_text("".join(json.dumps(cut) + "\n" for cut in cuts))


def shards(folder):
    write_corpus(folder / "raw", LINES)
    prepare(folder / "raw", folder / "shards", limits=Limits(), bad=1.0)


@functools.cache
def phi(kind):
    def make(folder):
        phi_files.make(folder, kind)

    return make


def tokenizer(folder):
    write_corpus(folder / "raw", LINES)
    families.write_tokenizer(folder / "tokenizer", families.FAMILIES["Phi-4-mini"])


def run(folder):
    write_corpus(folder / "raw", LINES)
    assert cli.main(_filled(TRAIN, folder, folder)) == 0
    for step in range(1, 4):
        with MetricsWriter(folder / "run", step) as metrics:
            metrics.write(step, {"loss": 3.0 / step, "lr": 1e-3, "rejects": {"empty": 1}})
        Goodput(folder / "run").save(step)


def sweep(folder):
    cells = sweep_folders.grid(sweep_folders.SIZES[:2], sweep_folders.TOKENS[:2], rates=())
    cells[3] = sweep_folders.state(cells[3], "failed", 0.3, "update 900: the loss is nan")
    sweep_folders.write(folder / "sweep", cells, lines=20)


def law(folder):
    folder.mkdir(exist_ok=True)
    points = laws.grid(laws.HOFFMANN, sizes=(5e7, 1.6e10, 4), budgets=(1e9, 5e11, 4))
    (folder / "runs.csv").write_text(laws.csv(points))
    (folder / "law.json").write_text(law_json.to_json(law_fit.fit_law(points, 0.2, 20, 0), "x"))


def transcripts(folder):
    folder.mkdir(exist_ok=True)
    rows = [{"id": f"a{i}", "text": "one two three"} for i in range(LINES)]
    (folder / "ref.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[1] = {"id": "a1", "rejected": "empty"}
    (folder / "hyp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "several.json").write_text(json.dumps({"transcripts": rows}))
    (folder / "ref.txt").write_text("".join(f"a{i}\tone two three\n" for i in range(LINES)))


IMPORT = "data import IN --out OUT --kind"
KINDS = {
    "jsonl": Kind(jsonl, "train.jsonl", "data inspect IN --listen 2 --examples 0 --json"),
    "jsonl prepared": Kind(
        jsonl,
        "train.jsonl",
        "prepare IN --out OUT --kind jsonl --bad 1 --runner inline",
        short=4,
        long=500,
    ),
    "nemo": Kind(nemo, "train_manifest.json", f"{IMPORT} nemo"),
    "common voice": Kind(common_voice, "train.tsv", f"{IMPORT} commonvoice"),
    "common voice times": Kind(common_voice, "clip_durations.tsv", f"{IMPORT} commonvoice"),
    "kaldi scp": Kind(kaldi, "wav.scp", f"{IMPORT} kaldi"),
    "kaldi segments": Kind(kaldi, "segments", f"{IMPORT} kaldi"),
    "lhotse": Kind(lhotse, "cuts_train.jsonl", f"{IMPORT} lhotse"),
    "index.json": Kind(shards, "shards/index.json", "data inspect IN/shards --listen 2 --json"),
    "rejects": Kind(shards, "shards/rejects.jsonl", "data inspect IN/shards --listen 2 --json"),
    "columns": Kind(shards, "shards/train.columns.npy", "data inspect IN/shards --listen 2 --json"),
    "shard": Kind(
        shards, "shards/train-00000.array_record", "data inspect IN/shards --listen 2 --json"
    ),
    "config.json": Kind(phi("text"), "config.json", "convert import IN OUT", short=4, long=500),
    "multimodal config.json": Kind(
        phi("microsoft"), "config.json", "convert import IN OUT", short=4, long=500
    ),
    "safetensors": Kind(
        phi("text"),
        "model.safetensors",
        "convert import IN OUT",
        damaged_safetensors,
        short=4,
        long=500,
    ),
    "safetensors index": Kind(
        phi("text in files"),
        "model.safetensors.index.json",
        "convert import IN OUT",
        short=4,
        long=500,
    ),
    "adapter": Kind(
        phi("transformers"),
        "speech-lora/adapter_config.json",
        "convert import IN OUT",
        short=4,
        long=500,
    ),
    "tokenizer.json": Kind(
        tokenizer,
        "tokenizer/tokenizer.json",
        "prepare IN/raw --out OUT --tokenizer IN/tokenizer --runner inline --bad 1",
        short=4,
        long=500,
    ),
    "tokenizer_config.json": Kind(
        tokenizer,
        "tokenizer/tokenizer_config.json",
        f"{TRAIN} --text.tokenizer IN/tokenizer".replace("IN/run", "OUT"),
        short=4,
        long=200,
    ),
    "run.json": Kind(run, "run/run.json", "convert export IN/run OUT"),
    "run.json transcribed": Kind(
        run, "run/run.json", "transcribe --run IN/run IN/raw/audio/0.flac"
    ),
    "run.json resumed": Kind(run, "run/run.json", TRAIN, short=4, long=200),
    "metrics.jsonl": Kind(run, "run/metrics.jsonl", TRAIN, short=4, long=200),
    "goodput.jsonl": Kind(run, "run/goodput.jsonl", TRAIN, short=4, long=200),
    "cell": Kind(sweep, "sweep/cells/CELL.json", "sweep status IN/sweep --once --json"),
    "cell reported": Kind(sweep, "sweep/cells/CELL.json", "sweep report IN/sweep"),
    "curve": Kind(sweep, "sweep/runs/CELL/metrics.jsonl", "sweep report IN/sweep"),
    "cell fitted": Kind(
        sweep, "sweep/cells/CELL.json", "scaling fit IN/sweep --out OUT --bootstrap 20"
    ),
    "sweep.json": Kind(sweep, "sweep/sweep.json", "sweep status IN/sweep --once --json"),
    "law.json": Kind(law, "law.json", "scaling predict IN/law.json --flops 1e20 --json"),
    "runs.csv": Kind(
        law, "runs.csv", "scaling fit IN/runs.csv --out OUT --bootstrap 20", short=4, long=500
    ),
    "ref.jsonl": Kind(transcripts, "ref.jsonl", "wer IN/ref.jsonl IN/hyp.jsonl --json"),
    "ref.txt": Kind(transcripts, "ref.txt", "wer IN/ref.txt IN/hyp.jsonl"),
    "transcripts": Kind(transcripts, "several.json", "wer IN/ref.jsonl IN/several.json"),
}


def _filled(words, folder, out):
    """The words of a command with the paths in their places."""
    places = {"IN": str(folder), "OUT": str(out)}
    for name, path in places.items():
        words = re.sub(rf"\b{name}\b", path, words)
    return words.split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function: the valid folder that a maker wrote, once for all; each test leaves it as is."""

    @functools.cache
    def once(make):
        folder = tmp_path_factory.mktemp("made") / "in"
        folder.mkdir()
        make(folder)
        return folder

    return once


@pytest.fixture
def stubbed(monkeypatch):
    """What trains reads what a run left and stops; nothing is asked of the network."""

    def train(update, stream, workdir, telemetry, stop):
        Goodput(workdir).resume(2)
        with MetricsWriter(workdir, 2):
            pass

    monkeypatch.setattr("launch.runs.fit.train", train)
    monkeypatch.setattr("launch.runs.fit.device_memory.check_state_fits", lambda *_: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _check_end(status, said, out, what):
    """One line where it failed, and only whole files where it did not."""
    assert status in (0, 1, 2), what
    assert "Traceback" not in said, what
    # What `prepare` keeps to go on with lies apart, in .work, and what it refused in rejects.jsonl.
    written = everything(out) if out.is_dir() else {}
    kept = lambda path: ".work" in path.parts or path.name == "rejects.jsonl"
    written = {path: x for path, x in written.items() if not kept(path)}
    if status:
        assert re.fullmatch(r"melllm[^\n]*: error: [^\n]+\n", said.rpartition("\r")[2]), what
        assert not written, (what, list(written))
        return
    assert not [path for path in written if path.name.endswith(".part")], what
    for path, content in written.items():
        if path.suffix in (".json", ".jsonl"):
            whole = path.suffix == ".json"  # a line ends in "\n" alone: U+2028 stands in texts
            for text in [content] if whole else filter(None, content.decode().split("\n")):
                json.loads(text)


@pytest.mark.parametrize(
    "long", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "long"]
)
@pytest.mark.parametrize("name", KINDS)
def test_fuzzed_files_end_in_a_line_and_leave_nothing_half_written(
    name, long, made, tmp_path, stubbed, monkeypatch, capsys
):
    kind, out = KINDS[name], tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    folder = made(kind.make)
    there, places = everything(folder), set(folder.rglob("*"))
    cell = sorted(path.stem for path in (folder / "sweep/runs").glob("*"))[:1]
    file = folder / kind.file.replace("CELL", "".join(cell))
    words = _filled(kind.words, folder, out)
    seed = SEED if long else 0
    for number in range(min(kind.long, FILES_OF_A_KIND) if long else kind.short):
        draw = random.Random(f"{name} {seed} {number}")
        try:
            file.write_bytes(kind.damage(draw, there[file]))
            before = _without_claims(folder)
            status, said = outcome(words, capsys)
            what = f"seed {seed}, file {number}: melllm {' '.join(words)}: {status}, {said}"
            _check_end(status, said, out, what)
            if status:
                assert _without_claims(folder) == before, what
        finally:
            _restore(folder, there, places)
            shutil.rmtree(out, ignore_errors=True)


def _without_claims(folder):
    """All files but the list of starts at a run, which each start is put on."""
    return {p: x for p, x in everything(folder).items() if p.parent.name != "claims"}


def _restore(folder, there, places):
    """The folder as it was: what came is gone, what changed is back."""
    for path in sorted(set(folder.rglob("*")) - places, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for path, content in there.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
