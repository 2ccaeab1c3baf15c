"""Named entries that a recipe chooses from: transforms, losses, optimisers, the interpolations of a schedule."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

PACKAGE = Path(__file__).resolve().parents[1]

T = TypeVar("T")


class Registry(dict[str, T]):
    """Entries by their names in a recipe.

    An entry is a top-level definition in the registry's module, under the decorator ``entry``. A trial's key leaves out
    the entries that its recipe does not name (``training.fingerprint``).
    """

    def __init__(self, what: str, module: str) -> None:
        """``what`` is what errors call an entry; ``module`` is the ``__name__`` of the registry's module."""
        super().__init__()
        self.what, self.module = what, module

    def entry(self, name: str) -> Callable[[T], T]:
        """Decorate the definition of the entry ``name``; ValueError for a taken name or in another module."""

        def add(value: T) -> T:
            if name in self:
                raise ValueError(f"{self.what} {name} is defined twice")
            if value.__module__ != self.module:
                raise ValueError(f"{self.what} {name} is defined in {value.__module__}; expected {self.module}")
            self[name] = value
            return value

        return add

    def __missing__(self, name: str) -> T:
        raise ValueError(f"{self.what} {name} is not known; expected one of {', '.join(sorted(self))}")


@functools.cache
def entries(module: str, registry: str) -> Mapping[str, tuple[str, ...]]:
    """The entries of ``registry`` in ``pipelines/<module>``, and the keyword arguments of those that are functions.

    Read from the source: importing it would load torch for seconds, and a misspelt name must be reported at once.
    """
    found = {}
    for node in ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body:
        for name, entry in registered(node):
            if name == registry:
                keywords = node.args.kwonlyargs if isinstance(node, ast.FunctionDef) else []
                found[entry] = tuple(argument.arg for argument in keywords)
    return found


def registered(definition: ast.stmt) -> Iterator[tuple[str, str]]:
    """The registry and the name of each ``@REGISTRY.entry("name")`` above a definition."""
    for decorator in getattr(definition, "decorator_list", ()):
        match decorator:
            case ast.Call(ast.Attribute(ast.Name(name), "entry"), [ast.Constant(str(entry))]):
                yield name, entry
