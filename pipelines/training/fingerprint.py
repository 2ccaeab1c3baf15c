"""Digests of code: the part of a trial's key that stands for the code that computes its weights.

A walk begins at the trial's numeric core (``training.core`` and ``inputs.fit``) and at its network's builder, and
follows names: a top-level definition counts when a definition that counts refers to it, within its module or through an
import, and with it the statements of its module that define nothing. There is no list to keep.

- Entries of a registry (``config.registry``) count only where the trial's config contains their name, so that another
  transform, loss or optimiser trains nothing again.
- Parsing drops comments, formatting and line numbers; docstrings are dropped, too.
- The class and words of a raised exception are dropped: an exception ends a trial, and changes no weights.
- Type annotations are compared as text and not followed, nor are imports for type checking alone.

Methods of the core's arguments (a ``Dataset``, a ``Recipe``) do not count. Whatever decides weights must therefore be a
function or class that the core refers to by name; the config's dataclasses hold only values and checks.
Imports no torch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.meaning import as_text, meaning
from pipelines.config.registry import registered

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "pipelines")
Place = tuple[str, str]  # a module, and a top-level name in it or LOOSE
TRAINING = ("pipelines.training.core", "pipelines.training.inputs.fit")
FITTING = ("pipelines.training.inputs.fit",)
LOOSE = ""  # the statements of a module that define nothing


def read(root: Path | None = None) -> dict[str, str]:
    """The source of every module of ours below ``root`` as it is now, by the module's name."""
    root = root or ROOT
    paths = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    names = ((path, ".".join(path.relative_to(root).with_suffix("").parts)) for path in paths)
    return {name.removesuffix(".__init__"): path.read_text(encoding="utf-8") for path, name in names}


def of_training(config: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, str]:
    """Digests by module of the code behind a trial of the resolved ``config``."""
    return digests((*TRAINING, f"models.{config['model']['family']}.{config['model']['name']}"), config, sources)


def of_fitting(recipe: Any, sources: Mapping[str, str]) -> dict[str, str]:
    """Digests by module of the code that fits the preprocessing and augmentation of a plain ``recipe``."""
    return digests(FITTING, recipe, sources)


def digests(roots: Collection[str], config: Any, sources: Mapping[str, str]) -> dict[str, str]:
    """sha256 by module of the definitions that count when the walk begins at ``roots``, modules or names in them."""
    modules, named = Modules(sources), frozenset(_strings(config))
    waiting = [place for root in roots for place in modules.resolve(root)]
    reached: set[Place] = set()
    while waiting:
        place = waiting.pop()
        if place not in reached:
            reached.add(place)
            waiting += modules.references(place, named)
    hashes: dict[str, str] = {}
    for name in sorted({module for module, _ in reached}):
        counted = [modules[name].text[definition] for module, definition in sorted(reached) if module == name]
        hashes[name] = hashlib.sha256("\n".join(counted).encode()).hexdigest()
    return hashes


def _strings(value: Any) -> Iterator[str]:
    """Every text in a config, names of keys that are set included."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner is not None:
                yield str(key)
                yield from _strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value


class Modules:
    """Modules parsed when they are first asked for, and the names between them."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources

    def __getitem__(self, name: str) -> Parsed:
        return parse(self.sources[name])

    def resolve(self, dotted: str) -> list[Place]:
        """The places that a dotted name stands for: a module without its registries' entries, or a name in a module."""
        if dotted in self.sources:
            entries = {entry for held in self[dotted].entries.values() for entry, _ in held}
            return [(dotted, name) for name in self[dotted].text if name not in entries]
        module, _, name = dotted.rpartition(".")
        if module not in self.sources:
            return []
        parsed = self[module]
        if name in parsed.imports:
            return self.resolve(parsed.imports[name])
        return [(module, name if name in parsed.text else LOOSE)]

    def references(self, place: Place, named: Collection[str]) -> list[Place]:
        """The places that count with ``place``: its references, a registry's entries, its module's loose statements."""
        module, name = place
        parsed = self[module]
        places = [(module, LOOSE)]
        places += [(module, entry) for entry, as_name in parsed.entries.get(name, ()) if as_name in named]
        for dotted in parsed.used[name]:
            head, _, rest = dotted.partition(".")
            if head in parsed.imports:
                places += self._through(parsed.imports[head], rest)
            elif head in parsed.text:
                places.append((module, head))
        return places

    def _through(self, target: str, rest: str) -> list[Place]:
        """The places that ``rest``, attributes of an imported ``target``, refers to; without any, the whole module."""
        while rest and target in self.sources:
            attribute, _, rest = rest.partition(".")
            target = f"{target}.{attribute}"
        return self.resolve(target)


@dataclass(frozen=True)
class Parsed:
    """The top level of one module."""

    text: Mapping[str, str]  # definition: what it does
    used: Mapping[str, Collection[str]]  # definition: the dotted names that it refers to
    imports: Mapping[str, str]  # name: the module, or name in a module, that it stands for
    entries: Mapping[str, Collection[tuple[str, str]]]  # registry: its definitions, and their names in a recipe


@functools.lru_cache(maxsize=1024)
def parse(source: str) -> Parsed:
    """Take a module apart."""
    parts: dict[str, list[ast.stmt]] = {LOOSE: []}
    imports: dict[str, str] = {}
    entries: dict[str, list[tuple[str, str]]] = {}
    tree = meaning(source)
    for node in ast.walk(tree):
        imports |= _imported(node)
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        for name in _defined(statement) or [LOOSE]:
            parts.setdefault(name, []).append(statement)
            for registry, as_name in registered(statement):
                entries.setdefault(registry, []).append((name, as_name))
    used = {name: sorted({used for part in held for used in _used(part)}) for name, held in parts.items()}
    return Parsed(
        text={name: "\n".join([*map(as_text, held), *_external(used[name], imports)]) for name, held in parts.items()},
        used=used,
        imports=imports,
        entries=entries,
    )


def _external(used: Collection[str], imports: Mapping[str, str]) -> list[str]:
    """The meaning of names from other packages; names from ours count by their own code."""
    heads = sorted({name.partition(".")[0] for name in used} & set(imports))
    return [f"{head} is {imports[head]}" for head in heads if imports[head].partition(".")[0] not in PACKAGES]


def _imported(node: ast.AST) -> dict[str, str]:
    """The names that an import binds, each with its full dotted name."""
    if isinstance(node, ast.Import):
        heads = [alias.name if alias.asname else alias.name.partition(".")[0] for alias in node.names]
        return {alias.asname or head: head for alias, head in zip(node.names, heads, strict=True)}
    if isinstance(node, ast.ImportFrom):
        if node.level or node.names[0].name == "*":
            raise ValueError("an import is relative or of *, which the walk can't follow; expected names by their path")
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {}


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    plain_names = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)  # no part of something else
    return names if plain_names else []


def _used(node: ast.AST) -> Iterator[str]:
    """Dotted names that ``node`` refers to, but for those in annotations."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute) and (dotted := _dotted(node)):
        yield dotted
    else:
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from _used(child)


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    inner = _dotted(node.value) if isinstance(node, ast.Attribute) else None
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else None
