"""Trials and data sets on their way between checkouts: the same bits, nothing lost, and nothing taken on trust."""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import store as command
from pipelines.command import locks
from pipelines.command.errors import UserError
from pipelines.command.files import read_json, read_lines, sealing
from pipelines.data import datasets, parcels
from pipelines.training import checkpoint, portable, provenance, spec, trainer
from pipelines.training.store import TrialFiles
from tests import processes, projects
from tests.checkout import Checkout
from tests.conftest import edit_params
from tests.disturbed import same_weights

NAME = "linear-mnist"
SMALL: dict[str, Any] = {
    "recipe.subset": {"first": 900},
    "recipe.batch": 4,
    "budgets.laptop": {"epochs": 20, "seeds": [0, 1]},
}
BLOCKED = ["ray", "mlflow", "dvc", "psutil", "requests", "jinja2", "sklearn", "filelock"]
Members = list[tuple[tarfile.TarInfo, bytes]]


def store_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["store", *words])
    command.main()


# --- two checkouts -----------------------------------------------------------------------------------------------


def checkout(folder: Path, mirror: Path) -> Checkout:
    """With one small row in its suite."""
    folder.mkdir()
    found = Checkout(folder, mirror)

    def change(settings: dict[str, Any]) -> None:
        row = settings["benchmarks"][NAME]
        row["recipe"] |= {"subset": {"first": 900}, "batch": 4}
        row["budgets"]["laptop"] = SMALL["budgets.laptop"]
        settings["suites"]["laptop"]["benchmarks"] = [NAME]

    found.edit(change)
    found.environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"  # refuses at once
    return found


def train_half(found: Checkout) -> None:
    """Train seed 0 until its machine is taken away."""
    words = [sys.executable, "-W", "ignore", "-m", "pipelines.trial", NAME, "--budget=laptop", "--device=cpu"]
    process = subprocess.Popen(words, cwd=found.folder, env=found.environment, stdout=subprocess.DEVNULL)

    def trained() -> bool:
        return process.poll() is not None or any(map(read_lines, found.folder.glob("store/*/curve.jsonl")))

    processes.until(trained)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=180) == 75


@pytest.mark.usefixtures("ends_all")
def test_a_trial_goes_on_elsewhere_and_comes_home(tmp_path: Path, mnist_slice: Path, mirror: Path) -> None:
    """Elsewhere are torch, Lightning, NumPy and PyYAML alone; at home it is evaluated and compared like the rest."""
    home, away = checkout(tmp_path / "home", mirror), checkout(tmp_path / "away", mirror)
    shutil.copytree(mnist_slice, home.folder / "datasets")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({BLOCKED!r}))")
    away.environment["PYTHONPATH"] = f"{tmp_path / 'bare'}{os.pathsep}{away.folder}"
    train_half(home)
    python = ("python", "-m")
    export = (*python, "pipelines.store", "export")
    said = home.run(*export, "--datasets", "mnist", "--piece-size", "1M", "-o", "out/mnist.tar")
    assert "out/mnist.tar.000: " in said
    home.run(*export, NAME, "-o", "out/trials.tar")
    out = home.folder / "out"

    said = away.run(*python, "pipelines.store", "import", f"{out / 'trials.tar'}", ok=False)
    assert "is refused: datasets/mnist: no such dataset" in said and "error: 1 refused" in said
    said = away.run(*python, "pipelines.store", "import", f"{out / 'mnist.tar'}", f"{out / 'trials.tar'}")
    assert f"{NAME} seed 0: unfinished; taken into {away.folder / 'store'}/" in said
    away.run(*python, "pipelines.trial", NAME, "--seeds", "0", "1", "--budget=laptop", "--device=cpu")
    away.run(*export, "-o", "home.tar")

    said = home.run(*python, "pipelines.store", "import", f"{away.folder / 'home.tar'}")
    assert [f"{NAME} seed {seed}: finished; taken into" in said for seed in (0, 1)] == [True, True]
    assert "finished" in home.run(*python, "pipelines.store", "list")
    alone = home.run(*python, "pipelines.trial", NAME, "--budget=laptop", "--device=cpu", "--store=alone")
    (whole,) = (home.folder / "alone").glob("*/weights.pt")
    assert same_weights(whole, home.folder / "store" / whole.parent.name / whole.name), alone
    result = read_json(home.folder / "store" / whole.parent.name / "result.json")
    assert result["resumed"] == 1 and result["hardware"] and result["versions"]["torch"] == torch.__version__

    assert "2 of 2 trials are in the store already" in home.run(*python, "pipelines.train", NAME)
    home.run(*python, "pipelines.evaluate", NAME)
    home.run(*python, "pipelines.compare")
    assert NAME in (home.folder / "report/ledger.json").read_text()


# --- what is taken and what is refused ---------------------------------------------------------------------------


@pytest.fixture
def planned(project: Path) -> list[spec.Spec]:
    """Two seeds in a project's store."""
    params = edit_params(
        project / "params.yaml", linear_mnist=SMALL | {"budgets.laptop": {"epochs": 2, "seeds": [0, 1]}}
    )
    return [one.on("cpu", threads=1) for one in spec.trials(params, NAME, data=Path("datasets"), root=Path("store"))]


class Stop(Exception):
    """Ends a trial where it stands."""


def begin(one: spec.Spec, epochs: float = 1.1) -> None:
    """Train beyond so many epochs; the checkpoint is that of the chunk before."""

    def stop(told: Any) -> None:
        if one.files.checkpoint.exists() and told["epoch"] >= epochs:
            raise Stop

    with pytest.MonkeyPatch.context() as often, pytest.raises(Stop):
        often.setattr("pipelines.data.batches.STEPS_AT_ONCE", 1)
        often.setattr(checkpoint, "PROGRESS_EVERY_S", 0.0)
        often.setattr(checkpoint.CheckpointCallback, "_agree", lambda self, now, batch: True)
        trainer.run(one, watch=stop)


@pytest.fixture
def parcel(planned: list[spec.Spec], monkeypatch: pytest.MonkeyPatch) -> Path:
    """One finished trial and one that is not, in a parcel; the store is empty again."""
    trainer.run(planned[0])
    begin(planned[1])
    store_command(monkeypatch, "export", "-o", "trials.tar")
    Path("store").rename("exported")
    return Path("trials.tar")


def read(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write(path: Path, members: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))


def changed(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change the files of that name."""
    write(path, [(m, change(content) if m.name.endswith(name) else content) for m, content in read(path)])


def test_what_is_exported_is_imported_and_goes_on(
    planned: list[spec.Spec], parcel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store_command(monkeypatch, "import", "trials.tar")
    finished, unfinished = planned
    assert finished.files.finished and not unfinished.files.finished
    assert read_json(finished.files.trial)["seed"] == 0
    assert sorted(path.name for path in Path("store").iterdir() if path.is_dir()) == sorted(o.key for o in planned)
    trainer.run(unfinished)
    assert read_json(unfinished.files.result)["resumed"] == 1
    store_command(monkeypatch, "import", "trials.tar")
    told = capsys.readouterr().out
    assert [told.count(f"{one.name}: finished here before; it stays") for one in planned] == [1, 1]


def test_a_result_names_every_machine_that_trained_it(
    planned: list[spec.Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(provenance, "hardware", lambda device: "a GPU")
        begin(planned[0])
    result = read_json(trainer.run(planned[0]).result)
    assert result["hardware"] == f"a GPU, then {provenance.hardware('cpu')}"


def test_of_two_that_are_not_finished_the_further_one_stays(
    planned: list[spec.Spec], parcel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, one = planned
    begin(one, epochs=0.1)
    behind = one.files.checkpoint.read_bytes()
    store_command(monkeypatch, "import", "trials.tar")
    ahead = one.files.checkpoint.read_bytes()
    assert ahead == (Path("exported") / one.key / "last.ckpt").read_bytes() != behind
    store_command(monkeypatch, "export", "--seeds", "1", "-o", "ahead.tar")
    one.files.checkpoint.write_bytes(behind)
    store_command(monkeypatch, "export", "--seeds", "1", "-o", "behind.tar")
    one.files.checkpoint.write_bytes(ahead)
    for _ in range(2):
        store_command(monkeypatch, "import", "behind.tar")
        assert one.files.checkpoint.read_bytes() == ahead
    assert "linear-mnist seed 1: as far here before, or further; it stays" in capsys.readouterr().out
    one.files.checkpoint.write_bytes(behind[:-9])  # damaged
    store_command(monkeypatch, "import", "behind.tar")
    assert one.files.checkpoint.read_bytes() == behind


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


def other(key: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | {key: value}).encode()


class Evil:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def evil(path: Path, planned: list[spec.Spec]) -> None:
    """Well digested, and pickled."""
    files = TrialFiles(Path("exported") / planned[0].key)
    torch.save({"weights": Evil()}, files.weights)
    files.write_result({k: v for k, v in read_json(files.result).items() if k not in ("files", "digest")})
    changed(path, "weights.pt", lambda content: files.weights.read_bytes())
    changed(path, "result.json", lambda content: files.result.read_bytes())


def evil_checkpoint(path: Path, planned: list[spec.Spec]) -> None:
    with sealing(Path("evil.ckpt")) as file:
        torch.save({"state_dict": Evil()}, file)
    changed(path, "last.ckpt", lambda content: Path("evil.ckpt").read_bytes())


REFUSED: dict[str, tuple[Callable[[Path, list[spec.Spec]], None], int, str]] = {
    "weights": (lambda p, _: changed(p, "weights.pt", flipped), 0, "weights.pt is damaged: its sha256 is not"),
    "curve": (lambda p, _: changed(p, "curve.jsonl", flipped), 0, "curve.jsonl is damaged: its sha256 is not"),
    "result": (lambda p, _: changed(p, "result.json", other("wall_s", 1)), 0, "result.json is damaged, or older"),
    "checkpoint": (lambda p, _: changed(p, "last.ckpt", flipped), 1, "last.ckpt is damaged, or older than digests"),
    "pickle": (evil, 0, "weights.pt is damaged or foreign; expected the weights of linear-mnist"),
    "pickled checkpoint": (evil_checkpoint, 1, "last.ckpt is damaged or foreign; expected a checkpoint of linear"),
    "no checkpoint": (
        lambda p, _: write(p, [pair for pair in read(p) if not pair[0].name.endswith("last.ckpt")]),
        1,
        "last.ckpt is missing; expected",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_damaged_is_refused_and_the_rest_is_taken(
    planned: list[spec.Spec],
    parcel: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage, number, words = REFUSED[name]
    damage(parcel, planned)
    capsys.readouterr()
    with pytest.raises(UserError, match=r"^1 refused, as said above; all else was taken$"):
        store_command(monkeypatch, "import", "trials.tar")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "refused" in line]
    assert line.startswith(f"{planned[number].key} is refused: ") and words in line
    bad, good = planned[number].files, planned[1 - number].files
    assert good.finished or good.checkpoint.exists()
    assert not bad.result.exists() and not bad.checkpoint.exists()
    assert not Path("evil").exists() and not Path("store/.importing").exists()


def test_a_trial_of_no_row_is_refused(
    planned: list[spec.Spec], parcel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read(parcel)
    for change, words in (
        (other("seed", 7), "no row of this checkout has its key: it is misnamed"),
        (other("benchmark", "mlp300-mnist"), "no row of this checkout has its key: its settings are not those of"),
        (other("benchmark", "linear-minst"), "benchmark linear-minst is not known; did you mean linear-mnist?"),
        (other("budget", "choice"), "budget choice is not known"),
        (other("seed", True), "its trial.json names no benchmark, budget and seed"),
        (other("key", "f" * 16), f"its trial.json has the key {'f' * 16}"),
        (lambda content: b"[" * 10_000, "trial.json is damaged"),
    ):
        write(parcel, whole)
        changed(parcel, "trial.json", change)
        capsys.readouterr()
        with pytest.raises(UserError, match=r"^2 refused"):
            store_command(monkeypatch, "import", "trials.tar")
        assert capsys.readouterr().out.count(words) == 2
    write(parcel, whole)
    edit_params(Path("params.yaml"), linear_mnist={"recipe.batch": 5})
    with pytest.raises(UserError, match=r"^2 refused"):
        store_command(monkeypatch, "import", "trials.tar")
    assert "its settings are not those of models/linear.yaml: linear-mnist" in capsys.readouterr().out
    assert not [one for one in planned if one.files.trial.exists()]


def test_a_trial_that_is_being_trained_is_left_alone(
    planned: list[spec.Spec], parcel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = planned[0]
    with locks.held(one.files.folder / "lock", one.name), pytest.raises(UserError, match=r"^1 refused"):
        store_command(monkeypatch, "import", "trials.tar")
    assert "is refused: linear-mnist seed 0 is already being run by process" in capsys.readouterr().out
    with locks.held(planned[1].files.folder / "lock", "training"), pytest.raises(UserError, match="has no such trial"):
        store_command(monkeypatch, "export", "-o", "more.tar")
    assert "already being run by process" in capsys.readouterr().out and not Path("more.tar").exists()


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Callable[[Members, str], Members]:
    """Another member behind the first."""

    def add(members: Members, key: str) -> Members:
        info = tarfile.TarInfo(name.replace("KEY", key))
        info.type, info.linkname = kind, target
        return [members[0], (info, b"x" if kind == tarfile.REGTYPE else b""), *members[1:]]

    return add


STRANGE: dict[str, tuple[Callable[[Members, str], Members], str]] = {
    "traversal": (entry("../evil"), "holds ../evil, a file; expected files of trials and data sets alone"),
    "traversal within": (entry("KEY/../evil"), "/../evil, a file; expected"),
    "absolute": (entry("/tmp/evil"), "holds /tmp/evil, a file"),
    "another file": (entry("KEY/evil.py"), "/evil.py, a file"),
    "data set elsewhere": (entry("datasets/../meta.json"), "holds datasets/../meta.json, a file"),
    "symbolic link": (entry("KEY/trial.json", tarfile.SYMTYPE, "/etc/passwd"), "/trial.json, a link"),
    "hard link": (entry("KEY/trial.json", tarfile.LNKTYPE, "parcel.json"), "/trial.json, a link"),
    "device": (entry("KEY/trial.json", tarfile.CHRTYPE), "/trial.json, something else than a file"),
    "FIFO": (entry("KEY/trial.json", tarfile.FIFOTYPE), "/trial.json, something else than a file"),
    "folder": (entry("KEY", tarfile.DIRTYPE), "something else than a file"),
    "sparse": (entry("KEY/trial.json", tarfile.GNUTYPE_SPARSE), "something else than a file"),
    "twice": (lambda members, key: [*members, members[1]], "/trial.json twice; expected each file once"),
    "no beginning": (lambda members, key: members[1:], "does not begin with parcel.json"),
    "a beginning twice": (lambda members, key: [members[0], members[0]], "parcel.json twice"),
    "nothing": (lambda members, key: [], "does not begin with parcel.json"),
    "another format": (
        lambda members, key: [(members[0][0], b'{"format": 2}'), *members[1:]],
        "is of format 2; expected 1: use the same version of this project",
    ),
    "no object": (lambda members, key: [(members[0][0], b"[1]"), *members[1:]], "is of format null; expected 1"),
    "no JSON": (lambda members, key: [(members[0][0], b"{"), *members[1:]], "parcel.json is damaged"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_parcel_that_holds_anything_else_is_read_no_further(
    planned: list[spec.Spec], parcel: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = STRANGE[name]
    write(parcel, change(read(parcel), planned[0].key))
    with pytest.raises(parcels.ParcelError) as caught:
        store_command(monkeypatch, "import", "trials.tar")
    assert str(caught.value).startswith("trials.tar") and words in str(caught.value)
    assert not list(Path().rglob("evil*")) and not Path("store/.importing").exists()


def odd_sparse() -> bytes:
    """A parcel whose header has a map of holes that is none: tarfile raises ValueError."""
    packed, member = io.BytesIO(), tarfile.TarInfo("parcel.json")
    member.pax_headers = {"GNU.sparse.map": "none"}
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    return packed.getvalue()


def long_name() -> bytes:
    """A header before a header: many of them are too deep a recursion for tarfile."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(512)


def test_a_parcel_that_is_cut_or_is_none_is_one_line(parcel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = parcel.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # of the last member
    for content, words in (
        (
            whole[: end - 1500],
            r"trials.tar cannot be read to its end \(unexpected end of data\); copy it again",
        ),
        (whole[:end], r"trials.tar cannot be read to its end \(it is cut short\)"),
        (whole[:700], "trials.tar cannot be read to its end"),
        (b"", r"trials.tar cannot be read to its end \(empty file\)"),
        (b"no parcel" * 100, r"trials.tar cannot be read to its end \(invalid header\)"),
        (b"\x1f\x8b" + bytes(2000), "trials.tar cannot be read to its end"),
        (whole + whole, "a member is damaged, or another archive follows"),
        (odd_sparse(), "trials.tar cannot be read to its end"),
        (1500 * long_name() + whole, "trials.tar cannot be read to its end"),
    ):
        parcel.write_bytes(content)
        with pytest.raises(parcels.ParcelError, match=words):
            store_command(monkeypatch, "import", "trials.tar")
    monkeypatch.setattr(portable, "MOST_JSON", 100)
    parcel.write_bytes(whole)
    with pytest.raises(parcels.ParcelError, match=r"trial.json has more than the 100 bytes that are expected"):
        store_command(monkeypatch, "import", "trials.tar")


# --- data sets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pieces(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The slice of MNIST in pieces of 100 kB; the project has no data sets any more."""
    monkeypatch.setattr(parcels, "LEAST_PIECE", 1000)
    store_command(monkeypatch, "export", "--datasets", "mnist", "--piece-size", "100k", "-o", "parts/mnist.tar")
    (project / "datasets").unlink()
    yield Path("parts")


def test_a_data_set_goes_along_in_pieces(
    pieces: Path, mnist_slice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sorted(pieces.iterdir())
    assert [path.name for path in found] == [f"mnist.tar.{n:03d}" for n in range(len(found))] and len(found) > 2
    assert all(path.stat().st_size == 100_000 for path in found[:-1])
    store_command(monkeypatch, "import", *map(str, reversed(found)))
    ours, theirs = (datasets.open_dataset(root, "mnist") for root in (Path("datasets"), mnist_slice))
    assert ours.digest == theirs.digest
    for split in datasets.SPLITS:
        for number in range(2):
            assert np.array_equal(ours.split(split)[number], theirs.split(split)[number])
    assert sorted(path.name for path in Path("datasets").iterdir()) == ["mnist"]
    store_command(monkeypatch, "import", "parts/mnist.tar")  # once more changes nothing
    (pieces / "mnist.tar.001").unlink()
    with pytest.raises(UserError, match=r"mnist\.tar\.001 is missing; expected all pieces from mnist\.tar\.000 to"):
        store_command(monkeypatch, "import", "parts/mnist.tar")


def test_a_data_set_of_any_name_that_params_allow_goes_along() -> None:
    assert command.NAMES.fullmatch("datasets/my_photos-2/meta.json")
    assert not command.NAMES.fullmatch("datasets/../meta.json")


def test_another_data_set_of_the_name_stays(
    pieces: Path, mnist_slice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = datasets.open_dataset(mnist_slice, "mnist")
    images, labels = (np.array(array[:100]) for array in whole.split("train"))
    mine = datasets.write_dataset(
        Path("datasets"), "mnist", classes=whole.classes, train=(images, labels), test=(images, labels)
    )
    with pytest.raises(UserError, match=r"^1 refused"):
        store_command(monkeypatch, "import", "parts/mnist.tar")
    assert "datasets/mnist is another one; expected none there, move it away" in capsys.readouterr().out
    assert datasets.open_dataset(Path("datasets"), "mnist").digest == mine.digest


def bomb(content: bytes) -> bytes:
    return lzma.compress(bytes(50_000_000), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("train_images.npy.xz", flipped, "train_images.npy"),
        ("train_images.npy.xz", lambda content: content[:-40], "is damaged (it ends too soon)"),
        ("train_images.npy.xz", lambda content: content + b"x", "is damaged (something follows its end)"),
        ("train_images.npy.xz", lambda content: b"no xz" * 9, "is damaged (Input format not supported by decoder)"),
        ("train_labels.npy.xz", bomb, "is damaged (it is larger than the 20,096 bytes that meta.json allows)"),
        ("meta.json", other("train", 10**9), "expected "),
        ("meta.json", other("name", "cifar10"), "meta.json: name is 'cifar10', expected 'mnist'"),
        ("meta.json", lambda content: b"{", "meta.json is damaged"),
    ],
)
def test_a_data_set_that_is_damaged_is_refused(
    pieces: Path,
    name: str,
    change: Callable[[bytes], bytes],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("mnist.tar").write_bytes(b"".join(path.read_bytes() for path in sorted(pieces.iterdir())))
    changed(Path("mnist.tar"), name, change)
    with pytest.raises(UserError, match=r"^1 refused"):
        store_command(monkeypatch, "import", "mnist.tar")
    assert words in capsys.readouterr().out
    assert list(Path("datasets").iterdir()) == []


# --- what a user gets wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["import", "trials.tar"], "trials.tar: no such file, nor pieces of it; expected what `export` wrote"),
        (["import", "folder"], "folder: a folder stands where a file belongs"),
        (["export", "linear-minst", "-o", "x.tar"], "benchmark linear-minst is not known; did you mean linear-mnist"),
        (
            ["export", "--datasets", "cifar", "-o", "x.tar"],
            "--datasets: data set cifar is not known; did you mean ci",
        ),
        (["export", "--datasets", "cifar10", "-o", "x.tar"], "datasets/cifar10: no such dataset; write it with:"),
        (
            ["export", "-o", "x.tar", "--piece-size", "60Q"],
            "--piece-size is 60Q; expected bytes, at least 1M, such as 60M",
        ),
        (
            ["export", "-o", "x.tar", "--piece-size", "10"],
            "--piece-size is 10; expected bytes, at least 1M, such as 60M",
        ),
        (["export", "-o", "folder"], "folder is a folder; expected the name of a file to write"),
        (
            ["export", "-o", "x.20261128"],
            "x.20261128 ends like a piece of a parcel; expected another ending, such as x.20261128.tar",
        ),
        (["export", "-o", "x.tar"], "has no such trial to export; see: python -m pipelines.store list"),
        (["list"], "has no such trial; expected one that pipelines.trial or train began"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    project: Path, words: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("folder").mkdir()
    with pytest.raises(UserError) as caught:
        store_command(monkeypatch, *words)
    assert line in str(caught.value) and not Path("x.tar").exists() and not Path(".x.tar.writing").exists()


def test_a_row_finds_the_weights_that_another_one_trained(
    planned: list[spec.Spec], project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the row of a top-5 error does those of the error."""
    trainer.run(planned[0])
    found = projects.read(project)
    found["benchmarks"]["linear-again-mnist"] = found["benchmarks"][NAME]
    projects.write(project, found)
    store_command(monkeypatch, "list", "linear-again-mnist")
    assert planned[0].key in capsys.readouterr().out
    with pytest.raises(UserError, match="has no such trial"):
        store_command(monkeypatch, "list", "mlp300-mnist")


def test_what_is_there_is_listed(
    planned: list[spec.Spec], parcel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store_command(monkeypatch, "import", "trials.tar")
    shutil.copytree(Path("store") / planned[0].key, Path("store") / ("0" * 16))
    capsys.readouterr()
    store_command(monkeypatch, "list")
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["benchmark", "seed", "budget", "state", "key", "size"]
    assert [NAME, "0", "laptop", "finished", planned[0].key] in [row[:5] for row in rows]
    (begun,) = [row for row in rows if planned[1].key in row]
    assert begun[3] == "epoch" and 1.1 <= float(begun[4]) < 2 and begun[5:7] == ["of", "2"]
    assert len(rows) == 3
