"""The scores of generated speech as a table, and what it says beside it."""

from collections.abc import Mapping
from typing import Any

from launch.evaluation.comparison_table import NONE, ComparisonTable
from launch.evaluation.speech.failures import KINDS

_NAMES = {"mos": "MOS", "similarity": "speaker similarity", "mcd": "MCD, dB"}
_DIGITS = {"mos": 2, "similarity": 3, "mcd": 2}


def score_table(scores: Mapping[str, Any]) -> ComparisonTable:
    """A row for each figure of `score_speech`: it, its interval, of how many files, and by what."""
    words, letters, failures = scores["wer"], scores["cer"], scores["failures"]
    count, by = words["utterances"], f"{words['normalizer']}, {words['scorer']}"
    rows = [
        ["WER", f"{words['wer']:.2%}", _range(words["interval"], 100, 2), f"{count}", by],
        ["CER", f"{letters['cer']:.2%}", _range(letters["interval"], 100, 2), f"{count}", by],
    ]
    for name, digits in _DIGITS.items():
        told = scores.get(name, {})
        if "mean" in told:
            drawn, of = _range(told["interval"], 1, digits), f"{told['files']}"
            rows.append([_NAMES[name], f"{told['mean']:.{digits}f}", drawn, of, told["by"]])
    for kind in ("files", *KINDS):
        head = "failures" if kind == "files" else f"  {kind.replace('_', ' ')}"
        share = f"{failures[kind] / scores['files']:.1%}"
        rows.append([head, share, NONE, f"{failures[kind]}/{scores['files']}", NONE])
    return ComparisonTable(["score", "", "95 %", "files", "by"], rows)


def errors(scores: Mapping[str, Any]) -> list[str]:
    """Why a score is missing, or is one of fewer files: a line each."""
    return [scores[name]["error"] for name in _NAMES if "error" in scores.get(name, {})]


def trouble(scores: Mapping[str, Any]) -> list[str]:
    """Those of the errors that are trouble, in which a judge died."""
    return [scores[x]["error"] for x in _NAMES if scores.get(x, {}).get("failed", False)]


def _range(drawn: Mapping[str, Any], scale: float, digits: int) -> str:
    return f"{scale * drawn['low']:.{digits}f} to {scale * drawn['high']:.{digits}f}"
