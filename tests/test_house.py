"""Guards the shape of the code: its size, its functions, its imports, and that names mean one thing."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What it may not grow beyond; less code that does the same lowers these. The goal for all lines is 10,000.
MOST_LINES = 19_805  # of Python, outside tests
MOST_SHOWING = 3_300  # of these, in results and tracking
DEEPEST = 9  # modules in a chain of imports
MEDIAN_FUNCTION = 8  # lines
LONGEST_FUNCTION = 60
SMALLEST = 40  # lines of a module that only one other needs
FILES = sorted(path for folder in ("models", "pipelines", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
CODE = [path for path in FILES if path.relative_to(ROOT).parts[0] != "benchmarks"]
STAGES = ("fetch", "train", "evaluate", "compare")
LAYERS = {"models": 0, "command": 0, "config": 1, "data": 2, "training": 3, "cluster": 4, "results": 4, "tracking": 5}
COMMANDS = 6  # the layer of what stands at the top of pipelines/


def name_of(path: Path) -> str:
    """The dotted name of a module; a package is named like its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in CODE}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[tuple[str, int]]:
    """Each function's name and lines, its decorators and docstring left out."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            head = node.body[0].lineno - node.lineno
            found.append((f"{name_of(path)}.{node.name}", head + (body[-1].end_lineno or 0) - body[0].lineno + 1))
    return found


@functools.cache
def imports(name: str) -> frozenset[str]:
    """The modules of ours that a module imports, wherever it does; type checkers' imports aside."""
    found: set[str] = set()
    skipped = {
        inner
        for node in ast.walk(parsed(MODULES[name]))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(parsed(MODULES[name])):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found & MODULES.keys()) - {name}


def chains(name: str, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The longest chain of imports below a module; a circle is an error."""
    assert name not in above, f"imports go round in a circle: {' -> '.join((*above, name))}"
    below = [chain for other in sorted(imports(name)) for chain in _longest(other, (*above, name))]
    return [max(((name, *chain) for chain in below), key=len, default=(name,))]


KNOWN: dict[str, list[tuple[str, ...]]] = {}


def _longest(name: str, above: tuple[str, ...]) -> list[tuple[str, ...]]:
    if name not in KNOWN:
        KNOWN[name] = chains(name, above)
    assert name not in above, f"imports go round in a circle: {' -> '.join((*above, name))}"
    return KNOWN[name]


def test_the_code_is_no_longer_than_it_may_be() -> None:
    assert sum(map(lines, FILES)) <= MOST_LINES
    shown = [path for path in CODE if path.relative_to(ROOT).parts[1] in ("results", "tracking")]
    assert sum(map(lines, shown)) <= MOST_SHOWING


def test_functions_fit_on_a_screen() -> None:
    found = list(itertools.chain.from_iterable(map(functions, FILES)))
    assert statistics.median(count for _, count in found) <= MEDIAN_FUNCTION
    assert [(name, count) for name, count in found if count > LONGEST_FUNCTION] == []


def test_imports_are_few_deep_and_never_go_round() -> None:
    deepest = max((chain for name in MODULES for chain in _longest(name, ())), key=len)
    assert len(deepest) <= DEEPEST, " -> ".join(deepest)


def test_a_small_module_is_needed_by_more_than_one() -> None:
    needed = Counter(other for name in MODULES for other in imports(name))
    small = [
        name for name, path in MODULES.items() if lines(path) < SMALLEST and path.stem not in ("__init__", "__main__")
    ]
    assert [name for name in small if needed[name] == 1] == []


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another(stage: str) -> None:
    assert not {f"pipelines.{other}" for other in STAGES} & imports(f"pipelines.{stage}"), "stages exchange files"


def layer(name: str) -> int:
    return LAYERS.get(next(part for part in name.split(".") if part != "pipelines"), COMMANDS)


def test_packages_are_layers() -> None:
    """Each imports from those below it alone; ``pipelines`` itself, which every import runs, ends commands early."""
    for name in MODULES.keys() - {"pipelines"}:
        assert not [other for other in imports(name) if other != "pipelines" and layer(other) > layer(name)], name


def test_the_nets_import_nothing_of_ours() -> None:
    for name in MODULES:
        if name.startswith("models."):
            assert not [other for other in imports(name) if other.startswith("pipelines")], name


def test_a_class_or_constant_has_one_meaning() -> None:
    """A name is given once in the tree, or to the same value; ``__all__`` and the like aside."""
    given: dict[str, dict[str, str]] = {}
    for path in FILES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                given.setdefault(node.name, {})[name_of(path)] = "class"
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                target = node.targets[0].id
                if target.isupper() and not target.startswith("_"):
                    given.setdefault(target, {})[name_of(path)] = ast.dump(node.value)
    double = {name: list(where) for name, where in given.items() if len(where) > 1}
    assert double == {}


def test_nothing_cites_a_file_that_is_not_there() -> None:
    names = {path.name for path in ROOT.rglob("*.md") if ".venv" not in path.parts}
    for path in [*FILES, *(ROOT / "tests").rglob("*.py"), *ROOT.glob("models/*.yaml"), ROOT / "params.yaml"]:
        for cited in re.findall(r"\b([\w-]+\.md)\b", path.read_text(encoding="utf-8")):
            assert cited in names or path.parent.name == "fuzz", f"{path} cites {cited}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_a_test_file_tells_what_it_guards(path: Path) -> None:
    assert (ast.get_docstring(parsed(path)) or "").strip(), f"{path}: expected a docstring"
