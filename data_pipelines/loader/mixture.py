"""The examples of a run by global index, which alone decides the corpus that each comes from.

Corpora are identified by content: by the digest of their examples, and by their subset. So a run
resumed with other shares, or with corpora added or removed, knows how much of each was drawn.
"""

from collections.abc import Callable, Mapping, Sequence
import copy
import dataclasses
import itertools
from typing import Any

from grain import experimental
import numpy as np

from data_pipelines.corpora.corpus import open_corpus, split_digest
from data_pipelines.corpora.manifest import Manifest
from data_pipelines.corpora.shard_reader import DamagedShard, ShardReader
from data_pipelines.corpora.subset import Subset, draw_subset, total_hours
from data_pipelines.corpora.utterance import Utterance
from data_pipelines.loader.mixture_phases import (
    MixturePart,
    Phase,
    from_tree,
    integer_shares,
    resume_phases,
    to_tree,
)
from melllm_jax.config.data import Data
from melllm_jax.errors import Fault, Mistake

AnyCorpus = Manifest | ShardReader | Subset
ROUNDS = 4  # of index_shuffle, as in Grain's own `shuffle`


@dataclasses.dataclass(frozen=True)
class MixtureChange:
    """How the mixture of a run changed when it was resumed with another one."""

    example: int  # global index of the first example drawn by the new mixture
    before: Mapping[str, float]  # share by folder
    now: Mapping[str, float]

    def __str__(self) -> str:
        shares = (
            ", ".join(f"{path} {share:.1%}" for path, share in part.items())
            for part in (self.before, self.now)
        )
        before, now = shares
        return f"the mixture changes at example {self.example}: {now} (before: {before})"


class Mixture:
    """All examples of a run, finite or endless, read at random by any number of threads.

    `check` is called with every corpus that is opened, and raises Mistake for one that does not
    suit the run. An example is the index of its corpus in `names` and the utterance, or a
    DamagedShard in place of the utterance where data.corrupt says to skip it.
    """

    def __init__(
        self, data: Data, split: str, seed: int, check: Callable[[AnyCorpus], None] = lambda _: None
    ) -> None:
        if not data.sources:
            raise Mistake("data.sources=(): needs one corpus at least")
        self._data, self._split, self._seed, self._check = data, split, seed, check
        self.names: list[str] = []  # of all corpora open, those of data.sources first
        self._corpora: list[AnyCorpus] = []
        digests = [split_digest(source.path, split) for source in data.sources]
        for source, now in zip(data.sources, digests, strict=True):
            if split == "train" and source.digest not in ("", now):
                raise Mistake(f"data.sources.digest={source.digest}: {source.path} has {now} now")
            self._open(_corpus_name(now, source.hours, self.names), source.path, source.hours)
        self.phases: tuple[Phase, ...] = (self._wanted(),)
        self.change: MixtureChange | None = None

    @property
    def sources(self) -> list[str]:
        """Names of the corpora of data.sources."""
        return self.names[: len(self._data.sources)]

    def sources_with_ids_of(self, digest: str) -> frozenset[int]:
        """Indices of the corpora whose records hold token ids of the tokenizer of that digest."""
        corpora = enumerate(self._corpora)
        return frozenset(index for index, corpus in corpora if corpus.tokenizer == digest)

    @property
    def sizes(self) -> list[int]:
        """Examples of each corpus of data.sources."""
        return [len(corpus) for corpus in self._corpora[: len(self._data.sources)]]

    def __len__(self) -> int:
        return self.phases[-1].stop

    def __getitem__(self, global_index: int) -> tuple[int, Utterance | DamagedShard]:
        phase = next(phase for phase in reversed(self.phases) if phase.start <= global_index)
        chosen, drawn = phase.choice(global_index)
        source = self.names.index(phase.parts[chosen].name)
        corpus = self._corpora[source]
        epoch, index = divmod(drawn, len(corpus))
        seed = (phase.parts[chosen].seed + epoch) % 2**32  # another order each epoch
        index = experimental.index_shuffle(index, len(corpus) - 1, seed, ROUNDS)
        try:
            return source, corpus[index]
        except DamagedShard as damage:
            if self._data.corrupt == "stop":
                raise
            return source, damage

    def state(self) -> list[dict[str, Any]]:
        """The phases as a JSON tree."""
        return to_tree(self.phases)

    def fork(self) -> "Mixture":
        """A copy over the same open corpora, with phases and later opened corpora of its own."""
        other = copy.copy(self)
        other.names, other._corpora = list(self.names), list(self._corpora)
        return other

    def set_phases(self, state: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> None:
        """Continues in these phases; nothing may be being read.

        names: those of the mixture whose `resume` gave the phases; its corpora are opened here too.
        """
        self.phases = from_tree(state)
        parts = {part.name: part for phase in self.phases for part in phase.parts}
        for name in names:
            if name not in self.names:
                self._reopen(parts[name])

    def resume(
        self, state: Sequence[dict[str, Any]], first: int, reached: int
    ) -> list[dict[str, Any]]:
        """The saved phases to continue in, and a new one if data asks for other shares.

        Sets `change`. first: global index of the first example still to be read again; reached:
        one past which nothing has been drawn. Raises Mistake where the content at a corpus's path
        has changed, where none of the saved corpora is left, or where a removed one is still
        needed.
        """
        saved, wanted = from_tree(state), self._wanted()
        last = saved[-1]
        _check_sources([part for part in last.parts if part.share], wanted.parts)
        phases = resume_phases(saved, wanted, first, reached)
        new = phases[-1]
        changed = not new.follows(last)
        self.change = MixtureChange(new.start, _shares(last), _shares(new)) if changed else None
        for phase, after in itertools.pairwise(phases):
            ends = phase.counts(max(first, phase.start)), phase.counts(after.start)
            for part, begin, end in zip(phase.parts, *ends, strict=True):
                if part.name not in self.names and end > begin:
                    self._reopen(part)
        return to_tree(phases)

    def _wanted(self) -> Phase:
        """The phase that data asks for, starting at 0."""
        data = self._data
        corpora = self._corpora[: len(data.sources)]
        powers = [1.0] * len(corpora)
        if data.temperature and len(corpora) > 1:
            powers = [total_hours(corpus) ** (1 / data.temperature) for corpus in corpora]
        weights = [
            source.weight * power for source, power in zip(data.sources, powers, strict=True)
        ]
        shares = integer_shares(weights)
        seeds = np.random.SeedSequence(self._seed).generate_state(len(corpora)).tolist()
        parts = [
            MixturePart(
                self.names[i], source.path, source.hours, len(corpora[i]), shares[i], seeds[i]
            )
            for i, source in enumerate(data.sources)
        ]
        return Phase(0, data.epochs, tuple(parts))

    def _open(self, name: str, path: str, size: float) -> None:
        full = open_corpus(path, self._split, skip=self._data.corrupt == "skip")
        corpus = draw_subset(full, size) if size else full
        self._check(corpus)
        self.names.append(name)
        self._corpora.append(corpus)

    def _reopen(self, part: MixturePart) -> None:
        """Opens a corpus that is no longer in data.sources."""
        try:
            digest = split_digest(part.path, self._split)
        except (Mistake, Fault) as error:
            digest = str(error)
        if not part.name.startswith(digest):
            raise Mistake(
                f"data: {part.path} is no source any more, but examples drawn before are still to "
                f"be read from it: let it lie there, as it was, for one more checkpoint"
            )
        self._open(part.name, part.path, part.hours)


def _corpus_name(content: str, size: float, taken: Sequence[str]) -> str:
    """The name that identifies a corpus: its digest, the hours of its subset, `#2` for a repeat."""
    name = f"{content}:{size:g}h" if size else content
    count = sum(other.partition("#")[0] == name for other in taken)
    return f"{name}#{count + 1}" if count else name


def _check_sources(saved: Sequence[MixturePart], now: Sequence[MixturePart]) -> None:
    names, paths = {part.name for part in saved}, {part.path for part in saved}
    for part in now:
        if part.path in paths and part.name not in names:
            raise Mistake(
                f"data.sources={part.path}: its content, or hours, is not what the run has drawn "
                f"from: give a run of its own to it"
            )
    if names.isdisjoint(part.name for part in now):
        raise Mistake(f"data.sources: none of those of the saved place: {', '.join(sorted(paths))}")


def _shares(phase: Phase) -> dict[str, float]:
    total = sum(part.share for part in phase.parts)
    return {part.path: part.share / total for part in phase.parts if part.share}
