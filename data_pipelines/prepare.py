"""Manifests to shards: every utterance decoded once, checked, and written where it is read fast.

`record` is a pure function of one utterance and `shards.Writer` a plain sink, so that a Beam job
can take them over as they are; here one process does it all.
"""

from collections import Counter
from collections.abc import Callable
import json

from etils import epath

from data_pipelines import shards
from data_pipelines.audio import BadAudio, to_flac
from data_pipelines.examples import Reject, Unfit, framed
from data_pipelines.sources import open_source, sound, splits
from data_pipelines.utterance import Utterance, encode
from melllm_jax.config import Mel
from melllm_jax.errors import Mistake
from melllm_jax.mel_tables import RATE

FEWEST = 100  # utterances seen before a share of bad ones stops the work early


def record(utterance: Utterance, mel: Mel | None) -> tuple[bytes, float] | Reject:
    """The record of an utterance and its seconds of sound, or why it is unusable.

    It holds log-mel as `mel` says, rounded to bfloat16, or with None 16 kHz FLAC of 16 bits. The
    duration becomes what was decoded. Text is left as it is: it is judged where it is used.
    """
    try:
        wave = sound(utterance)
        seconds = wave.size / RATE
        if mel is None:
            audio, frames = to_flac(wave), None
        else:
            audio, frames = None, framed(wave, mel, utterance.id)
    except (BadAudio, Unfit) as error:
        return Reject(0, utterance.id, error.reason, str(error))
    whole = Utterance(
        utterance.id, utterance.text, seconds, utterance.speaker, audio=audio, mel=frames
    )
    return encode(whole), seconds


def prepare(
    source: epath.PathLike,
    out: epath.PathLike,
    *,
    mel: Mel | None = None,
    per_shard: int = 5000,
    bad: float = 0.01,
    tick: Callable[[int], None] = lambda done: None,
) -> shards.Index:
    """Writes every split of `source` into `out`; the index it returns is written last.

    per_shard: records a shard. bad: share of unusable utterances, of those seen, that is
    too much. tick is told after every utterance how many are done. What is left out stands in
    rejects.jsonl, also where the work stops. Raises Mistake for that, for manifest errors, and for
    an `out` that is already whole.
    """
    folder = epath.Path(out)
    if (folder / shards.INDEX).exists():
        raise Mistake(f"out={folder}: already holds a whole {shards.INDEX}: choose another folder")
    if per_shard < 1:
        raise Mistake(f"per_shard={per_shard}: must be positive")
    corpora = {split: open_source(source, split) for split in splits(source)}
    if any(corpus.mel for corpus in corpora.values()):
        raise Mistake(f"source={source}: holds ready mel: preparing starts from audio")
    folder.mkdir(parents=True, exist_ok=True)
    rejects: list[tuple[str, Reject]] = []
    written, done = {}, 0
    try:
        for split, corpus in corpora.items():
            writer = shards.Writer(folder, split, per_shard=per_shard)
            for place in range(len(corpus)):
                made = record(corpus[place], mel)
                done += 1
                if isinstance(made, Reject):
                    rejects.append((split, made))
                    if done >= FEWEST:
                        _check_share(rejects, done, bad, folder)
                else:
                    writer.add(*made)
                tick(done)
            written[split] = writer.close()
            if not written[split]:
                raise Mistake(f"split={split}: none of its {len(corpus)} utterances is usable")
        _check_share(rejects, done, bad, folder)
    finally:
        _write_rejects(folder, rejects)
    index = shards.Index(mel, written)
    shards.write_index(folder, index)
    return index


def _check_share(
    rejects: list[tuple[str, Reject]], done: int, bad: float, folder: epath.Path
) -> None:
    if len(rejects) <= bad * done:
        return
    reasons = Counter(reject.reason for _, reject in rejects)
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    share = f"{len(rejects)} of {done} utterances ({len(rejects) / done:.1%})"
    where = folder / shards.REJECTS
    raise Mistake(f"bad={bad}: {share} are unusable: {counts}. Each stands in {where}")


def _write_rejects(folder: epath.Path, rejects: list[tuple[str, Reject]]) -> None:
    lines = [
        {"split": split, "id": reject.id, "reason": reject.reason, "detail": reject.detail}
        for split, reject in rejects
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / shards.REJECTS).write_text(text)
