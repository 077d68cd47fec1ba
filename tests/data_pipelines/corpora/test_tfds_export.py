import dataclasses
import importlib.util
import json
import sys

from etils import epath
import numpy as np
import pytest

from data_pipelines.audio.file_io import to_flac
from data_pipelines.audio.log_mel import normalized_log_mel
from data_pipelines.corpora import shard_index, shard_writer, tfds_export
from data_pipelines.corpora.corpus import load_utterance_wave, open_corpus
from data_pipelines.corpora.utterance import Utterance, encode_record
from data_pipelines.importers import write_manifests
from launch.commands.data import export_tfds
from melllm_jax.errors import Mistake
from tests.support.corpora import MEL, write_corpus

tfds = pytest.importorskip("tensorflow_datasets")
# protobuf 7 deprecates what TFDS 4.9 reads dataset_info.json by.
pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")


def wave(number):
    rng = np.random.default_rng(number)
    whole = rng.integers(-9000, 9000, 4000 + 100 * number)
    return (whole / 32768).astype(np.float32)


def prepared(folder, counts, mel=None):
    """Shards of `counts` utterances a split, written as preparing writes them."""
    home = epath.Path(folder)
    home.mkdir(parents=True)
    written = {}
    for split, count in counts.items():
        writer = shard_writer.ShardWriter(home, split, per_shard=2)
        for n in range(count):
            heard = Utterance(f"{split}/{n}", f"text ä {n}", len(wave(n)) / 16_000, f"s{n % 2}")
            heard = dataclasses.replace(heard, language="de", source="noise")
            if mel is None:
                record = encode_record(dataclasses.replace(heard, audio=to_flac(wave(n))))
            else:
                record = encode_record(
                    dataclasses.replace(heard, mel=normalized_log_mel(wave(n), mel))
                )
            writer.add(record, heard.duration)
        written[split] = writer.close()
    shard_index.write_index(home, shard_index.ShardIndex(mel, written))
    return home


def test_prepared_corpus_is_opened_by_tfds_without_tensorflow(tmp_path):
    home = prepared(tmp_path / "shards", {"train": 5, "test": 1})
    made = tfds_export.export_dataset(home, tmp_path / "tfds", name="noise", version="1.2.0")
    assert made == epath.Path(tmp_path / "tfds/noise/1.2.0")
    rows = tfds.data_source("noise", split="train", data_dir=tmp_path / "tfds")
    assert len(rows) == 5
    for n, row in enumerate(rows):
        assert row["id"].decode() == f"train/{n}"
        assert row["text"].decode() == f"text ä {n}"
        told = [row[name].decode() for name in ("speaker", "language", "source")]
        assert told == [f"s{n % 2}", "de", "noise"]
        assert row["audio"].dtype == np.int16
        assert np.array_equal(row["audio"] / np.float32(32768), wave(n))
    assert "tensorflow" not in sys.modules


def test_corpus_of_mel_becomes_a_dataset_of_mel(tmp_path):
    home = prepared(tmp_path / "shards", {"dev": 2}, mel=MEL)
    tfds_export.export_dataset(home, tmp_path / "tfds", name="noise", version="1.0.0")
    rows = tfds.data_source("noise", split="dev", data_dir=tmp_path / "tfds")
    for row, heard in zip(rows, open_corpus(home, "dev"), strict=True):
        assert np.array_equal(row["mel"], heard.mel)


def test_dataset_is_imported_back_to_the_sample(tmp_path):
    home = prepared(tmp_path / "shards", {"train": 3, "test": 1})
    made = tfds_export.export_dataset(home, tmp_path / "tfds", name="noise", version="1.0.0")
    named = {"audio": "audio", "text": "text", "rate": 16_000}
    counts = write_manifests.import_corpus(
        f"tfds:{made}", "tfds", epath.Path(tmp_path / "out"), **named
    )
    assert counts == {"train": 3, "test": 1}
    for n, heard in enumerate(open_corpus(tmp_path / "out", "train")):
        assert (heard.id, heard.text, heard.speaker) == (f"train/{n}", f"text ä {n}", f"s{n % 2}")
        assert (heard.language, heard.source) == ("de", "noise")
        assert heard.duration == pytest.approx(len(wave(n)) / 16_000, abs=1e-6)
        assert np.array_equal(load_utterance_wave(heard), wave(n))
    named = {"audio": "audio", "text": "text"}
    for options, rule in (
        (named, "rate=None: the feature audio does not say its Hz: give --rate"),
        (
            {"audio": "wav", "text": "text"},
            "audio='wav': must name one of the features audio, id, language",
        ),
        (named | {"rate": 16_000, "splits": ("dev",)}, "splits=dev: "),
        (named | {"rate": 96_000}, "rate=96000: must be from 8000 to 48000 Hz"),
    ):
        with pytest.raises(Mistake) as caught:
            write_manifests.import_corpus(
                f"tfds:{made}", "tfds", epath.Path(tmp_path / "none"), **options
            )
        assert rule in str(caught.value)
    with pytest.raises(Mistake, match="cannot be opened"):
        write_manifests.import_corpus(
            "tfds:no_such_dataset", "tfds", epath.Path(tmp_path / "none"), **named
        )


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"name": "Noise!"}, "name=Noise!: must be of a-z, 0-9 and _"),
        ({"version": "1.0"}, "version=1.0: must be three numbers"),
        ({"version": "1.0.0"}, "is there already"),
    ],
)
def test_export_refuses_what_tfds_would_not_take(tmp_path, changes, rule):
    home = prepared(tmp_path / "shards", {"dev": 1})
    (tmp_path / "tfds/noise/1.0.0").mkdir(parents=True)
    with pytest.raises(Mistake) as caught:
        tfds_export.export_dataset(
            home, tmp_path / "tfds", **({"name": "noise", "version": "2.0.0"} | changes)
        )
    assert rule in str(caught.value)


def test_export_of_manifests_asks_for_shards(tmp_path):
    with pytest.raises(Mistake, match="has no index.json: run `melllm prepare` first"):
        tfds_export.export_dataset(
            write_corpus(tmp_path, 1), tmp_path, name="noise", version="1.0.0"
        )


def test_export_command_prints_one_json_object(tmp_path, capsys):
    home = prepared(tmp_path / "shards", {"dev": 2})
    argv = [str(home), "--out", str(tmp_path / "tfds"), "--name", "noise"]
    assert export_tfds.main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"out": str(tmp_path / "tfds/noise/1.0.0"), "splits": {"dev": 2}}
    assert export_tfds.main([*argv, "--version", "1.0.1"]) == 0
    assert "dev: 2 utterances" in capsys.readouterr().out.splitlines()


def test_stock_audio_feature_is_imported_with_tensorflow(tmp_path):
    pytest.importorskip("tensorflow")

    class Stock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "stock"
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            speech = tfds.features.Audio(sample_rate=16_000)
            texts = {name: tfds.features.Text() for name in ("id", "text")}
            features = tfds.features.FeaturesDict({"speech": speech} | texts)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"dev": self._generate_examples()}

        def _generate_examples(self):
            for n in range(3):
                whole = (wave(n) * 32768).astype(np.int64)
                yield n, {"speech": whole, "id": f"id{n}", "text": f"text {n}"}

    Stock(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source, named = f"tfds:{tmp_path}/stock/1.0.0", {"audio": "speech", "text": "text"}
    assert write_manifests.import_corpus(source, "tfds", epath.Path(tmp_path / "out"), **named) == {
        "dev": 3
    }
    for heard in open_corpus(tmp_path / "out", "dev"):
        n = int(heard.id.removeprefix("id"))
        assert (heard.text, heard.source) == (f"text {n}", "stock")
        assert np.array_equal(load_utterance_wave(heard), wave(n))


def test_stock_audio_feature_without_tensorflow_says_what_to_install(tmp_path):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("tensorflow is installed")
    made = tfds_export.export_dataset(
        prepared(tmp_path / "shards", {"dev": 1}), tmp_path / "tfds", name="noise", version="1.0.0"
    )
    features = json.loads((made / "features.json").read_text())
    kind = "tensorflow_datasets.core.features.audio_feature.Audio"
    features["featuresDict"]["features"]["audio"] = {
        "pythonClassName": kind,
        "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "encoding": "none"},
    }
    (made / "features.json").write_text(json.dumps(features))
    with pytest.raises(Mistake, match=r"has features that need tensorflow: pip install .*\[tfds\]"):
        write_manifests.import_corpus(
            f"tfds:{made}", "tfds", epath.Path(tmp_path / "out"), audio="audio"
        )
