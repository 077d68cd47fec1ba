"""The word that says what a command is to do: one of few."""

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
