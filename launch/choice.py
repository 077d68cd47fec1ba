"""The first word after a command: one of few, or what it is to work on."""

from collections.abc import Collection, Sequence
import difflib

from melllm_jax.errors import Mistake


def chosen(command: str, argv: Sequence[str], known: Collection[str], missing: str) -> str:
    """The first word of `argv`. Raises Mistake where it is none of `known`, or is `missing`."""
    if not argv:
        raise Mistake(f"{missing}: {', '.join(known)}")
    if argv[0] not in known:
        near = difflib.get_close_matches(argv[0], known, n=1, cutoff=0.0)
        listed = ", ".join(known)
        raise Mistake(f"{command}={argv[0]}: is none of {listed}; did you mean {near[0]}?")
    return argv[0]


def first(command: str, argv: Sequence[str], what: str) -> tuple[str, Sequence[str]]:
    """The word that `melllm COMMAND` works on, and the flags after it; where help is asked, "".

    Raises Mistake where it is missing; `what` is its name.
    """
    if argv and argv[0] in ("-h", "--help"):
        return "", argv
    if not argv or argv[0].startswith("-"):
        raise Mistake(f"no {what} given: melllm {command} {what}")
    return argv[0], argv[1:]
