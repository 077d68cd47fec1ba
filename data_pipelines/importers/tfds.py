"""Any prepared TFDS dataset with a feature of sound and one of text, named by `audio` and `text`.

SOURCE is tfds:NAME, NAME, or the folder of one version (NAME/1.0.0). The rows are read once, for
their texts and durations; the sound stays where it is.
"""

from collections.abc import Iterator
import os
from typing import Any

import numpy as np

from data_pipelines import tfds_rows
from data_pipelines.audio import FASTEST, SLOWEST, BadAudio, duration
from data_pipelines.importers.rows import Options, Row, chosen, listed, row
from data_pipelines.manifest import TFDS
from data_pipelines.utterance import Reference
from melllm_jax.errors import Mistake


def splits(source: str, options: Options) -> dict[str, Iterator[Row]]:
    """Rows of every split."""
    builder = _builder(source)
    features, home = builder.info.features, os.fspath(builder.data_path)
    for flag in ("audio", "text"):
        if (wanted := getattr(options, flag)) not in features:
            rule = f"must name one of the features {listed(list(features))}"
            raise Mistake(f"{flag}={wanted!r}: {rule}")
    if options.id and options.id not in features:
        raise Mistake(f"id={options.id!r}: must name one of the features {listed(list(features))}")
    rate = options.rate or getattr(features[options.audio], "sample_rate", None)
    if rate is not None and not SLOWEST <= rate <= FASTEST:
        raise Mistake(f"rate={rate}: must be from {SLOWEST} to {FASTEST} Hz")
    found = builder.info.splits
    return {split: _rows(home, split, rate, options) for split in chosen(found, options, source)}


def name(source: str) -> str:
    """The name of the dataset, without its version."""
    return str(_builder(source).name)


def _builder(source: str) -> Any:
    return tfds_rows.builder(source.removeprefix(TFDS))


def _rows(home: str, split: str, rate: int | None, options: Options) -> Iterator[Row]:
    for count, held in enumerate(tfds_rows.rows(home, split)):
        place = Reference(f"{TFDS}{home}:{split}", row=count, column=options.audio, rate=rate)
        own = next((f for f in (options.id, "id", "utterance_id") if f and f in held), None)
        speaker = next((f for f in ("speaker", "speaker_id") if f in held), None)
        yield row(
            f"{split}-{count}" if own is None else _word(held[own]),
            _word(held[options.text]),
            place,
            seconds=_seconds(place),
            speaker="" if speaker is None else _word(held[speaker]),
            language=_word(held["language"]) if "language" in held else "",
        )


def _seconds(place: Reference) -> float:
    """Raises Mistake for samples whose rate nobody knows."""
    try:
        held = tfds_rows.value(place)
        if isinstance(held, bytes):
            return duration(held, place.path)
    except BadAudio:
        return 0.0
    if place.rate is None:
        raise Mistake(f"rate=None: the feature {place.column} does not say its Hz: give --rate")
    return len(held) / place.rate


def _word(value: Any) -> str:
    plain = np.asarray(value).item()
    return plain.decode() if isinstance(plain, bytes) else str(plain)
