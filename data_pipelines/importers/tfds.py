"""Any prepared TFDS dataset with a feature of sound and one of text, named by `audio` and `text`.

SOURCE is tfds:NAME, NAME, or the folder of one version (NAME/1.0.0). The rows are read once, for
their texts and durations; the sound stays where it is.
"""

from collections.abc import Iterator
import os
from typing import Any

import numpy as np

from data_pipelines.audio.file_io import read_duration
from data_pipelines.corpora import tfds_audio
from data_pipelines.corpora.audio_reference import describe_location
from data_pipelines.corpora.manifest import TFDS_PREFIX
from data_pipelines.corpora.utterance import AudioReference
from data_pipelines.importers.manifest_row import (
    ImportOptions,
    ManifestRow,
    check_rate,
    join_names,
    make_row,
    parse_words,
    select_splits,
)
from data_pipelines.reject import Unusable
from melllm_jax.errors import Mistake


def read_splits(source: str, options: ImportOptions) -> dict[str, Iterator[ManifestRow]]:
    """Rows of every split."""
    builder = _builder(source)
    features, home = builder.info.features, os.fspath(builder.data_path)
    for flag in ("audio", "text"):
        if (wanted := getattr(options, flag)) not in features:
            rule = f"must name one of the features {join_names(list(features))}"
            raise Mistake(f"{flag}={wanted!r}: {rule}")
    if options.id and options.id not in features:
        raise Mistake(
            f"id={options.id!r}: must name one of the features {join_names(list(features))}"
        )
    rate = options.rate or getattr(features[options.audio], "sample_rate", None)
    check_rate(rate)
    found = builder.info.splits
    return {
        split: _rows(home, split, rate, options) for split in select_splits(found, options, source)
    }


def dataset_name(source: str) -> str:
    """The name of the dataset, without its version."""
    return str(_builder(source).name)


def _builder(source: str) -> Any:
    return tfds_audio.open_builder(source.removeprefix(TFDS_PREFIX))


def _rows(home: str, split: str, rate: int | None, options: ImportOptions) -> Iterator[ManifestRow]:
    for count, held in enumerate(tfds_audio.open_data_source(home, split)):
        location = AudioReference(
            f"{TFDS_PREFIX}{home}:{split}", row=count, column=options.audio, rate=rate
        )
        own = next((f for f in (options.id, "id", "utterance_id") if f and f in held), None)
        speaker = next((f for f in ("speaker", "speaker_id") if f in held), "speaker")
        where, made = describe_location(location), f"{split}-{count}"
        yield make_row(
            made if own is None else _words(held[own], own, where) or made,
            _words(held[options.text], options.text, where),
            location,
            where=where,
            spare="" if options.id else made,
            seconds=_seconds(location),
            speaker=_words(held.get(speaker), speaker, where),
            language=_words(held.get("language"), "language", where),
        )


def _seconds(location: AudioReference) -> float:
    """Seconds of a row's sound. Raises Mistake for samples of unknown rate."""
    try:
        held = tfds_audio.read_feature(location)
        if isinstance(held, bytes):
            return read_duration(held, location.path)
    except Unusable:
        return 0.0
    if location.rate is None:
        raise Mistake(f"rate=None: the feature {location.column} does not say its Hz: give --rate")
    return len(held) / location.rate


def _words(value: Any, name: str, where: str) -> str:
    plain = np.asarray(value).tolist()
    return parse_words(
        plain.decode(errors="surrogateescape") if isinstance(plain, bytes) else plain, name, where
    )
