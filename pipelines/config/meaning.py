"""What source code computes: its syntax tree without all that changes no number.

Comments, docstrings, imports for type checking alone and the arguments of exceptions are left out. For digests that
decide whether something is computed anew.
"""

from __future__ import annotations

import ast
from typing import Any


def meaning(source: str) -> ast.Module:
    """The syntax tree of a module, reduced."""
    tree: ast.Module = _Reduced().visit(ast.parse(source))
    return tree


class _Reduced(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> Any:
        """Drop the docstring of a module, class or function; leave the rest to the methods below."""
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node) is not None :]
        return super().visit(node)

    def visit_If(self, node: ast.If) -> Any:
        """Of ``if TYPE_CHECKING:`` only the other branch is run."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return [self.visit(statement) for statement in node.orelse]
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> Any:
        """Keep only the fact that it raises."""
        return ast.Raise()


def as_text(node: Any) -> str:
    """A syntax tree as text, the same in each version of Python: fields that are not set are left out."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({', '.join(f'{name}={as_text(value)}' for name, value in fields)})"
    return f"[{', '.join(map(as_text, node))}]" if isinstance(node, list) else repr(node)
