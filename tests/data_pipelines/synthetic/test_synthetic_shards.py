import json

from etils import epath
import numpy as np
import pytest

from data_pipelines.audio.file_io import decode_audio
from data_pipelines.corpora import shard_index
from data_pipelines.corpora.corpus import open_corpus
from data_pipelines.synthetic import synthetic_shards
from melllm_jax.config.features import Mel

pytest.importorskip("espeakng_loader")

COUNTS = {"train": 3, "test": 2}
MEL = Mel(kind="plain", m=8)


def test_corpus_has_an_index_of_all_that_is_known_of_it(tmp_path):
    ticks = []
    index = synthetic_shards.write_shards(
        tmp_path / "out", COUNTS, MEL, processes=1, progress=lambda: ticks.append(1)
    )
    assert len(ticks) == 5
    assert index == shard_index.read_index(epath.Path(tmp_path / "out"))
    assert json.loads((tmp_path / "out/index.json").read_text())["stores"] == "mel"
    for split, count in COUNTS.items():
        stored = open_corpus(tmp_path / "out", split)
        rows = shard_index.read_columns(epath.Path(tmp_path / "out"), split)
        assert len(stored) == len(rows) == count
        for one, row in zip(stored, rows, strict=True):
            assert row["hash"] == shard_index.utterance_hash(one.source, one.id)
            assert row["characters"] == len(one.text)
        assert index.facts[split].characters == rows["characters"].sum()
    assert len(index.statistics.mean) == 8
    assert index.loudness[""]["mean"] < -3


@pytest.mark.slow
def test_corpus_is_the_same_by_any_number_of_processes(tmp_path):
    for processes in (1, 2):
        synthetic_shards.write_shards(tmp_path / str(processes), COUNTS, MEL, processes=processes)
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("1", "2")]
    assert files[0] == files[1]


def test_noise_is_at_the_ratio_drawn_and_changes_neither_words_nor_voice():
    for index in range(3):
        plain, noisy = (
            synthetic_shards.make_utterance("train", index, 3, snrs)
            for snrs in (None, (-6.0, -6.0))
        )
        assert (plain.text, plain.speaker, plain.id) == (noisy.text, noisy.speaker, noisy.id)
        clean, mixed = decode_audio(plain.audio), decode_audio(noisy.audio)
        # The mixture may have been made quieter as a whole: the gain is what fits it best.
        gain = float(clean @ mixed / (clean @ clean))
        rest = mixed - gain * clean
        found = 10 * np.log10(np.mean((gain * clean) ** 2) / np.mean(rest**2))
        assert found == pytest.approx(-6.0, abs=0.3)
        assert np.abs(mixed).max() < 1
        again = synthetic_shards.make_utterance("train", index, 3, (-6.0, -6.0))
        assert again.audio == noisy.audio
