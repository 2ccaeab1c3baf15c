"""Guards that decoding goes on where it was interrupted or killed, and ends with the same bytes."""

from __future__ import annotations

import dataclasses
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.command.errors import UserError
from pipelines.config.origins import Origin
from pipelines.data import imagefolder
from pipelines.data.datasets import open_dataset
from pipelines.data.imagefolder import Decoded, Encoded, decode_job, jobs
from pipelines.data.pictures import decode
from tests.conftest import ROOT
from tests.data import layouts

ONE_IMAGE_A_JOB = imagefolder.IN_FLIGHT_BYTES
PETS = Origin(kind="imagefolder", folder="mine", size=8)
IMAGES = len(layouts.CLASSES) * (layouts.TRAIN + layouts.VAL)


class Spread:
    """Decodes one image a job, counts the jobs, and is interrupted after ``jobs`` of them."""

    def __init__(self, jobs: int = 10**6) -> None:
        self.jobs, self.done = jobs, 0

    def over(self, files: Encoded, size: int) -> Iterator[Decoded]:
        for job in jobs(files, size, in_flight=ONE_IMAGE_A_JOB):
            if self.done == self.jobs:
                raise KeyboardInterrupt
            self.done += 1
            yield decode_job(job)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, each in (("train", layouts.TRAIN), ("val", layouts.VAL)):
        for kind, name in enumerate(layouts.CLASSES):
            for number in range(each):
                path = tmp_path / "mine" / split / name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(layouts.picture(kind, number))
    return tmp_path


def write(root: Path, spread: Spread, source: Origin = PETS) -> list[str]:
    log: list[str] = []
    layouts.write_images(root, source, log.append, spread.over)
    return log


def interrupt(root: Path, jobs: int = 5) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(root, Spread(jobs))
    assert not (root / "datasets" / "pets").exists()


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(root: Path) -> None:
    write(root, Spread())
    whole = open_dataset(root / "datasets", "pets").digest
    (root / "datasets" / "pets").rename(root / "whole")
    interrupt(root)
    rest = Spread()
    log = write(root, rest)
    assert f"5 of {IMAGES} images were decoded by an earlier run" in log and rest.done == IMAGES - 5
    dataset = open_dataset(root / "datasets", "pets")
    dataset.verify()
    assert dataset.digest == whole
    assert not (root / "datasets" / ".pets.partial").exists()
    assert sorted(path.name for path in dataset.path.iterdir()) == sorted([*dataset.digests, "meta.json"])


def test_images_that_are_decoded_already_are_not_decoded_again(root: Path) -> None:
    write(root, Spread())
    again = Spread()
    assert "they are decoded already, and undamaged" in write(root, again) and again.done == 0
    renamed = dataclasses.replace(PETS, names={layouts.CLASSES[0]: "another"})
    write(root, again, renamed)
    assert again.done == IMAGES and "another" in open_dataset(root / "datasets", "pets").classes
    path = root / "datasets/pets/train_images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    anew = Spread()
    write(root, anew, renamed)
    assert anew.done == IMAGES
    open_dataset(root / "datasets", "pets").verify()


def test_a_comment_in_the_decoder_decodes_nothing_anew_and_another_decoder_everything(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, Spread())
    original = Path(inspect.getfile(decode)).read_text()
    copy = tmp_path / "copy.py"
    monkeypatch.setattr(inspect, "getfile", lambda function: str(copy))
    copy.write_text(f"# A word more.\n{original}")
    again = Spread()
    assert "they are decoded already, and undamaged" in write(root, again) and again.done == 0
    copy.write_text(original.replace("BILINEAR", "BICUBIC"))
    write(root, again)
    assert again.done == IMAGES


class LostCluster(Spread):
    """Jobs end with the error of a lost cluster, or of a worker that died too often."""

    def over(self, files: Encoded, size: int) -> Iterator[Decoded]:
        try:
            yield from super().over(files, size)
        except KeyboardInterrupt:
            raise UserError("the Ray cluster was lost") from None


def test_a_run_whose_cluster_was_lost_goes_on(root: Path) -> None:
    with pytest.raises(UserError, match="lost"):
        write(root, LostCluster(7))
    rest = Spread()
    write(root, rest)
    assert rest.done == IMAGES - 7


def test_nothing_is_left_of_a_run_whose_images_are_to_blame(root: Path) -> None:
    (root / "mine/val" / layouts.CLASSES[2] / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.jpg cannot be decoded"):
        write(root, Spread())
    assert not list((root / "datasets").iterdir())


def touched(root: Path) -> Origin:
    (root / "mine/train" / layouts.CLASSES[0] / "0.jpg").write_bytes(layouts.picture(1, 1))
    return PETS


def renamed(root: Path) -> Origin:
    path = root / "mine/train" / layouts.CLASSES[0] / "0.jpg"
    path.rename(path.with_name("9.jpg"))
    return PETS


def larger(root: Path) -> Origin:
    return Origin(kind="imagefolder", folder="mine", size=10)


def damaged(root: Path) -> Origin:
    (root / "datasets/.pets.partial/plan").write_bytes(b"\xff")
    return PETS


def not_on_the_disk(root: Path) -> Origin:
    """As another boot of the machine left it, which may have lost rows that were in memory."""
    plan = root / "datasets/.pets.partial/plan"
    plan.write_text(f"{plan.read_text()}another boot")
    return PETS


def lost(root: Path) -> Origin:
    (root / "datasets/.pets.partial/train_images.npy").unlink()
    return PETS


@pytest.mark.parametrize("change", [touched, renamed, larger, damaged, not_on_the_disk, lost])
def test_what_is_made_of_something_else_begins_anew(root: Path, change: Callable[[Path], Origin]) -> None:
    interrupt(root)
    spread = Spread()
    write(root, spread, change(root))
    assert spread.done == IMAGES
    open_dataset(root / "datasets", "pets").verify()


SCRIPT = """
import sys
from pipelines import fetch
from pipelines.command.errors import guard
from pipelines.data import imagefolder
fetch.FEW, imagefolder.MOST_IN_A_JOB = int(sys.argv.pop(1)), 4
guard(fetch.main)
"""


def command(root: Path, few: int) -> subprocess.Popen[str]:
    """``fetch pets``, with Ray from ``few`` images on."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(few), "pets"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def filled(labels: Path) -> bool:
    """Whether a first image is decoded."""
    return (labels.parent / "plan").exists() and bool((np.load(labels) >= 0).any())


def test_a_killed_fetch_goes_on_on_ray(root: Path) -> None:
    """Killed in one process in the middle of decoding, ended by Ray's workers, to the bytes of one run."""
    (root / "params.yaml").write_text(
        "datasets:\n  pets: {kind: imagefolder, folder: mine, size: 512}\nsuites: {}\n", encoding="utf-8"
    )
    for kind, name in enumerate(layouts.CLASSES):
        for number in range(60):
            (root / "mine/train" / name / f"x{number}.jpg").write_bytes(layouts.picture(kind, number % 50, side=600))
    images = 3 * (60 + layouts.TRAIN + layouts.VAL)
    whole, _ = layouts.write(root, Origin(kind="imagefolder", folder="mine", size=512))
    (root / "datasets/pets").rename(root / "datasets/whole")

    killed = command(root, few=10**6)
    labels = root / "datasets/.pets.partial/train_labels.npy"
    deadline = time.monotonic() + 60
    while not filled(labels) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert filled(labels) and not (root / "datasets/pets").exists()

    said, _ = (done := command(root, few=0)).communicate(timeout=120)
    assert done.returncode == 0, said
    assert f" of {images} images were decoded by an earlier run" in said
    assert " images on Ray started here: " in said
    dataset = open_dataset(root / "datasets", "pets")
    dataset.verify()
    assert dataset.digest == whole.digest
