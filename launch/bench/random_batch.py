"""Random batches of a run's shapes, for timing: speech, then text, and never zeros.

Zeros take less power to multiply, and a chip runs faster on them.
"""

import math

import numpy as np

from data_pipelines.examples.asr_example import TRANSFER_DTYPES
from data_pipelines.examples.interleave import Clip, Words, interleave
from melllm_jax.batch import Batch
from melllm_jax.config.run import Run
from melllm_jax.inference import generate

SPEECH_SHARE = 0.75  # share of the positions that are speech; none where the model has no front end
BEFORE, AFTER = 8, 4  # tokens of a prompt around the sound


def train_batch(run: Run) -> Batch:
    """A full batch, one example a row and as long as it: what `flops.update_flops` counts."""
    rows = [_row(run, np.random.default_rng([0, i])) for i in range(run.data.b)]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    shape = columns["tokens"].shape
    patches = columns["patches"][..., : run.patch_width]
    return Batch(
        **columns | {"patches": patches.astype(TRANSFER_DTYPES[run.data.wire])},
        segments=np.ones(shape, np.int32),
        positions=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy(),
        sources=np.zeros(shape, np.int32),
    )


def prompt_batch(run: Run, rows: int, seconds: float) -> Batch:
    """`rows` prompts to be continued, each around so many seconds of sound."""
    rng = np.random.default_rng(0)
    before, after = (Words(_ids(run, rng, count), 0.0) for count in (BEFORE, AFTER))
    clips = [Clip(_mel(run, rng, math.ceil(seconds * 100))) for _ in range(rows)]
    columns = [interleave((before, clip, after), r=run.mel.r, audio=0) for clip in clips]
    return generate.prompt_batch(columns, rows)


def _row(run: Run, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The columns of one example of data.t positions."""
    speech = max(int(run.data.t * SPEECH_SHARE), 1) if run.has_sound else 0
    text = Words(_ids(run, rng, run.data.t - speech), 1.0)
    # A clip there must be: of a model of text alone only the words are kept.
    written = run.source_use() == "tts"
    clip = Clip(_mel(run, rng, max(speech, 1) * run.mel.r), written)
    columns = interleave((clip, text), r=run.mel.r, audio=0)
    return {name: column[-run.data.t :] for name, column in columns.items()}


def _ids(run: Run, rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, run.model.v, count).tolist())


def _mel(run: Run, rng: np.random.Generator, frames: int) -> np.ndarray:
    return rng.standard_normal((frames, run.mel.m), dtype=np.float32)
