"""Guards the run store: a trial's key, where the store is, and when a trial counts as finished."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from pipelines.command.files import (
    DamagedError,
    write_bytes,
    write_json,
)
from pipelines.config.params import load_params
from pipelines.training import store
from tests.conftest import ROOT

CODE = {"models.lenet": "0" * 64}
CONFIG = load_params(ROOT / "params.yaml").benchmark("lenet5-mnist").resolved("laptop")


def test_a_key_is_16_hex_digits_of_config_data_seed_and_code() -> None:
    base = store.key(CONFIG, "digest", 0, CODE)
    assert len(base) == 16 and int(base, 16) >= 0
    assert base == store.key(copy.deepcopy(CONFIG), "digest", 0, CODE)
    others = [
        store.key(CONFIG | {"epochs": 9}, "digest", 0, CODE),
        store.key(CONFIG | {"recipe": CONFIG["recipe"] | {"batch": 96}}, "digest", 0, CODE),
        store.key(CONFIG, "another digest", 0, CODE),
        store.key(CONFIG, "digest", 1, CODE),
        store.key(CONFIG, "digest", 0, {"models.lenet": "1" * 64}),
    ]
    assert len({base, *others}) == 6


def test_a_key_does_not_depend_on_the_order_of_what_was_written() -> None:
    backwards = dict(reversed(CONFIG.items())) | {"recipe": dict(reversed(CONFIG["recipe"].items()))}
    assert list(backwards) != list(CONFIG)
    assert store.key(backwards, "digest", 0, CODE) == store.key(CONFIG, "digest", 0, CODE)


def test_the_store_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUN_STORE", raising=False)
    assert store.default() == tmp_path / "store"
    monkeypatch.setenv("RUN_STORE", "elsewhere")
    assert store.default() == tmp_path / "elsewhere"  # absolute: Ray's workers run in other directories


def test_a_trial_is_finished_when_its_provenance_vouches_for_what_is_there(tmp_path: Path) -> None:
    files = store.TrialFiles(tmp_path / "key")
    for path in (files.trial, files.progress, files.curve, files.checkpoint, files.weights):
        write_bytes(path, b"{}")
    assert not files.finished
    write_json(files.result, {"key": "key"})
    assert not files.finished
    files.write_result({"key": "key", "config": {"rate": 0.1, "options": None}, "digest": "an older one"})
    assert store.TrialFiles(tmp_path / "key").finished
    assert files.read_result("key")["config"] == {"rate": 0.1, "options": None}
    with pytest.raises(DamagedError, match=r"result.json is of another trial \(key key\); expected another$"):
        files.read_result("another")
    assert len(list((tmp_path / "key").iterdir())) == 6  # no two of them share a name
