"""`melllm data tokenizer`: trains a SentencePiece table on the transcripts of a corpus."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import json
import sys
from typing import Annotated, Any

from tyro.conf import Positional, arg

from data_pipelines.corpora.corpus import Corpus, list_splits, open_corpus
from data_pipelines.corpora.sample import sample_indices
from data_pipelines.text.sentencepiece_tokenizer import SentencePieceTokenizer
from data_pipelines.text.tokenizer import SPECIALS
from data_pipelines.text.tokenizer_training import SentencePieceKind, train_sentencepiece
from launch.terminal.flags import parse
from launch.terminal.number_format import format_bytes
from launch.terminal.progress_bar import Advance, count_progress
from melllm_jax import files
from melllm_jax.errors import Fault, Mistake

MAX_UNKNOWN_PIECES = 8  # most unknown pieces in the figures
FILE = "tokenizer.model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerArguments:
    """Train a SentencePiece table on the transcripts of a corpus, and try it on every split.

    Its special tokens are those that runs need; --text.tokenizer of `melllm train` takes the
    folder. The same corpus and flags give the same table.
    """

    data: Annotated[
        str, Positional, arg(metavar="DIR")
    ]  # folder of prepared shards or of SPLIT.jsonl manifests
    out: str  # folder of the tokenizer; must not hold one yet
    kind: SentencePieceKind = (
        "unigram"  # how pieces are chosen; char and word have nothing to choose
    )
    size: int = 1000  # tokens, special ones included; 0 takes all that the texts yield
    byte_fallback: bool = False  # spell unknown characters in bytes: 256 of the tokens
    split: str = "train"  # that it is trained on
    sentences: int = 0  # most texts read of a split; 0: 300,000 of manifests, 20,000 of shards
    seed: int = 0  # of which texts those are
    json: bool = False  # print one JSON object on standard output and nothing else

    def __post_init__(self) -> None:
        for name in ("size", "sentences", "seed"):
            if getattr(self, name) < 0:
                raise Mistake(f"{name}={getattr(self, name)}: must be 0 or more")


def main(argv: Sequence[str]) -> int:
    """`melllm data tokenizer DIR --kind unigram --size 1000 --out DIR`."""
    arguments = parse(TokenizerArguments, argv, prog="melllm data tokenizer")
    found = train_tokenizer(arguments)
    print(json.dumps(found) if arguments.json else format_figures(found))
    return 0


def train_tokenizer(arguments: TokenizerArguments) -> dict[str, Any]:
    """Trains, saves and tries the table: its figures. Raises Mistake, and Fault for a full disk."""
    out = files.place(arguments.out)
    if (out / FILE).exists():
        raise Mistake(f"out={out}: already holds {FILE}: choose another folder")
    corpora = {arguments.split: open_corpus(arguments.data, arguments.split)}
    corpora |= {
        split: open_corpus(arguments.data, split)
        for split in list_splits(arguments.data)
        if split != arguments.split
    }
    drawn = {
        split: sample_indices(corpus, arguments.sentences, arguments.seed)
        for split, corpus in corpora.items()
    }
    with count_progress(sum(map(len, drawn.values())), "texts") as advance:
        texts = {
            split: list(_texts(corpus, drawn[split], advance)) for split, corpus in corpora.items()
        }
    usable = [text for text in texts[arguments.split] if text.strip() and _encodable(text)]
    if not arguments.json:
        print(f"training on {len(usable):,} texts of {arguments.split}", file=sys.stderr)
    try:
        tokenizer = train_sentencepiece(
            usable, out, arguments.size, kind=arguments.kind, byte_fallback=arguments.byte_fallback
        )
    except OSError as error:
        raise Fault(f"out={out}: cannot be written: {error.strerror}") from error
    return {
        "out": arguments.out,
        "kind": arguments.kind,
        "size": tokenizer.size,
        "digest": tokenizer.digest(),
        "bytes": len(tokenizer.model),
        "specials": {name: tokenizer.special(name) for name in SPECIALS},
        "trained_on": arguments.split,
        "texts": len(usable),
        "splits": {
            split: {"utterances": len(corpora[split]), **tokenizer_coverage(tokenizer, some)}
            for split, some in texts.items()
        },
    }


def tokenizer_coverage(tokenizer: SentencePieceTokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """How the table encodes texts; those with a piece that it lacks are counted, not encoded."""
    unknown = tokenizer.pieces.unk_id()
    characters = tokens = refused = empty = 0
    lacking: Counter[str] = Counter()
    for text in texts:
        if not text.strip():
            empty += 1
            continue
        if not _encodable(text):
            refused += 1
            lacking.update(letter for letter in text if not _encodable(letter))
            continue
        ids = tokenizer.pieces.encode(text)
        if unknown in ids:
            refused += 1
            pieces = tokenizer.pieces.encode_as_pieces(text)
            lacking.update(p for p, i in zip(pieces, ids, strict=True) if i == unknown)
            continue
        characters += len(text)
        tokens += len(ids)
    return {
        "texts": len(texts),
        "empty": empty,
        "refused": refused,
        "characters": characters,
        "tokens": tokens,
        "characters_per_token": characters / tokens if tokens else None,
        "unknown": dict(lacking.most_common(MAX_UNKNOWN_PIECES)),
    }


def format_figures(found: dict[str, Any]) -> str:
    """The figures for people."""
    size = f"{found['size']:,} tokens, {format_bytes(found['bytes'])}"
    lines = [f"{found['out']}: {found['kind']}, {size}, digest {found['digest']}"]
    for split, one in found["splits"].items():
        ratio = one["characters_per_token"]
        parts = [f"{ratio:.2f} characters a token" if ratio else "no text can be encoded"]
        parts.append(f"{one['texts']:,} of {one['utterances']:,} texts tried")
        if one["empty"]:
            parts.append(f"{one['empty']:,} empty")
        if one["refused"]:
            lacks = " ".join(x if x.isprintable() else ascii(x)[1:-1] for x in one["unknown"])
            parts.append(f"{one['refused']:,} hold what the table lacks: {lacks}")
        role = " (trained on)" if split == found["trained_on"] else ""
        lines.append(f"{split}{role}: {', '.join(parts)}")
    return "\n".join(lines)


def _texts(corpus: Corpus, indices: Iterable[int], advance: Advance) -> Iterator[str]:
    """The texts of the utterances of those indices; calls `advance` after each."""
    for index in indices:
        yield " ".join(corpus[index].texts)
        advance()


def _encodable(text: str) -> bool:
    """Whether UTF-8 can encode the text: it has no halves of surrogate pairs."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
