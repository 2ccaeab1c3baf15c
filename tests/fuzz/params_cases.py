"""The YAML files of a project, and data.dvc, as nobody meant them: any value in any place, and what is hardly YAML."""

from __future__ import annotations

import copy
import functools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines import fetch, suite
from pipelines.command.errors import UserError
from pipelines.config import yamlfile
from pipelines.config.params import load_params
from pipelines.config.values import plain
from pipelines.data import rawfiles
from tests import projects
from tests.conftest import ROOT

ROWS = ("linear-mnist", "lenet5-rbf-mnist", "convnetjs-cifar10", "alexnet-imagenette")
PYTHON = re.compile(r" at 0x|<class|NoneType|object is|argument|Traceback")  # words of the machine


class Raw(str):
    """Text that is written into the file as it is."""


SCALARS: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        10,
        0.0,
        -0.0,
        0.5,
        1.5,
        -0.1,
        1e-3,
        1e-300,
        1e38,
        1e308,
        10**9,
        2**63,
        10**18,
    ),
    *(
        "",
        " ",
        "x",
        "no",
        "off",
        "true",
        "false",
        "null",
        "1",
        "0.02",
        "0,02",
        "1e5",
        "mnist",
        "paper",
        "sgd",
        "ten_crop",
    ),
    *("a: b", "a\nb", "\x1b[31m", "\x00", "\u202e", "\x85", "\ud7ff", "☃", "../..", "/", "~", "-", "x" * 600, "a b\tc"),
    *map(Raw, (".inf", "-.inf", ".nan", "~", "1e400", "1e-400", "0x1F", "0o17", "010", "1_0", "+3", "1:30", "=", "<<")),
    *map(
        Raw,
        ("2020-02-30", "2020-01-01", "2020-01-01T10:00:00Z", "1" * 4301, "9" * 400, "0x" + "f" * 3700, "1e" + "9" * 99),
    ),
    *map(
        Raw, ("!!int abc", "!!int 5", "!!str 5", "!!float x", "!!bool no", "!!null x", "!!timestamp 2020-01-01", "! 5")
    ),
    *map(
        Raw, ("!!binary aGk=", "!!set {a, b}", "!!omap [a: b]", "!!pairs [a: b]", "!!python/tuple [1, 2]", "!a b", "*a")
    ),
    *map(
        Raw,
        ("&a 5", "&b [1, *b]", "&a {<<: *a}", "*nothing", "[", "]", "{", "}", "'", '"', "|", ">-", "%", "@", "`", "#"),
    ),
    *map(
        Raw,
        ('"\\ud800"', '"\\U00110000"', '"\\x1b"', '"\\0"', "'a''b'", "- a", "? a", ": a", "!!python/name:os.system x"),
    ),
]
KEYS: list[Any] = [
    "",
    " ",
    "x",
    "name",
    "lr",
    "a: b",
    "a\nb",
    "\x1b[1m",
    "x" * 600,
    "123",
    "true",
    "É",
    "paper",
    "pape r",
]
KEYS += [
    Raw(text) for text in ("123", "true", "null", "1e5", "[a]", "{a: b}", "<<", "!!str x", "*a", "2020-01-01", ".nan")
]


def case(random: random.Random, folder: Path) -> None:
    """Write a project's files, or a data.dvc, with some faults, and read them as the commands do."""
    if random.random() < 0.1:
        read_pins(random, folder)
        return
    spoilt = random.choice(list(small()))
    for name, tree in small().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(random, tree) if name == spoilt else json.dumps(tree).encode())
    try:
        if random.random() < 0.2:
            switch(random, folder)
        else:
            params = load_params(folder / "params.yaml")
            json.dumps(plain(params), allow_nan=False).encode()
            assert max(map(len, (*params.benchmarks, *params.suites, *params.datasets)), default=0) <= 60
    except UserError as error:
        assert not PYTHON.search(str(error)), error
        raise


def switch(random: random.Random, folder: Path) -> None:
    """Switch to one of the suites; a file that could not be rewritten is as it was, and no other is touched."""
    before = {path: path.read_bytes() for path in folder.rglob("*.yaml")}
    name = random.choice(["laptop", "imagenette", "123", "", "x"])
    try:
        suite.switch(name, folder / "params.yaml")
    except BaseException:
        assert {path: path.read_bytes() for path in before} == before
        raise
    assert load_params(folder / "params.yaml").suite.name == name
    rest = [path for path in before if path.name != "suite.yaml"]
    assert [path.read_bytes() for path in rest] == [before[path] for path in rest]


def read_pins(random: random.Random, folder: Path) -> None:
    """Read a data.dvc with some faults."""
    path = folder / "data.dvc"
    path.write_bytes(content(random, pins()))
    fetch.read_pins(path, [f"data/mnist/{file}" for file in rawfiles.IDX_FILES])


@functools.cache
def small() -> dict[str, dict[str, Any]]:
    """The files of a project with some of the real rows, one of each kind."""
    found = projects.read(ROOT)
    rows = {name: found["benchmarks"][name] for name in ROWS}
    for row in rows.values():
        row["deviations"] = row["deviations"][:1]
        row.pop("remarks", None)
    suites = {"laptop": {"budget": "laptop", "benchmarks": ["linear-mnist", "convnetjs-cifar10"]}}
    suites |= {name: {"budget": "laptop", "benchmarks": ["alexnet-imagenette"]} for name in ("imagenette", "123")}
    found = {"datasets": found["datasets"], "benchmarks": rows, "suites": suites, "suite": {"name": "imagenette"}}
    written, active = projects.apart(found | {"suite": projects.active(found)})
    families = {f"models/{name}.yaml": dict(rows) for name, rows in written.families.items()}
    return {"params.yaml": dict(written.params), "suite.yaml": active, **families}


@functools.cache
def pins() -> dict[str, Any]:
    """The data.dvc that is committed."""
    return yamlfile.read(ROOT / "data.dvc")


def content(random: random.Random, tree: dict[str, Any]) -> bytes:
    """A file that holds ``tree``, after some changes to it or to its text."""
    tree = copy.deepcopy(tree)
    faults = random.choices([0, 1, 2, 5], [1, 8, 3, 1])[0]
    for _ in range(faults):
        if random.random() < 0.75:
            change(random, tree)
    text = "".join(f"{flow(key)}: {flow(value)}\n" for key, value in tree.items())
    data = text.encode("utf-8", "surrogatepass")
    for _ in range(faults):
        if random.random() < 0.25:
            data = random.choice(SPOIL)(random, data)
    return data


def change(random: random.Random, tree: dict[str, Any]) -> None:
    """One change somewhere in ``tree``: another value, another key, one less, one more."""
    found = list(places(tree))
    if not found:
        return
    holder, key = random.choice(found)
    how = random.random()
    if how < 0.6:
        holder[key] = value(random)
    elif how < 0.7:
        del holder[key]
    elif isinstance(holder, dict):
        holder[random.choice([*KEYS, typo(random, str(key))])] = holder[key] if how < 0.9 else value(random)
    else:
        holder += random.choice(
            [[holder[key]], [value(random)], [holder[key]] * (3 if isinstance(holder[key], (dict, list)) else 3000)]
        )


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every mapping or list within ``tree`` with each of its keys."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from places(tree[key])


def value(random: random.Random, depth: int = 0) -> Any:
    """Anything that YAML can say."""
    kind = random.random()
    if kind < 0.75 or depth > 3:
        return random.choice(SCALARS)
    if kind < 0.85:
        return [value(random, depth + 1) for _ in range(random.randrange(5))]
    if kind < 0.95:
        return {random.choice(KEYS): value(random, depth + 1) for _ in range(random.randrange(4))}
    opening, closing = random.choice([("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")])
    levels = random.choice([20, 60, 900, 20_000])
    bomb = "[&a [x,x,x,x,x,x,x,x,x,x]" + "".join(
        f", &{n} [{', '.join([f'*{p}'] * 10)}]" for p, n in zip("abcdefg", "bcdefgh", strict=True)
    )
    return Raw(
        random.choice([opening * levels + "1" + closing * levels, bomb + "]", f"&c {{<<: [{'{a: 1}, ' * 99}]}}"])
    )


def typo(random: random.Random, key: str) -> str:
    """``key`` with a character gone, doubled or replaced."""
    at = random.randrange(len(key) + 1)
    return key[:at] + random.choice(["", key[at : at + 1] * 2, "x", "_", "\x07"]) + key[at + 1 :]


def flow(value: Any) -> str:
    """``value`` as YAML on one line."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return json.dumps(value)


def _cut(random: random.Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _insert(random: random.Random, data: bytes) -> bytes:
    at = random.randrange(len(data) + 1)
    some = [
        bytes([random.randrange(256)]),
        b"\t",
        b"\r",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\n---\n",
        b"\n...\n",
        b"%",
    ]
    some += [
        b"&a ",
        b"*a ",
        b"<<: *a, ",
        b"!!x ",
        b"'",
        b'"',
        b"[",
        b"}",
        b"# ",
        b": ",
        b"- ",
        b", ",
        b"1" * 5000,
        b"x" * 10**5,
    ]
    return data[:at] + random.choice(some) + data[at:]


def _lines(random: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    at = random.randrange(max(1, len(lines)))
    return b"".join([*lines[:at], *lines[at : at + 1] * random.choice([0, 2]), *lines[at + 1 :]])


def _recode(random: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(random.choice(["utf-16", "utf-32", "latin-1", "utf-8-sig", "ascii"]), "replace")


SPOIL: list[Callable[[random.Random, bytes], bytes]] = [
    *(_cut, _insert, _insert, _insert, _lines, _recode),
    lambda random, data: data.replace(b"\n", b"\r\n"),
    lambda random, data: data.rstrip(b"\n"),
    lambda random, data: b"%YAML " + random.choice([b"1.1", b"1.2", b"2.0"]) + b"\n---\n" + data,
    lambda random, data: random.randbytes(random.randrange(200)),
    lambda random, data: data + b"#" * 10**6,
]
