"""What was measured before: a line of JSON for each, added as soon as it is known.

A process that is killed leaves whole lines and perhaps a torn one, which is passed over. One
process at a time writes: see `measurement.sole_use`.
"""

import hashlib
import json
import pathlib
from typing import Any

from melllm_jax.errors import Fault
from melllm_jax.json_text import parse_json


class Journal:
    """Values by what decides them, in a file. Raises Fault where it cannot be read or written."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        try:
            held = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise Fault(f"{path}: cannot be read: {error.strerror}") from error
        self._values = dict[str, Any]()
        self._torn = bool(held) and not held.endswith(b"\n")
        for line in held.splitlines():
            try:
                row = parse_json(line)
                self._values[row["key"]] = row["value"]
            except (ValueError, TypeError, KeyError):
                continue  # torn

    def find(self, *what: Any) -> Any:
        """The value that was kept of `what`, which JSON can tell; None where there is none."""
        return self._values.get(_key(what))

    def keep(self, value: Any, *what: Any) -> None:
        """Keeps the value of `what`."""
        key = _key(what)
        line = json.dumps({"key": key, "value": value}).encode() + b"\n"
        try:
            with open(self._path, "ab") as file:
                file.write(b"\n" + line if self._torn else line)
        except OSError as error:
            self._torn = True  # a part of the line may be there
            raise Fault(f"{self._path}: cannot be written: {error.strerror}") from error
        self._torn = False
        self._values[key] = value


def _key(what: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
