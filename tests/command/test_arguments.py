"""Guards the command line: what it says of a bad argument is printable and short."""

from __future__ import annotations

import pytest

from pipelines.command.arguments import Parser


@pytest.mark.parametrize("word", ["\x1b[2J", "a\rb", "\u202e", "x" * 5000, "\udcff"])
def test_a_bad_argument_moves_no_cursor(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="python -m pipelines.x")
    parser.add_argument("--seed", type=int)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--seed", word])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "invalid int value" in said and len(said) < 700
    assert all(c.isprintable() or c == "\n" for c in said)
