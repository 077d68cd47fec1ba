"""A corpus of 100,000 hours as an index: how fast it opens, resumes and is thinned, in what memory.

    python benchmarks/index.py --out benchmarks/results/index.json

The index is simulated, what reads it is not: one shard of real records lies under 10,000 names, and
index.json and the columns say of each name what they would of a shard of its own. Every figure is
of a process of its own that ends with it. "resume" goes to a place drawn by chance, takes batches,
saves its place as JSON; another process opens everything, goes there, and must give the same batch
that the first one gives next; "processor" is the seconds of all cores that this took, which a
machine that is busy otherwise does not change. Memory is the most that was ever resident, files
that are mapped included.
"""

import argparse
from collections.abc import Callable
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from etils import epath
import numpy as np
from support.report import report

from data_pipelines.audio.file_io import to_flac
from data_pipelines.audio.log_mel import normalized_log_mel
from data_pipelines.corpora import shard_index, shard_writer, subset
from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.corpora.utterance import Utterance, encode_record
from data_pipelines.loader.pipeline import train_batches
from data_pipelines.text.load_tokenizer import load_tokenizer
from melllm_jax.config.data import Data, Source
from melllm_jax.config.features import Mel
from melllm_jax.config.run import Run
from melllm_jax.presets import catalog

SECONDS = 7.2  # of an utterance: 50 million of them last 100,000 hours
TEXT = "the quick brown fox jumps over the lazy dog near the river bank at noon"  # as fast as read
LIBRARIES = ("numpy", "grain", "array-record", "soundfile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="", help="JSON file to write the figures to")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--records", type=int, default=5_000, help="in a shard")
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--child", nargs=2, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, folder = arguments.child
        print(json.dumps(CHILDREN[what](pathlib.Path(folder), arguments.rows)))
        return
    figures: dict[str, Any] = {}
    for stored in ("flac", "mel"):
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place)
            made = simulated(folder, arguments.shards, arguments.records, stored)
            asked = ["open", "gone", "back", *(["subset"] if stored == "flac" else [])]
            found = {what: child(what, folder, arguments.rows) for what in asked}
            assert found["gone"].pop("next") == found["back"].pop("next"), "another batch"
            figures[stored] = {"index": made, **found}
    report(
        "opening, resuming and thinning an index of 100,000 hours",
        {"rows": arguments.rows, "positions": 1024} | figures,
        arguments.out,
        LIBRARIES,
    )


def simulated(folder: pathlib.Path, count: int, records: int, stored: str) -> dict[str, Any]:
    """One shard under `count` names, with the index and the columns that belong to them."""
    rng = np.random.default_rng(0)
    writer = shard_writer.ShardWriter(epath.Path(folder), "one", per_shard=records)
    mel = Mel() if stored == "mel" else None
    made = []
    for _ in range(50):
        # Noise of the last bit: decoded like speech, but small, so that the shard is.
        wave = (rng.integers(-1, 2, int(SECONDS * 16_000)) / 32768).astype(np.float32)
        made.append({"mel": normalized_log_mel(wave, mel)} if mel else {"audio": to_flac(wave)})
    for number in range(records):
        said = Utterance(f"id{number}", TEXT, SECONDS, "x", **made[number % len(made)])
        writer.add(encode_record(said), SECONDS)
    (one,) = writer.close()
    path, listed = folder / one.name, []
    for number in range(count):
        name = shard_index.shard_name("train", number)
        os.link(path, folder / name)
        listed.append(dataclasses.replace(one, name=name))
    rows = np.lib.format.open_memmap(
        folder / f"train{shard_index.COLUMNS_SUFFIX}",
        "w+",
        shard_index.COLUMNS_DTYPE,
        (count * records,),
    )
    rows["hash"] = rng.integers(0, 2**64, count * records, np.uint64)
    rows["seconds"], rows["characters"] = SECONDS, len(TEXT)
    rows.flush()
    shard_index.write_index(
        epath.Path(folder), shard_index.ShardIndex(mel, {"train": tuple(listed)})
    )
    return {
        "shards": count,
        "utterances": count * records,
        "hours": count * one.seconds / 3600,
        "megabytes_a_shard": one.size / 1e6,
        "megabytes_of_index": (folder / shard_index.INDEX).stat().st_size / 1e6,
    }


def child(what: str, folder: pathlib.Path, rows: int) -> dict[str, Any]:
    """The figures of another process."""
    words = [sys.executable, __file__, "--child", what, str(folder), "--rows", str(rows)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_over(folder: pathlib.Path, rows: int) -> Run:
    run = catalog.preset("quickstart")
    source = Source(str(folder))
    data = Data(t=1024, b=rows, sources=(source,), threads=os.cpu_count() or 1)
    return dataclasses.replace(run, data=data)


def opened(folder: pathlib.Path, rows: int) -> tuple[Any, float]:
    """The iterator of a run, and the seconds from its config to it."""
    start = time.perf_counter()
    iterator = iter(train_batches(run_over(folder, rows), load_tokenizer("bytes")))
    return iterator, time.perf_counter() - start


def digest(batch: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in batch)).hexdigest()


def resident() -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024**2 for line in lines if line.startswith("VmHWM"))


def first(folder: pathlib.Path, rows: int) -> dict[str, Any]:
    """From nothing to the first batch, and what lies in memory after 30 more."""
    before = resident()
    iterator, seconds = opened(folder, rows)
    start = time.perf_counter()
    next(iterator)
    found = {"open": seconds, "first_batch": time.perf_counter() - start}
    for _ in range(30):
        next(iterator)
    iterator.close()
    return found | {"gib_before": before, "gib": resident()}


def gone(folder: pathlib.Path, rows: int) -> dict[str, Any]:
    """Go to a turn drawn by chance, take some batches, save the place; what the next one is."""
    iterator, _ = opened(folder, rows)
    state, rng = iterator.get_state(), np.random.default_rng()
    turn = int(rng.integers(0, 50_000_000 // len(state["lanes"])))
    for lane in state["lanes"].values():
        inner = lane
        while "next" not in inner:
            if "reached" in inner:
                inner["reached"] = turn
            inner = inner["parent"]
        inner["next"] = turn
    iterator.set_state(state)
    steps = int(rng.integers(1, 40))
    for _ in range(steps):
        next(iterator)
    state = json.dumps(iterator.get_state())
    (folder / "place.json").write_text(state)
    found = {"turn": turn, "steps": steps, "bytes_of_state": len(state)}
    found |= {"next": digest(next(iterator))}
    iterator.close()
    return found


def back(folder: pathlib.Path, rows: int) -> dict[str, Any]:
    """Go to the saved place in a fresh process."""
    state = json.loads((folder / "place.json").read_text())
    iterator, seconds = opened(folder, rows)
    start, began = time.perf_counter(), time.process_time()
    iterator.set_state(state)
    batch = next(iterator)
    found = {"open": seconds, "resumed": time.perf_counter() - start}
    found |= {"processor": time.process_time() - began, "next": digest(batch)}
    iterator.close()
    return found | {"gib": resident()}


def thinned(folder: pathlib.Path, rows: int) -> dict[str, Any]:
    """Subsets of all orders of magnitude."""
    corpus, found = open_corpus(folder, "train"), {}
    most = subset.total_hours(corpus)
    for hours in (10.0, 100.0, 1000.0, 10_000.0, most * 0.999):
        if hours < most:
            start = time.perf_counter()
            count = len(subset.draw_subset(corpus, hours))
            found[f"{hours:g}h"] = {"utterances": count, "seconds": time.perf_counter() - start}
    return found | {"gib": resident()}


CHILDREN: dict[str, Callable[[pathlib.Path, int], dict[str, Any]]] = {
    "open": first,
    "gone": gone,
    "back": back,
    "subset": thinned,
}


if __name__ == "__main__":
    main()
