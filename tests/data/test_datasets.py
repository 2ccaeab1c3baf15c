"""Guards the arrays on disk: written whole or not at all, checked when opened."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.command.errors import UserError
from pipelines.data import datasets
from pipelines.data.datasets import Dataset, Mapped, Split, new_dataset, open_dataset, write_dataset
from tests.processes import soon

CLASSES = ("cat", "dog", "owl")
Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def some_images(count: int, seed: int) -> Pair:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 2, 5, 4), np.uint8), random.integers(0, 3, count, np.int64)


@pytest.fixture
def pets(tmp_path: Path) -> Dataset:
    md5s = {"pets.tar": "0" * 32}
    return write_dataset(
        tmp_path, "pets", classes=CLASSES, train=some_images(30, 0), test=some_images(7, 1), source_md5=md5s
    )


def test_what_was_written_is_read_back(pets: Dataset) -> None:
    assert (pets.name, pets.classes, pets.shape, pets.train, pets.test) == ("pets", CLASSES, (2, 5, 4), 30, 7)
    for split, seed in (("train", 0), ("test", 1)):
        images, labels = pets.split(split)  # type: ignore[arg-type]
        expected = some_images(len(labels), seed)
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
        assert isinstance(images, np.memmap) and not images.flags.writeable
    assert json.loads((pets.path / "meta.json").read_text())["source_md5"] == {"pets.tar": "0" * 32}


def test_a_data_set_of_an_earlier_version_is_read(pets: Dataset) -> None:
    path = pets.path / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.5, 0.5], "std": [0.3, 0.3]}))
    assert open_dataset(pets.path.parent, "pets") == pets


def test_the_digest_depends_on_the_arrays_alone(pets: Dataset, tmp_path: Path) -> None:
    again = write_dataset(tmp_path / "b", "pets", classes=CLASSES, train=some_images(30, 0), test=some_images(7, 1))
    other = write_dataset(tmp_path / "c", "pets", classes=CLASSES, train=some_images(30, 0), test=some_images(7, 2))
    assert again.digest == pets.digest != other.digest


def test_opening_train_leaves_the_test_files_alone(pets: Dataset) -> None:
    for file in ("test_images.npy", "test_labels.npy"):
        (pets.path / file).unlink()
    reopened = open_dataset(pets.path.parent, "pets")
    assert len(reopened.split("train")[1]) == 30
    reopened.verify("train")
    with pytest.raises(UserError, match=r"test_images\.npy is missing; .*pipelines\.fetch pets"):
        reopened.split("test")
    with pytest.raises(UserError, match=r"test_images\.npy is missing"):
        reopened.verify()


def test_verify_names_the_file_and_both_digests(pets: Dataset) -> None:
    pets.verify()
    path = pets.path / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    pets.verify("test")
    with pytest.raises(UserError) as caught:
        pets.verify()
    line = str(caught.value)
    assert "train_images.npy" in line and pets.digests["train_images.npy"] in line and "found" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((30, 2, 5, 4), np.float32), "float32"),
        (np.zeros((29, 2, 5, 4), np.uint8), "29"),
        (np.zeros((30, 2, 4, 5), np.uint8), "4, 5"),
    ],
)
def test_a_foreign_array_is_refused(pets: Dataset, array: npt.NDArray[np.uint8], found: str) -> None:
    np.save(pets.path / "train_images.npy", array)
    with pytest.raises(UserError, match=rf"train_images\.npy: .*{found}.*expected uint8 \(30, 2, 5, 4\)"):
        pets.split("train")


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_array_is_one_line(pets: Dataset, content: bytes) -> None:
    (pets.path / "train_labels.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"train_labels\.npy: not a readable array"):
        pets.split("train")


def test_a_truncated_array_is_one_line(pets: Dataset) -> None:
    path = pets.path / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"train_images\.npy: not a readable array"):
        pets.split("train")


def test_several_arrays_are_none(pets: Dataset) -> None:
    path = pets.path / "train_labels.npy"
    np.savez(path.with_suffix(""), np.zeros(30, np.int64))
    path.with_suffix(".npz").replace(path)
    with pytest.raises(UserError, match=r"train_labels\.npy: not a readable array \(several arrays\)"):
        pets.split("train")


@pytest.mark.parametrize("header", [b"{'descr': '<i8', 'fortran_order': False, 'shape': (", b"(" * 500, b"'\\N", b"\0"])
def test_a_header_of_nonsense_is_one_line(pets: Dataset, header: bytes) -> None:
    path = pets.path / "train_labels.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(240))
    with pytest.raises(UserError, match=r"train_labels\.npy: not a readable array") as caught:
        pets.split("train")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize("file", ["meta.json", "train_images.npy", "test_labels.npy"])
@pytest.mark.parametrize("kind", ["a FIFO", "a folder"])
def test_what_is_no_file_is_not_waited_for(pets: Dataset, file: str, kind: str) -> None:
    (pets.path / file).unlink()
    os.mkfifo(pets.path / file) if kind == "a FIFO" else (pets.path / file).mkdir()
    for use in (lambda: open_dataset(pets.path.parent, "pets"), lambda: pets.split("train"), pets.verify):
        try:
            with soon():
                use()
        except UserError as error:
            assert str(error).startswith(f"{pets.path / file} is no regular file; expected one; write it with: ")
            break
    else:
        pytest.fail("none refuses it")


def test_labels_out_of_range_are_refused(pets: Dataset) -> None:
    np.save(pets.path / "train_labels.npy", np.full(30, 3, np.int64))
    with pytest.raises(UserError, match=r"train_labels\.npy: labels 3 to 3, expected 0 to 2"):
        pets.split("train")


def test_an_absent_dataset_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pets: no such dataset; .*python -m pipelines\.fetch pets"):
        open_dataset(tmp_path, "pets")


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": [2, 5]}, {"classes": None}, {"shapes": 1}, {"digests": {}}, {"train": "many"}, {"name": "mnist"}),
        *({"shape": [0, 5, 4]}, {"shape": [2, 5, float("inf")]}, {"shape": "abc"}, {"test": -1}, {"train": 10**400}),
        *({"digests": []}, {"digests": "x"}),
    ],
)
def test_a_damaged_meta_json_is_one_line(pets: Dataset, change: dict[str, object]) -> None:
    path = pets.path / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"meta\.json.*pipelines\.fetch pets"):
        open_dataset(pets.path.parent, "pets")
    for content in ("{", "[" * 100_000, "1" * 5000, "[]", "7", "null"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"meta\.json is damaged"):
            open_dataset(pets.path.parent, "pets")


def test_a_failed_write_leaves_the_old_dataset_and_nothing_else(pets: Dataset) -> None:
    root = pets.path.parent
    with (
        pytest.raises(RuntimeError),
        new_dataset(root, "pets", classes=CLASSES, shape=(2, 5, 4), train=3, test=3) as arrays,
    ):
        arrays["train"][0][:] = 1
        raise RuntimeError
    assert [path.name for path in root.iterdir()] == ["pets"]
    open_dataset(root, "pets").verify()


def test_wrong_labels_are_not_written(tmp_path: Path) -> None:
    images, labels = some_images(5, 0)
    with pytest.raises(UserError, match="pets: test labels -1 to -1, expected 0 to 2"):
        write_dataset(tmp_path, "pets", classes=CLASSES, train=(images, labels), test=(images, labels * 0 - 1))
    assert not list(tmp_path.iterdir())


def test_a_rewrite_replaces_the_dataset_under_open_arrays(pets: Dataset) -> None:
    images, _ = pets.split("train")
    write_dataset(pets.path.parent, "pets", classes=CLASSES, train=some_images(4, 5), test=some_images(4, 6))
    np.testing.assert_array_equal(images, some_images(30, 0)[0])  # a trial that runs keeps what it opened
    assert open_dataset(pets.path.parent, "pets").train == 4
    assert [path.name for path in pets.path.parent.iterdir()] == ["pets"]


def test_killed_while_it_is_replaced_a_dataset_is_put_back(pets: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames nothing bears its name; what was there must not go with the next attempt that fails."""
    root, rename = pets.path.parent, Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == ".pets.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(root, "pets", classes=CLASSES, train=some_images(4, 5), test=some_images(4, 6))
    assert not pets.path.exists()
    datasets.restore_or_refuse(root, "pets")
    open_dataset(root, "pets").verify()
    datasets.restore_or_refuse(root, "pets")
    assert [path.name for path in root.iterdir()] == ["pets"] and open_dataset(root, "pets").train == 30


def test_a_folder_named_as_an_array_is_not_replaced(pets: Dataset) -> None:
    (pets.path / "test_labels.npy").unlink()
    (pets.path / "test_labels.npy").mkdir()
    (pets.path / "test_labels.npy" / "mine").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"pets: holds test_labels\.npy, which is no part of a dataset"):
        write_dataset(pets.path.parent, "pets", classes=CLASSES, train=some_images(4, 5), test=some_images(4, 6))
    assert (pets.path / "test_labels.npy" / "mine").read_bytes() == b"mine"


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".pets.partial").mkdir()
    (tmp_path / ".pets.partial" / "train_images.npy").write_bytes(b"half")
    write_dataset(tmp_path, "pets", classes=CLASSES, train=some_images(4, 5), test=some_images(4, 6)).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def begun(root: Path, plan: str = "a plan") -> Path:
    """The folder of arrays of which one row was filled, as a killed writer leaves it."""
    with pytest.raises(KeyboardInterrupt), writer(root, plan) as arrays:
        arrays["train"][1][0] = 2
        raise KeyboardInterrupt
    (root / ".pets.partial" / datasets.PLAN).write_text(plan + datasets._boot())
    return root / ".pets.partial"


def writer(root: Path, plan: str) -> AbstractContextManager[dict[Split, tuple[Mapped, Mapped]]]:
    return new_dataset(root, "pets", classes=CLASSES, shape=(2, 5, 4), train=3, test=3, plan=plan)


@pytest.mark.parametrize(("plan", "continued"), [("a plan", True), ("another", False)])
def test_a_killed_writers_arrays_are_continued_by_the_same_plan(tmp_path: Path, plan: str, continued: bool) -> None:
    begun(tmp_path)
    with pytest.raises(KeyboardInterrupt), writer(tmp_path, plan) as arrays:
        assert arrays["train"][1].tolist() == [2 if continued else -1, -1, -1]
        raise KeyboardInterrupt


def test_arrays_of_an_earlier_boot_and_cut_ones_are_begun_anew(tmp_path: Path) -> None:
    for spoil in (
        lambda left: (left / datasets.PLAN).write_text("a plan" + "another boot"),
        lambda left: os.truncate(left / "train_labels.npy", 20),
    ):
        spoil(begun(tmp_path))
        with pytest.raises(KeyboardInterrupt), writer(tmp_path, "a plan") as arrays:
            assert arrays["train"][1].tolist() == [-1, -1, -1]
            raise KeyboardInterrupt


def test_a_run_that_cannot_begin_declares_no_rows_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may still be in memory alone: a power cut would leave labels without pixels."""
    left = begun(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "_create_array", full)
    with pytest.raises(OSError, match="No space"), writer(tmp_path, "a plan"):
        pass
    assert (left / datasets.PLAN).read_text() == "a plan" + datasets._boot()


def test_files_that_are_no_datasets_are_not_replaced(pets: Dataset) -> None:
    photo = pets.path / "train" / "photo.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"mine")
    again = {"classes": CLASSES, "train": some_images(4, 5), "test": some_images(4, 6)}
    with pytest.raises(UserError, match=r"pets: holds train, which is no part of a dataset and would be lost; move it"):
        write_dataset(pets.path.parent, "pets", **again)  # type: ignore[arg-type]
    assert photo.read_bytes() == b"mine"
    pets.verify()
    (pets.path.parent / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"file: a file stands where a dataset belongs; move it away"):
        write_dataset(pets.path.parent, "file", **again)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [errno.ENOTDIR, errno.EROFS])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    root = tmp_path / "datasets"
    if code == errno.ENOTDIR:
        root.write_text("a file")
    else:
        monkeypatch.setattr(Path, "mkdir", read_only)
    words = {errno.ENOTDIR: "is no folder; expected one", errno.EROFS: r"can't be made \(Read-only file system\)"}[code]
    with pytest.raises(UserError, match=rf"datasets {words}"):
        write_dataset(root, "pets", classes=CLASSES, train=some_images(4, 5), test=some_images(4, 6))


def test_a_place_that_will_not_do_is_refused_before_the_work(
    pets: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.restore_or_refuse(tmp_path, "pets")
    datasets.restore_or_refuse(tmp_path / "absent", "pets")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"dangling is no folder; expected one"):
        datasets.restore_or_refuse(tmp_path / "dangling", "pets")
    (pets.path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"pets: holds photo\.jpg, which is no part of a dataset"):
        datasets.restore_or_refuse(tmp_path, "pets")
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write anywhere
    with pytest.raises(UserError, match=r" can't be written to; expected a folder that can"):
        datasets.restore_or_refuse(tmp_path, "pets")


def read_only(path: Path, **options: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def test_arrays_beyond_what_may_be_mapped_are_one_line(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from pipelines.data.datasets import new_dataset\n"
        "from pipelines.command.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))\n"
        "try:\n"
        "    with new_dataset(Path(sys.argv[1]), 'x', classes=['a'], shape=(3, 999, 999), train=3000, test=1): pass\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith(": 8982009000 bytes; expected room for that in what may be mapped (ulimit -v)")
    assert not os.listdir(tmp_path)


def test_a_full_disk_is_an_error_not_a_bus_error(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk; without preallocation the first page written would be fatal."""
    script = (
        "import resource, signal, sys; from pathlib import Path; from pipelines.data.datasets import new_dataset\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n"
        "try:\n"
        "    with new_dataset(Path(sys.argv[1]), 'x', classes=['a'], shape=(1, 99, 99), train=99, test=1): pass\n"
        "except OSError as error: print(error.errno, error.filename)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert "train_images.npy" in done.stdout
    assert not os.listdir(tmp_path)
