"""Guards names and values: what MLflow takes, and the same for the same text."""

from __future__ import annotations

from pipelines.tracking import limits


def test_names_and_values_are_what_mlflow_takes() -> None:
    assert limits.value("a\tb\nc\x00\ud800", 100) == "a\tb\nc\\x00\\ud800"
    cut = limits.value("x" * 9000, 8000)
    assert len(cut) == 8000 and cut.endswith("x … (9,000 characters in all)")
    assert limits.name("a\u2028b\u202ec") == "a\\u2028b\\u202ec"  # a line of its own, and text from right to left
    assert limits.name(" a\nb\tc ") == "a b c" and limits.name(" ") == "(no name)"
