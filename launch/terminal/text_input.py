"""Text that a user gave: of a file, or of standard input."""

import pathlib
import sys

from melllm_jax.errors import Fault, Mistake

STDIN = "-"  # stands for standard input where a file is asked for


def read_text(name: str) -> str:
    """The text of a file in UTF-8, or of standard input for "-".

    Raises Mistake for a file that is none or no text, Fault for one that cannot be read.
    """
    where = "standard input" if name == STDIN else name
    try:
        content = sys.stdin.buffer.read() if name == STDIN else pathlib.Path(name).read_bytes()
        return content.decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise Mistake(f"{where}: is no file") from error
    except UnicodeDecodeError as error:
        raise Mistake(f"{where}: is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise Fault(f"{where}: cannot be read: {error.strerror}") from error
