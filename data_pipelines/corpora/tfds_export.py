"""Exports a prepared corpus as a TFDS dataset, built and read without tensorflow.

Its features are `Text` and `Tensor` alone: id, text, speaker, language, source; and audio, int16 at
16 kHz, or mel, float32 [frames m], as the shards hold it. Where the sound is mp3, ogg or of another
rate, what is stored is its 16 kHz.
"""

from collections.abc import Iterator
import os
import re
from typing import Any

from etils import epath
import numpy as np

from data_pipelines.audio.file_io import to_int16
from data_pipelines.corpora import shard_index, tfds_audio
from data_pipelines.corpora.corpus import Corpus, list_splits, load_utterance_wave, open_corpus
from melllm_jax import files
from melllm_jax.errors import Mistake

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def export_dataset(
    source: epath.PathLike, out: epath.PathLike, *, name: str, version: str
) -> epath.Path:
    """Writes all splits of a folder of shards as OUT/NAME/VERSION, which is returned.

    The records keep their order. `tfds.data_source(NAME, split=SPLIT, data_dir=OUT)` opens it. It
    is on disk twice while it is built (TFDS's writer), and appears once it is complete. Raises
    Mistake for a name or version that TFDS refuses, a dataset that exists, or missing shards.
    """
    if not _NAME.fullmatch(name):
        raise Mistake(f"name={name}: must be of a-z, 0-9 and _, and start with a letter")
    if not _VERSION.fullmatch(version):
        raise Mistake(f"version={version}: must be three numbers: 1.0.0")
    folder, home = files.place(source), files.place(out) / name / version
    if not (folder / shard_index.INDEX).exists():
        raise Mistake(f"source={source}: has no {shard_index.INDEX}: run `melllm prepare` first")
    if home.exists():
        raise Mistake(f"out={home}: is there already: choose another name or version")
    made = _builder_class(
        {split: open_corpus(source, split) for split in list_splits(source)}, name, version
    )
    builder = made(data_dir=os.fspath(out), file_format="array_record")
    builder.download_and_prepare()
    return epath.Path(builder.data_path)


def _builder_class(corpora: dict[str, Corpus], title: str, version: str) -> Any:
    """A TFDS builder class over `corpora`, made in a function because TFDS is an extra."""
    tfds = tfds_audio.import_tfds()
    mel = next(iter(corpora.values())).mel
    texts = ("id", "text", "speaker", "language", "source")
    features = {field: tfds.features.Text() for field in texts}
    if mel is None:
        features["audio"] = tfds.features.Tensor(shape=(None,), dtype=np.int16)
    else:
        features["mel"] = tfds.features.Tensor(shape=(None, mel.m), dtype=np.float32)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = title
        VERSION = tfds.core.Version(version)
        code_path = None  # beside the code TFDS seeks checksums, by a module it does not bring

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Speech and its text; audio is 16 kHz, mono, 16 bits.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            del dl_manager
            return {split: _examples(corpus) for split, corpus in corpora.items()}

        def _generate_examples(self) -> None:
            raise NotImplementedError("each split has its own generator")

    return Builder


def _examples(corpus: Corpus) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in range(len(corpus)):
        utterance = corpus[index]
        example: dict[str, Any] = {
            field: getattr(utterance, field)
            for field in ("id", "text", "speaker", "language", "source")
        }
        if utterance.mel is None:
            example["audio"] = to_int16(load_utterance_wave(utterance))
        else:
            example["mel"] = utterance.mel.astype(np.float32)
        yield index, example
