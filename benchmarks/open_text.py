"""A text, a document a line on standard input, as manifests for runs that read text alone.

    bible -f gen1:1-rev22:21 | cut -d' ' -f2- | python benchmarks/open_text.py --out corpora/text

Documents longer than --longest bytes are cut between words. Which split a document is in follows
from its text alone, so that none is in two: 1 in 32 in test, 1 in 64 in dev. Repeats are left out.
A manifest names a sound and its seconds, which no such run reads: they are "none" and 0.
"""

import argparse
from collections.abc import Iterator
import hashlib
import json
import pathlib
import sys

SHARES = (("test", 2), ("dev", 1), ("train", 61))  # of 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder of the manifests")
    parser.add_argument("--longest", type=int, default=250, help="bytes of a document")
    arguments = parser.parse_args()
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[str]] = {name: [] for name, _ in SHARES}
    documents = (one for line in sys.stdin for one in cut(line.split(), arguments.longest))
    for text in dict.fromkeys(documents):
        digest = hashlib.sha256(text.encode()).hexdigest()
        row = {"id": digest[:16], "text": text, "audio_filepath": "none", "duration": 0}
        splits[split(int(digest[-4:], 16) % 64)].append(json.dumps(row, ensure_ascii=False))
    for name, rows in splits.items():
        (out / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{name}: {len(rows):,} documents")


def cut(words: list[str], longest: int) -> Iterator[str]:
    """Documents of so many bytes at most, of whole words; a longer word is left out."""
    held: list[str] = []
    size = 0
    for word in (one for one in words if len(one.encode()) <= longest):
        more = len(word.encode()) + 1
        if held and size + more - 1 > longest:
            yield " ".join(held)
            held, size = [], 0
        held.append(word)
        size += more
    if held:
        yield " ".join(held)


def split(bucket: int) -> str:
    """The split of a bucket of 64."""
    for name, share in SHARES:
        if bucket < share:
            return name
        bucket -= share
    raise AssertionError(bucket)


if __name__ == "__main__":
    main()
