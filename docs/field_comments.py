"""Lets the API reference say what the comment on a dataclass field says (a Griffe extension)."""

import ast
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Gives an attribute without a docstring the comment after it, or the one line above it."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **kwargs: Any
    ) -> None:
        """Called once for each attribute that Griffe reads."""
        if attr.docstring or not attr.parent or not attr.parent.is_class or attr.endlineno is None:
            return
        lines = attr.lines_collection[attr.filepath]
        above, last = lines[attr.lineno - 2].strip(), lines[attr.endlineno - 1]
        _, mark, comment = last.partition("  # ")
        if not mark and above.startswith("# "):
            comment = above.removeprefix("# ")
        if comment:
            attr.docstring = griffe.Docstring(comment, lineno=attr.lineno, parent=attr)
