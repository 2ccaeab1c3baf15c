"""Guards a trial as a value: its key follows what decides the weights, on each kind of device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.command import files
from pipelines.command.files import read_json, write_bytes
from pipelines.config.params import load_params
from pipelines.training import spec, store, trainer
from tests.conftest import ROOT
from tests.training.trials import planned


def test_what_one_kind_of_device_has_begun_or_finished_is_not_trained_anew_for_another(project: Path) -> None:
    """A row whose precision differs between devices has a key on each; the settings that trained are on record."""
    one = planned({"recipe.precision": {"cuda": "bf16"}})
    there = one.on("cuda", threads=1)
    assert (one.precision, there.precision) == ("fp32", "bf16") and one.key != there.key
    assert there.settled is there and not there.files.finished
    trainer.run(one)
    assert there.settled.finished and there.settled.key == one.key and not there.files.finished
    assert read_json(there.settled.files.result)["config"]["recipe"]["precision"] == "fp32"
    row = planned({"recipe.precision": {"cuda": "bf16"}}, seed=1)
    begun = [row.on(device, threads=1) for device in ("cpu", "cuda")]
    write_bytes(begun[0].files.checkpoint, b"a checkpoint")
    assert [one.settled.key for one in begun] == [begun[0].key] * 2 and begun[1].settled.device == "cuda"
    assert begun[1].settled.alike != begun[1].alike  # in their speed
    write_bytes(begun[1].files.checkpoint, b"its own")
    assert [one.settled.key for one in begun] == [one.key for one in begun]
    alike = planned().on("cuda", threads=1)
    assert [each.key for each in alike.variants] == [planned().key]


def test_whether_a_trial_is_finished_is_checked_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights, which may be large, are hashed for it."""
    one, read = planned(), list[Path]()
    write_bytes(one.files.weights, b"weights")
    write_bytes(one.files.curve, b"{}")
    one.files.write_result({"key": one.key})

    def digest(path: Path) -> str:
        read.append(path)
        return files.file_sha256(path)

    monkeypatch.setattr(store, "file_sha256", digest)
    assert one.finished and read == [one.files.weights, one.files.curve]


# What /proc/cpuinfo has, what oneDNN may use, and whether bf16 is then the faster one.
INTEL, AMD = "vendor_id : GenuineIntel\nflags : avx512f", "vendor_id : AuthenticAMD\nflags : avx512f"
CPUS = {
    "AMX": (f"{INTEL} avx512_bf16 amx_bf16 amx_tile", "", True),
    "AMX, forbidden": (f"{INTEL} avx512_bf16 amx_bf16 amx_tile", "AVX512_CORE_BF16", False),
    "Intel's AVX-512": (f"{INTEL} avx512_bf16", "", False),
    "AMD's AVX-512": (f"{AMD} avx512_bf16", "default", True),
    "AMD's AVX-512, allowed by name": (f"{AMD} avx512_bf16", "AVX512_CORE_BF16", True),
    "AMD's AVX-512, forbidden": (f"{AMD} avx512_bf16", "AVX512_CORE_VNNI", False),
    "AMD's AVX-512 without bf16": (AMD, "", False),
}


@pytest.mark.parametrize("cpu", CPUS)
def test_the_fastest_precision_is_that_of_the_cpu(cpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where oneDNN is kept from bf16, as by `make numeric CPU=avx2`, it is fp32."""
    description, allowed, faster = CPUS[cpu]
    described = tmp_path / "cpuinfo"
    described.write_text(description, encoding="utf-8")
    monkeypatch.setattr(spec, "CPUINFO", described)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    monkeypatch.setattr(spec, "has_fast_bf16", spec.has_fast_bf16.__wrapped__)
    assert spec.has_fast_bf16() == faster


def test_a_row_in_the_fastest_precision_has_variants_in_both(project: Path) -> None:
    one = planned({"recipe.precision": {"cpu": "fastest"}})
    assert one.precision == ("bf16" if spec.has_fast_bf16() else "fp32")
    assert {each.precision for each in one.variants} == {"fp32", "bf16"}
    assert planned({"recipe.precision": {"cuda": "bf16"}}).precision == "fp32"


def test_the_key_follows_everything_that_decides_the_weights(project: Path) -> None:
    base = planned()
    changed = [
        planned({"recipe.batch": 16}),
        planned({"model.options": {"head": "rbf"}}),
        planned({"budgets.laptop": {"epochs": 4, "seeds": [0]}}),
        planned(seed=1),
    ]
    keys = {base.key, *(one.key for one in changed)}
    assert len(keys) == 1 + len(changed)
    unchanged = planned({"claim.value": 1.0, "deviations": ["another"], "resources": {"cpus": 2}})
    assert unchanged.key == base.key


def test_resolved_is_plain_and_complete() -> None:
    params = load_params(ROOT / "params.yaml")
    for benchmark in params.benchmarks.values():
        resolved = benchmark.resolved("paper")
        assert json.loads(json.dumps(resolved)) == resolved
        assert resolved["recipe"]["optimiser"]["lr"] == benchmark.recipe.optimiser.lr
