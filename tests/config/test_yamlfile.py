"""Guards the reader of YAML: 1.2 as DVC reads it, and a line with its number for what is none."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml, parse_yaml

from pipelines.command.errors import UserError
from pipelines.config import yamlfile
from pipelines.config.params import load_params
from tests import projects
from tests.conftest import ROOT

FILES = [ROOT / "params.yaml", ROOT / "suite.yaml", *sorted((ROOT / "models").glob("*.yaml"))]


def edited(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """A project in ``tmp_path`` with one change to one of its files; that file."""
    path = projects.copy_params(tmp_path).parent / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def line_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        yamlfile.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    """As DVC's own reader takes them; to YAML 1.1, 010 is eight, 1:30 is ninety, and `on` is true."""
    path = tmp_path / "some.yaml"
    path.write_text(
        "[010, 0o10, 0x1F, 1:30, on, yes, No, true, +3, .inf, 1_0, 1., ~, 2020-02-30, 2020-01-01 10:00:00, =, <<, 0b1]"
    )
    with pytest.raises(UserError, match="holds"):
        yamlfile.read(path)
    path.write_text("a: " + path.read_text())
    expected = [10, 8, 31, "1:30", "on", "yes", "No", True, 3, float("inf"), "1_0", 1.0, None]
    assert yamlfile.read(path)["a"] == [*expected, "2020-02-30", "2020-01-01 10:00:00", "=", "<<", "0b1"]
    path.write_text('[!!str 1, "1", !!int 010, !!float 5, !!null "", !!bool True, !!seq [], !!map {}, -.INF, .5e3]')
    path.write_text("a: " + path.read_text())
    assert yamlfile.read(path)["a"] == ["1", "1", 10, 5.0, None, True, [], {}, -math.inf, 500.0]


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    """PyYAML alone takes 1e-3 for text; DVC, which compares the file with its lock, takes it for a number."""
    for text, value in {"1e-3": 1e-3, "1E-3": 1e-3, "2e1": 20.0, "1.e-3": 1e-3, "+1e-2": 0.01, ".5e-1": 0.05}.items():
        edited(tmp_path, "models/lenet.yaml", "lr: 0.08", f"lr: {text}")
        lr = load_params(tmp_path / "params.yaml").benchmarks["lenet5-mnist"].recipe.optimiser.lr
        assert lr == value == parse_yaml(text, "text")
    edited(tmp_path, "models/lenet.yaml", "lr: 0.08", "lr: -1e-3")
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    place = "models/lenet.yaml: lenet5-mnist.recipe.optimiser.lr"
    assert str(caught.value) == f"{place} is -0.001; expected a number above 0"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dvc_reads_the_same_from_the_committed_files(path: Path) -> None:
    assert load_yaml(str(path)) == yamlfile.read(path)


def test_anchors_and_merges_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\n")
    assert yamlfile.read(path) == load_yaml(str(path)) == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}
    path.write_text(
        "a: &a {b: 1, c: 2}\nd: &d {c: 4, e: 5}\nf: {c: 3, <<: *a}\ng: {<<: [*a, *d], '<<': 6}\nh: [*a, *a]\n"
    )
    found = yamlfile.read(path)
    assert (found["f"], found["g"]) == ({"b": 1, "c": 3}, {"b": 1, "c": 2, "e": 5, "<<": 6})
    assert found["h"] == [found["a"], found["a"]]
    path.write_text("a: {&key <<: {b: 1}}\nc: {!!str <<: {b: 1}}\n")
    assert yamlfile.read(path) == {"a": {"b": 1}, "c": {"<<": {"b": 1}}}
    path.write_text("a: &a {b: 1, c: 2}\nd: &d {c: 4, e: 5}\nf: {c: 3, <<: *a}\ng: {<<: [*a, *d]}\n")
    assert yamlfile.read(path) == load_yaml(str(path))
    path.write_text("# as below\n%YAML 1.2\n---\na: no\n")
    assert yamlfile.read(path) == load_yaml(str(path)) == {"a": "no"}
    path.write_bytes(b"\xef\xbb\xbfa: b\r\nc: d\r\n")
    assert yamlfile.read(path) == load_yaml(str(path)) == {"a": "b", "c": "d"}


def test_a_key_given_twice_is_found_with_its_line(tmp_path: Path) -> None:
    path = edited(tmp_path, "models/mlp.yaml", "    batch: 32\n", "    batch: 32\n    batch: 64\n")
    number = path.read_text().splitlines().index("    batch: 64") + 1
    assert line_of(path) == f"{path} line {number} is not valid YAML: the key batch stands twice"
    path = edited(tmp_path, "models/mlp.yaml", "mlp1000-mnist:\n", "mlp300-mnist:\n")
    assert "the key mlp300-mnist stands twice" in line_of(path)


BROKEN: dict[str, tuple[bytes, str]] = {
    "a tab": (b"datasets:\n\tmnist: {kind: mnist}\n", " line 2 is not valid YAML: found character "),
    "an open bracket": (b"a: 1\nb: [1, 2\nc: 3\n", " line 3 is not valid YAML: "),
    "a template's braces": (b"a: {{ b }}\n", " line 1 is not valid YAML: "),
    "a list as a key": (b"a: 1\n? [b, c]\n: 1\n", " line 2 is not valid YAML: "),
    "an unknown alias": (b"a: *b\n", " line 1 is not valid YAML: the alias b has no anchor before it"),
    "an alias in what it names": (
        b"a: &a [1, *a]\n",
        " line 1 is not valid YAML: an alias stands in what it names",
    ),
    "an anchor twice": (b"a: &a 1\nb: &a 2\n", " line 2 is not valid YAML: the anchor a stands twice"),
    "a foreign tag": (
        b"a: !!python/object/apply:os.getcwd []\n",
        " line 1 is not valid YAML: the tag !!python/object/apply:os.getcwd is not known; expected none, or one of !!",
    ),
    "a tag of 1.1": (b"a: {!!merge b: {c: 1}}\n", " line 1 is not valid YAML: the tag !!merge is not known; expected "),
    "a set": (b"a: !!set {b, c}\n", " line 1 is not valid YAML: the tag !!set is not known; expected none, or one of"),
    "bytes": (b"a: !!binary aGVsbG8=\n", " line 1 is not valid YAML: the tag !!binary is not known; expected none"),
    "a tag of one's own": (b"a: !<\x41%1B> b\n", " line 1 is not valid YAML: "),
    "a tag that does not fit": (b"a:\n  !!int abc\n", " line 2 is not valid YAML: the tag !!int stands before 'abc'"),
    "a bool that is none": (b"a: !!bool no\n", " line 1 is not valid YAML: the tag !!bool stands before 'no'"),
    "a mapping that is none": (b"a: !!map [1]\n", " line 1 is not valid YAML: the tag !!map is not known; "),
    "two documents": (
        b"a: 1\n---\nb: 2\n",
        " line 2 is not valid YAML: a second document begins; expected one",
    ),
    "another version": (b"%YAML 1.1\n---\na: no\n", " line 1 is not valid YAML: the directive '%YAML 1.1'; expected"),
    "thousands of directives": (
        b"# a\n" + b"".join(b"%%TAG !a%d! x\n" % i for i in range(40_000)) + b"--- 1",
        " line 2 is not valid YAML: the directive '%TAG !a0! x'; expected %YAML 1.2, or none",
    ),
    "no text": (b"a: 1\nb: \xff\xfe\x00", " line 2 is not valid YAML: expected text in UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), " line 1 is not valid YAML: expected text in UTF-8"),
    "a zero byte": (b"a: 1\nb: \x00\n", " line 2 is not valid YAML: the control character '\\x00'"),
    "an escape": (b"a: \x1b[31m\n", " line 1 is not valid YAML: the control character '\\x1b'"),
    "half a character": (b'a: "\\ud800"\n', " line 1 is not valid YAML: "),
    "no character": (b'a: "\\UFFFFFFFF"\n', " line 1 is not valid YAML: "),
    "4,301 digits": (
        b"a: " + b"1" * 4301,
        " line 1 is not valid YAML: a number of 4,301 digits; expected at most 1,000",
    ),
    "4,301 digits of 16": (
        b"a: 0x" + b"f" * 4299,
        " line 1 is not valid YAML: a number of 4,301 digits; expected at m",
    ),
    "900 in one another": (
        b"a: " + b"[" * 900 + b"]" * 900,
        " line 1 is not valid YAML: mappings and lists lie more th",
    ),
    "100,000 in one another": (
        b"a: " + b"{a: " * 10**5,
        " line 1 is not valid YAML: mappings and lists lie more than 50",
    ),
    "100,000 dashes": (b"a:\n" + b"- " * 10**5, " line 2 is not valid YAML: mappings and lists lie more than 50"),
    "aliases of aliases": (
        b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (i + 1, i + 1, b", ".join([b"*%c" % i] * 10)) for i in range(97, 110)),
        " line 5 is not valid YAML: it comes to more than 100,000 values, aliases counted as what they stand for",
    ),
    "aliases of a long text": (
        b"a: &a " + b"x" * 200_000 + b"\nb: [" + b"*a, " * 1000 + b"]\n",
        " line 2 is not valid YAML: it comes to more than 100,000 values",
    ),
    "many merges": (
        b"a: &a {"
        + b", ".join(b"k%d: 1" % i for i in range(700))
        + b"}\n"
        + b"".join(b"b%d: {<<: *a}\n" % i for i in range(700)),
        " line 1 is not valid YAML: it comes to more than 100,000 values",
    ),
    "<< twice": (
        b"a: &a {b: 1}\nc: {<<: *a, <<: *a}\n",
        " line 2 is not valid YAML: the key << stands twice; expected",
    ),
    "<< of a number": (
        b"a: {<<: 5}\n",
        " line 1 is not valid YAML: << is 5; expected a mapping, or a list of mappings",
    ),
    "a key twice in what is merged": (b"a: {<<: {b: 1, b: 2}}\n", " line 1 is not valid YAML: the key b stands twice"),
    "a key that a terminal obeys, twice": (
        b'a: {"\\e[31m": 1, "\\e[31m": 2}\n',
        " line 1 is not valid YAML: the key '\\x1b[31m' stands twice",
    ),
    "too much": (b"a: 1\n" + b"#" * 10**6, " is longer than 1,000,000 bytes; expected a file written by hand"),
    "nothing": (b"", " holds null; expected a mapping"),
    "a list": (b"- a\n- b\n", " holds ['a', 'b']; expected a mapping"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_yaml_mapping_is_one_line(tmp_path: Path, name: str) -> None:
    content, rest = BROKEN[name]
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert line_of(path).startswith(f"{path}{rest}")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    assert line_of(absent) == f"{absent} does not exist; run this in the folder of the project's params.yaml"
    assert line_of(tmp_path) == f"{tmp_path} is no regular file; expected one"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert line_of(pipe) == f"{pipe} is no regular file; expected one"
