"""Parses JSON of whatever origin, with one kind of error for all that may be wrong with it."""

from collections.abc import Callable
import json
import os
import sys
from typing import Any

from etils import epath

from melllm_jax.errors import Fault, Mistake


def parse_json(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value that `text` holds; of bytes, its encoding is known by their mark.

    Raises json.JSONDecodeError, and nothing else, for what is none, is no text, is nested deeper
    than Python's stack, or has a whole number of more digits than a float can hold; and what
    `parse_constant` raises for NaN and the infinities.
    """
    decoder = _DECODER
    if parse_constant is not None:
        decoder = json.JSONDecoder(parse_constant=parse_constant, parse_int=_parse_whole_number)
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        return decoder.decode(text)
    except RecursionError as error:
        raise json.JSONDecodeError("is nested too deeply", _shown(text), 0) from error
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"is no text: {error.reason}", _shown(text), 0) from error


def read_object(path: os.PathLike[str]) -> dict[str, Any]:
    """The object of fields in a JSON file that a user gave, which may begin with a byte order mark.

    Raises Mistake where there is none, Fault where it cannot be read.
    """
    file = epath.Path(path)
    try:
        tree = parse_json(file.read_bytes())
    except FileNotFoundError as error:
        raise Mistake(f"{file.parent}: holds no {file.name}") from error
    except OSError as error:
        raise Fault(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Mistake(f"{file}: is no JSON: {error}") from error
    if not isinstance(tree, dict):
        raise Mistake(f"{file}: must be an object of fields")
    return tree


def _parse_whole_number(digits: str) -> int:
    if len(digits) > sys.float_info.max_10_exp:
        raise json.JSONDecodeError(f"a whole number of {len(digits)} digits", digits, 0)
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_parse_whole_number)


def _shown(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode(errors="replace")
