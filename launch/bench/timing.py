"""Times actions in turns, so that noise falls on all alike, and takes medians."""

from collections.abc import Callable, Mapping
import statistics
import time


def time_once(action: Callable[[], object]) -> float:
    """Seconds that `action` takes; it must wait for its own devices."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def time_in_turns(
    actions: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of each action in each round, all of them in turn; `warm` rounds come before."""
    for _ in range(warm):
        for action in actions.values():
            action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            taken[name].append(time_once(action))
    return taken


def medians(taken: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each action."""
    return {name: statistics.median(values) for name, values in taken.items()}
