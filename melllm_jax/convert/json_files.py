"""Reads the JSON files of foreign checkpoints, which may begin with a byte order mark."""

import os
import pathlib
from typing import Any

from melllm_jax.errors import Fault, Mistake
from melllm_jax.json_text import parse_json


def read_object(path: os.PathLike[str]) -> dict[str, Any]:
    """The object of fields in a JSON file. Raises Mistake where there is none."""
    file = pathlib.Path(path)
    try:
        tree = parse_json(file.read_bytes())  # of bytes, it knows UTF-8 by its mark
    except FileNotFoundError as error:
        raise Mistake(f"{file.parent}: holds no {file.name}") from error
    except OSError as error:
        raise Fault(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Mistake(f"{file}: is no JSON: {error}") from error
    if not isinstance(tree, dict):
        raise Mistake(f"{file}: must be an object of fields")
    return tree
