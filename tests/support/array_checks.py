"""Checks of shapes and dtypes by jaxtyping, at the functions that name arrays.

Its wrapper binds the arguments of each call anew, to know the letters of shapes: a tenth of the
tests' time where every small function has one. What names no array is checked by beartype alone,
and not at all where a function makes it anew at each call.
"""

from collections.abc import Callable
import inspect
import typing
from typing import Any

from beartype import BeartypeConf, beartype
import jaxtyping

check = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def where_arrays_are_named(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyping.jaxtyped`, as its import hook calls it, for functions and classes with arrays."""

    def decorate(thing: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
        if thing is None:
            return lambda found: decorate(found, typechecker=typechecker)
        if not inspect.isfunction(thing) and not inspect.isclass(thing):
            return jaxtyped(thing, typechecker=typechecker)  # a property or a static method
        if any(map(_names_array, inspect.get_annotations(thing).values())):
            return jaxtyped(thing, typechecker=typechecker)
        # The methods of a class are functions of their own.
        inner = inspect.isclass(thing) or "<locals>" in thing.__qualname__
        return thing if inner else check(thing)

    return decorate


def _names_array(annotation: Any) -> bool:
    """Whether an annotation has a shape somewhere; one in quotes may have."""
    parts = typing.get_args(annotation)
    shaped = isinstance(annotation, str) or hasattr(annotation, "dim_str")
    return shaped or any(map(_names_array, parts))
