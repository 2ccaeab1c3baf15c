"""Guards names and values: what MLflow takes, and the same for the same text."""

from __future__ import annotations

from pipelines.tracking import limits


def test_names_and_values_are_what_mlflow_takes() -> None:
    assert limits.key("recipe.model.options.lr 1:a.b-c_d") == "recipe.model.options.lr 1:a.b-c_d"
    assert [limits.key(odd) for odd in ("a$b", "a\n", "", "..", "/a", "a/../b", "a//b", ".")] == [
        *("a_x24_b", "a_x0a_", "_", "_x2e_.", "_x2f_a", "a_x2f_.._x2f_b", "a_x2f__x2f_b", "_x2e_")
    ]
    long = [limits.key("x" * 300 + end) for end in "ab"]
    assert len(set(long)) == 2 and {len(key) for key in long} == {250}
    assert limits.value("a\tb\nc\x00\ud800", 100) == "a\tb\nc\\x00\\ud800"
    cut = limits.value("x" * 9000, 8000)
    assert len(cut) == 8000 and cut.endswith("x … (9,000 characters in all)")
    assert limits.name(" a\nb\tc ") == "a b c" and limits.name(" ") == "(no name)"
