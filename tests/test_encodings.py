"""Text files are UTF-8 whatever the user's locale is: every call that reads or writes one names its encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted(path for folder in ("benchmarks", "models", "pipelines") for path in (ROOT / folder).rglob("*.py"))
TEXT = ("open", "fdopen", "read_text", "write_text")
# What has functions of these names, and no use for an encoding.
OTHERS = ("Image", "archive", "bz2", "gzip", "lzma", "os", "tar", "tarfile", "webbrowser", "yamlfile")


def unnamed(source: str) -> Iterator[int]:
    """Lines of calls that leave the encoding of a text to the locale."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        owner, _, name = ast.unparse(call.func).rpartition(".")
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        modes = [ast.unparse(argument) for argument in call.args] + [given.get("mode", "")]
        others = (owner in OTHERS and name != "fdopen") or (not owner and name != "open")
        text = name in TEXT and not others
        binary = any(mode.startswith("'") and "b" in mode for mode in modes)
        if "encoding" not in given and (given.get("text") == "True" or (text and not binary)):
            yield call.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_is_read_and_written_with_an_encoding(path: Path) -> None:
    assert list(unnamed(path.read_text(encoding="utf-8"))) == []


def test_what_leaves_the_encoding_to_the_locale_is_found() -> None:
    wrong = (
        "open(a)",
        "a.open('w')",
        "a.read_text()",
        "(a / 'b').write_text(c)",
        "run(a, text=True)",
        "os.fdopen(a, 'w')",
    )
    right = (
        "open(a, 'rb')",
        "a.open('r+b' if b else 'wb')",
        "a.read_bytes()",
        "Image.open(a)",
        "a.open(encoding='ascii')",
    )
    assert [len(list(unnamed(line))) for line in wrong] == [1] * len(wrong)
    assert [len(list(unnamed(line))) for line in right] == [0] * len(right)
