"""Two benchmarks as train and evaluate leave them, and their evidence, damaged at random; and the report of them."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import compare
from pipelines.command.errors import UserError
from pipelines.command.files import read_json
from pipelines.config.params import Params, load_params
from pipelines.results import evidence, ledger
from pipelines.training import store
from tests import report_inputs

NAMES = ("linear-mnist", "ml4a-convnet-cifar10")  # templates; filters, and other images than the test set's
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 0.5, 1e308, -1e-320, 10**30, 10**400, float("nan"), float("inf"), "", "1.0", "null"),
    *("\x1b[31m", "<script>alert(1)</script>", "a|b`c`[d](e)\n# f", "\ud800", "\u202egnp", "é" * 3, "x" * 4000),
    *([], {}, [None], {"": 1}, list(range(10)), [[0.5]]),
)


@functools.cache
def template() -> tuple[Path, Params]:
    """Made once: three seeds of each, and one image of each cell."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-evaluations-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    report_inputs.make(home, test_images=40, per_cell=1, names=NAMES, seeds=(0, 1, 2))
    params = load_params(home / "params.yaml")
    found = ledger.gather(params, home)
    (home / "evidence").mkdir()
    for name, outcome in found.items():
        body = evidence.of_outcome(outcome, "laptop", params.benchmarks[name].evaluation.claimed_on)
        (home / f"evidence/{name}.json").write_text(evidence.text({"laptop": body}), encoding="utf-8")
    return home, params


def case(rng: random.Random, folder: Path) -> None:
    """Damage files, or what they hold; then make the report, which is whole or one line."""
    home, params = template()
    for name in ("evaluations", "runs", "evidence"):
        shutil.copytree(home / name, folder / name)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        path = rng.choice(files)
        if path.is_file():
            rng.choice(CHANGES)(rng, path)
        if rng.random() < 0.05:
            swap(rng, path, files)
        if path.name in ("result.json", "curve.jsonl", "weights.pt") and rng.random() < 0.8:
            vouch(path.parent)
    report = folder / "report"
    if rng.random() < 0.05:
        rng.choice(KINDS)(report if rng.random() < 0.5 else made(report) / "index.html")
    found = ledger.gather(params, folder)
    compare.write(params, found, report, evidence.read(NAMES, folder / "evidence"))
    check(report)


def check(report: Path) -> None:
    """The report is one: JSON and a page, in which nothing became markup or moves a cursor."""
    json.loads((report / "ledger.json").read_text(encoding="utf-8"))
    text = (report / "index.html").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in text.split("\n"))
    assert "<script>alert" not in text


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def vouch(folder: Path) -> None:
    """As if the trial had ended with these files."""
    files = store.TrialFiles(folder)
    with contextlib.suppress(UserError):  # it is none any more
        files.write_result(read_json(files.result))


# --- changes of a file, whatever it holds ---------------------------------------------------------------------------


def garble(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes() or b"?")
    for _ in range(rng.choice((1, 3, 50))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


def cut(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)] + rng.choice((b"", b"\0", data)))


def replace(rng: random.Random, path: Path) -> None:
    path.write_bytes(rng.choice((b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe", b"9" * 5000, b"1,2\n" * 10)))


def swap(rng: random.Random, path: Path, files: list[Path]) -> None:
    """Another seed's file, or another benchmark's."""
    other = rng.choice([one for one in files if one.name == path.name])
    if path.is_file() and other.is_file():
        path.write_bytes(other.read_bytes())


def become(rng: random.Random, path: Path) -> None:
    path.unlink()
    if rng.random() < 0.8:
        rng.choice(KINDS)(path)


KINDS: tuple[Callable[[Path], object], ...] = (
    Path.mkdir,
    os.mkfifo,
    Path.touch,
    lambda path: path.symlink_to("nothing"),
    lambda path: path.symlink_to(path.name),
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to("/"),
)


# --- changes of what it holds -----------------------------------------------------------------------------------------


def change(rng: random.Random, path: Path) -> None:
    """A value of a JSON; garbled bytes where the file is neither, or no longer."""
    try:
        _CONTENTS.get(path.suffix, garble)(rng, path)
    except Exception:  # whatever an earlier change has made of it
        garble(rng, path)


def _json(rng: random.Random, path: Path) -> None:
    found = json.loads(path.read_bytes())
    _mutate(rng, found)
    path.write_text(json.dumps(found), encoding="utf-8")


def _lines(rng: random.Random, path: Path) -> None:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    _mutate(rng, rng.choice(lines))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _mutate(rng: random.Random, value: Any) -> None:
    """Somewhere in a nest, most often near its top, another value, none, or one more."""
    while True:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not places:
            return
        place = rng.choice(places)
        inner = value[place]
        if not (isinstance(inner, (dict, list)) and inner and rng.random() < 0.6):
            break
        value = inner
    odd = rng.choice(ODD)
    if rng.random() < 0.15:
        del value[place]
    elif isinstance(inner, (int, float)) and not isinstance(inner, bool) and rng.random() < 0.3:
        value[place] = inner * rng.choice((-1, 2, 1.0001, 1e6))
    else:
        value[place] = odd


_CONTENTS = {".json": _json, ".jsonl": _lines}
CHANGES = (garble, cut, replace, become, *[change] * 10)
