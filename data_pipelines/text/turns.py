"""Turns of a conversation, of text and clips of sound, as every prompt is made of them."""

from collections.abc import Sequence
import dataclasses
from typing import Literal, get_args

from melllm_jax.errors import Mistake

Role = Literal["system", "user", "assistant"]
CLIP = None  # stands among the parts of a turn where the next clip is heard, or spoken
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
    turn is empty, and only a user's has clips, or more than one text; but behind the text of the
    answer, the last turn, may stand a clip in which it is spoken.
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
        plain = len(turn.parts) == len(texts) <= 1
        if turn.role != "user" and not plain and not (number == len(turns) and is_spoken(turn)):
            rule = "must be one text, without sound; behind the last may stand the sound of it"
            raise Mistake(f"turn {number} is {turn.role}'s: {rule}")
        if not turn.parts or any(not text.strip() for text in texts):
            raise Mistake(f"turn {number} is {turn.role}'s: must not be empty")


def is_spoken(answer: Turn) -> bool:
    """Whether an answer is a text and the sound of it."""
    return len(answer.parts) == 2 and answer.parts[0] is not CLIP and answer.parts[1] is CLIP


def read_role(value: object) -> Role:
    """A role by its name. Raises Mistake for any other."""
    role: Role
    for role in get_args(Role):
        if value == role:
            return role
    raise Mistake(f"role={repr(value)[:_SHOWN]}: must be {', '.join(get_args(Role))}")
