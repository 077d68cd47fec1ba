"""Turns of a conversation, of text and clips of sound, as every prompt is made of them."""

from collections.abc import Sequence
import dataclasses
from typing import Literal, get_args

from melllm_jax.errors import Mistake

Role = Literal["system", "user", "assistant"]
CLIP = None  # stands among the parts of a turn where the next clip is heard
_SHOWN = 40  # characters of a text that a message shows


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    parts: tuple[str | None, ...]  # texts, and CLIP for each clip

    @property
    def words(self) -> str:
        """Its texts, a line each."""
        return "\n".join(part for part in self.parts if part is not CLIP)


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises Mistake where turns are no conversation that ends with an answer.

    An optional system turn comes first, then user and assistant in turn, the assistant last. No
    turn is empty, and only a user's has clips, or more than one text.
    """
    first = 1 if turns and turns[0].role == "system" else 0
    spoken = turns[first:]
    for index, turn in enumerate(spoken):
        wanted = ("user", "assistant")[index % 2]
        if turn.role != wanted:
            rule = f"must be {wanted}'s: after a system turn user and assistant come in turn"
            raise Mistake(f"turn {first + index + 1} is {turn.role}'s: {rule}")
    if not spoken or spoken[-1].role != "assistant":
        raise Mistake("lacks an answer: the last turn must be the assistant's")
    for number, turn in enumerate(turns, 1):
        texts = [part for part in turn.parts if part is not CLIP]
        if turn.role != "user" and (CLIP in turn.parts or len(texts) > 1):
            raise Mistake(f"turn {number} is {turn.role}'s: must be one text, without sound")
        if not turn.parts or any(not text.strip() for text in texts):
            raise Mistake(f"turn {number} is {turn.role}'s: must not be empty")


def read_role(value: object) -> Role:
    """A role by its name. Raises Mistake for any other."""
    role: Role
    for role in get_args(Role):
        if value == role:
            return role
    raise Mistake(f"role={repr(value)[:_SHOWN]}: must be {', '.join(get_args(Role))}")
