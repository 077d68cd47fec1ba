"""Counts rejects.jsonl, what preparing left out, by split, source and reason."""

import dataclasses

from etils import epath

from data_pipelines.corpora import shard_index
from melllm_jax.errors import Fault
from melllm_jax.json_text import parse_json

SHOWN = 3  # of each kind


@dataclasses.dataclass(frozen=True)
class RejectExample:
    """One utterance that was left out."""

    id: str
    detail: str


@dataclasses.dataclass(frozen=True)
class RejectCount:
    """The utterances left out of a split for one reason, of one source."""

    split: str
    source: str
    reason: str
    count: int
    first: tuple[RejectExample, ...]


def count_rejects(folder: epath.Path) -> tuple[RejectCount, ...]:
    """Counts of all that was left out, the most frequent first; () where `folder` has no list.

    The list is read a line at a time. Raises Fault, naming the line, where it is damaged.
    """
    path = folder / shard_index.REJECTS
    if not path.exists():
        return ()
    counts: dict[tuple[str, str, str], int] = {}
    first: dict[tuple[str, str, str], list[RejectExample]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                kind = (row["split"], row.get("source") or "", row["reason"])
                example = RejectExample(row["id"], row["detail"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise Fault(f"{path}:{number}: cannot be read: {error!r}") from error
            counts[kind] = counts.get(kind, 0) + 1
            if len(shown := first.setdefault(kind, [])) < SHOWN:
                shown.append(example)
    ordered = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return tuple(RejectCount(*kind, counts[kind], tuple(first[kind])) for kind in ordered)
