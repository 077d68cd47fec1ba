"""Functions of generation, compiled once a shape and kept, and the lengths that shapes take."""

from collections.abc import Callable
import functools
import time
from typing import Any

import jax


class CompiledFunctions:
    """What was compiled so far, by name."""

    def __init__(self) -> None:
        self.seconds = 0.0  # spent on compiling
        self._compiled: dict[tuple, Callable[..., Any]] = {}

    def call(
        self, name: tuple, function: Callable[..., Any], *arguments: Any, **static: Any
    ) -> Any:
        """`function`, compiled once a name; `static` are constants of its program.

        An argument that has a cache of keys and values, the state of a loop, is used up.
        """
        if name not in self._compiled:
            began = time.perf_counter()
            used_up = tuple(i for i, x in enumerate(arguments) if hasattr(x, "cache"))
            jitted = jax.jit(functools.partial(function, **static), donate_argnums=used_up)
            self._compiled[name] = jitted.lower(*arguments).compile()
            self.seconds += time.perf_counter() - began
        return self._compiled[name](*arguments)


def bucket_length(length: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, …: at most half is padding, a third on average."""
    size = 32
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
