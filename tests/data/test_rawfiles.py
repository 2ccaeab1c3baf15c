"""Guards raw files: a malformed one is one line, and arrays keep the order of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.command.errors import UserError
from pipelines.data import rawfiles
from pipelines.data.datasets import write_dataset
from tests.data.hosts import CIFAR10, FILES, as_mirror, idx, run, write_files, write_pins


def test_cifar10_arrays_keep_the_files_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = {file: random.integers(0, 10, (2 + i, 3073), np.uint8) for i, file in enumerate(rawfiles.CIFAR_FILES)}
    write_files(tmp_path / "raw", {file: record.tobytes() for file, record in records.items()})
    train_split, test_split = rawfiles.read_cifar_files(tmp_path / "raw")
    dataset = write_dataset(tmp_path, "cifar10", classes=CIFAR10.classes, train=train_split, test=test_split)
    assert (dataset.train, dataset.test, dataset.shape) == (2 + 3 + 4 + 5 + 6, 7, (3, 32, 32))
    train = np.concatenate([records[file] for file in rawfiles.CIFAR_TRAIN])
    images, labels = dataset.split("train")
    assert labels.tolist() == train[:, 0].tolist()
    assert images[3, 1, 0, 1] == train[3, 1 + 1024 + 1]
    assert images.tobytes() == train[:, 1:].tobytes()
    assert dataset.split("test")[0].tobytes() == records["test_batch.bin"][:, 1:].tobytes()


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0\0\x05abcd", b"\0\0\x0d\x01\0\0\0\x04abcd"])
def test_a_malformed_idx_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="x: not an IDX file"):
        rawfiles.read_idx(tmp_path / "x")


@pytest.mark.parametrize(
    ("file", "array", "words"),
    [
        ("train-images-idx3-ubyte", np.zeros(40, np.uint8), r"images-idx3-ubyte: an array of \(40,\); expected images"),
        ("train-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), r"an array of \(0, 28, 28\); expected images"),
        ("train-labels-idx1-ubyte", np.zeros(39, np.uint8), r"an array of \(39,\); expected \(40,\), a label an image"),
        ("t10k-labels-idx1-ubyte", np.zeros((20, 1), np.uint8), r"\(20, 1\); expected \(20,\), a label an image"),
        ("t10k-images-idx3-ubyte", np.zeros((20, 28, 27), np.uint8), "28 x 27 pixels; expected 28 x 28 as in train"),
    ],
)
def test_files_that_do_not_go_together_are_one_line(
    root: Path, tmp_path: Path, file: str, array: npt.NDArray[np.uint8], words: str
) -> None:
    """Each by itself is whole, and is what data.dvc pins."""
    files = FILES | {file: idx(array)}
    write_pins(root, as_mirror(files))
    write_files(root / "data" / "mnist", files)
    with pytest.raises(UserError, match=words):
        run(root, [])


def test_records_of_no_image_are_one_line(tmp_path: Path) -> None:
    write_files(tmp_path, {file: b"" for file in rawfiles.CIFAR_FILES})
    with pytest.raises(UserError, match=r"data_batch_1\.bin: 0 bytes, expected a multiple of 3073"):
        rawfiles.read_cifar_files(tmp_path)
