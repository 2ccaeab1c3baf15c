"""Guards the layouts of photographs, the lists of their classes, and subsets by rule: whole and nearly whole."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipelines.command.errors import UserError
from pipelines.config.origins import ImageSubset, Origin
from pipelines.config.params import load_origins
from pipelines.data.datasets import SPLITS, Dataset, Split
from tests.conftest import ROOT
from tests.data import layouts
from tests.data.layouts import CLASSES, SYNSETS, TRAIN, TRUTH, VAL

ORIGINS = load_origins(ROOT / "params.yaml")
ILSVRC = Origin(
    kind="imagefolder",
    archives={"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"},
    devkit="ILSVRC2012_devkit_t12.tar.gz",
    size=8,
)
FLAT = Origin(kind="imagefolder", folder="mine", labels="val/labels.csv", size=8)


def refused(root: Path, source: Origin) -> str:
    with pytest.raises(UserError) as caught:
        layouts.write(root, source)
    assert not list((root / "datasets").glob("*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def expect_classes_by_brightness(dataset: Dataset, train: int = TRAIN, val: int = VAL) -> None:
    """Each picture is as bright as its label says."""
    each: dict[Split, int] = {"train": train, "test": val}
    for split in SPLITS:
        images, labels = dataset.split(split)
        assert labels.tolist() == sorted([0, 1, 2] * each[split])
        np.testing.assert_allclose(images[:, 1].mean((1, 2)), 40 + 70 * labels, atol=4)


def flat_folder(root: Path, lines: str) -> None:
    """``train/<class>/*``, a flat ``val/*`` and ``val/labels.csv``."""
    layouts.as_folder(root / "mine/train", layouts.train_files())
    layouts.as_folder(root / "mine/val", layouts.val_files("val_")[0])
    (root / "mine/val/labels.csv").write_text(lines)


def lines(form: str = "{name},{kind}") -> str:
    val, order = layouts.val_files("val_")
    return "\n".join(form.format(name=name, kind=CLASSES[kind]) for name, kind in zip(val, order, strict=True))


def test_tiny_imagenet_as_it_comes(tmp_path: Path) -> None:
    layouts.write_zip(tmp_path / "data/tiny-imagenet-200.zip", layouts.tiny_imagenet())
    dataset, log = layouts.write(tmp_path, ORIGINS["tiny-imagenet"])
    assert (dataset.classes, dataset.shape) == (CLASSES, (3, 64, 64))
    expect_classes_by_brightness(dataset)
    assert "pictures outside of train/ and val/: 1 (tiny-imagenet-200/test/images/test_0.JPEG)" in log[-1]


def test_ilsvrcs_three_archives_as_they_come(tmp_path: Path) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    dataset, log = layouts.write(tmp_path, ILSVRC)
    assert dataset.classes == CLASSES
    expect_classes_by_brightness(dataset)
    archives = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"
    assert log[-1] == f"18 images taken from {archives}; left out: nothing"


def test_a_tar_within_a_tar_gives_what_its_folder_would(tmp_path: Path) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    packed = layouts.write(tmp_path, ILSVRC)[0]
    layouts.as_folder(tmp_path / "mine/train", layouts.train_files())
    val, order = layouts.val_files("ILSVRC2012_val_")
    for (name, content), kind in zip(val.items(), order, strict=True):
        layouts.as_folder(tmp_path / "mine/val" / CLASSES[kind], {name: content})
    unpacked = layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))[0]
    assert packed.digest == unpacked.digest


@pytest.mark.parametrize(
    "text",
    [lines(), "image,class\n" + lines(), lines("{name} {kind}"), lines("val/{name}\t{kind}\t3"), lines("{kind}")],
)
def test_a_flat_val_takes_its_classes_from_a_list(tmp_path: Path, text: str) -> None:
    flat_folder(tmp_path, text)
    expect_classes_by_brightness(layouts.write(tmp_path, FLAT)[0])


@pytest.mark.parametrize("within", ["", "{split}/"])
def test_each_split_may_have_an_archive_of_its_own(tmp_path: Path, within: str) -> None:
    """With or without the split's own folder in it."""
    val, order = layouts.val_files("val_")
    files = {f"{CLASSES[kind]}/{name}": content for (name, content), kind in zip(val.items(), order, strict=True)}
    top = {split: within.format(split=split) for split in ("train", "val")}
    packed = {top["train"] + name: content for name, content in layouts.train_files().items()}
    layouts.write_zip(tmp_path / "data/train.zip", packed)
    (tmp_path / "data/val.tgz").write_bytes(
        layouts.tar({top["val"] + name: content for name, content in files.items()}, "w:gz")
    )
    source = Origin(kind="imagefolder", archives={"train": "train.zip", "val": "val.tgz"}, size=8)
    expect_classes_by_brightness(layouts.write(tmp_path, source)[0])


def without(line: int) -> str:
    rows = lines().splitlines()
    return "\n".join(rows[:line] + rows[line + 1 :])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (without(0), "mine: val/labels.csv: val_00000001.JPEG has no label; images without one: 1"),
        (lines() + "\nval_7.JPEG,n1", "mine: val/labels.csv line 7: val_7.JPEG n1; expected the name of an image"),
        (
            lines() + f"\nval_00000001.JPEG,{CLASSES[2]}\nval/val_00000001.JPEG,other",
            "mine: val/labels.csv line 8: val/val_00000001.JPEG other; expected one class an image, not n",
        ),
        (lines("{kind}") + "\nn1", "mine: val/labels.csv: 7 labels for 6 images; expected one a line"),
        ("", "mine: val/labels.csv: 0 labels for 6 images"),
        (lines().replace(CLASSES[2], "n9"), f"mine: class {CLASSES[2]} has images in train/ but none in val/"),
    ],
)
def test_a_list_that_does_not_fit_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    flat_folder(tmp_path, text)
    assert refused(tmp_path, FLAT).startswith(words)


def test_a_list_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    flat_folder(tmp_path, "")
    (tmp_path / "mine/val/labels.csv").write_bytes(b"\xff\xfe\x00")
    assert "not text in UTF-8; expected lines of a file name" in refused(tmp_path, FLAT)


def test_an_absent_list_is_named(tmp_path: Path) -> None:
    files = layouts.tiny_imagenet()
    del files["tiny-imagenet-200/val/val_annotations.txt"]
    layouts.write_zip(tmp_path / "data/tiny-imagenet-200.zip", files)
    line = refused(tmp_path, ORIGINS["tiny-imagenet"])
    assert line.startswith("tiny-imagenet-200.zip: val/val_annotations.txt is missing; expected that file")


def test_a_flat_val_without_a_list_says_how_to_name_one(tmp_path: Path) -> None:
    layouts.write_zip(tmp_path / "data/tiny.zip", layouts.tiny_imagenet())
    line = refused(tmp_path, Origin(kind="imagefolder", archive="tiny.zip"))
    assert "no class of train/ is in val/, which has images; expected the same folders, or labels: <file>" in line
    flat_folder(tmp_path, lines())
    line = refused(tmp_path, Origin(kind="imagefolder", folder="mine"))
    assert line.startswith("mine: no images in val/<class>/, but val/val_0000000")
    assert "expected labels: <file> in params.yaml" in line


@pytest.mark.parametrize("lost", [TRUTH, SYNSETS])
def test_a_devkit_that_lacks_a_file_is_one_line(tmp_path: Path, lost: str) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    files = {name: content for name, content in layouts.devkit_files().items() if name != lost}
    (tmp_path / "data" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(layouts.tar(files, "w:gz"))
    line = refused(tmp_path, ILSVRC)
    assert line.startswith(f"ILSVRC2012_devkit_t12.tar.gz: {lost.partition('/')[2]} is missing; expected")


def synsets(**what: object) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, what)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (TRUTH, b"700\nx\n", "ground_truth.txt holds 'x'; expected the ILSVRC2012_ID of a class a line"),
        (TRUTH, b"", "ground_truth.txt holds nothing; expected"),
        (TRUTH, b"1001\n", "ground_truth.txt holds '1001'; expected"),
        (TRUTH, b"700\n", "1 labels for 6 images"),
        (SYNSETS, b"no MATLAB file", "data/meta.mat cannot be read ("),
        (SYNSETS, synsets(other=1), "data/meta.mat cannot be read ('synsets'); expected it as published"),
    ],
)
def test_a_devkit_of_other_content_is_one_line(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    files = layouts.devkit_files() | {file: content}
    (tmp_path / "data" / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(layouts.tar(files, "w:gz"))
    line = refused(tmp_path, ILSVRC)
    assert line.startswith("ILSVRC2012_devkit_t12.tar.gz: ") and words in line


def damaged_inner(train: Path) -> None:
    inner = layouts.tar({f"{CLASSES[0]}_0.JPEG": layouts.picture(0, 0)})[:700]
    train.write_bytes(layouts.tar({f"{CLASSES[0]}.tar": inner}))


def test_a_damaged_tar_within_a_tar_is_one_line(tmp_path: Path) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    damaged_inner(tmp_path / "data" / "ILSVRC2012_img_train.tar")
    assert refused(tmp_path, ILSVRC).startswith("ILSVRC2012_img_train.tar: cannot be read to its end (")


# Subsets by rule


def test_a_subset_takes_the_first_by_id_and_by_name(tmp_path: Path) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    whole = layouts.write(tmp_path, ILSVRC)[0]
    train, labels = whole.split("train")
    expected = train[(labels < 2)].reshape(2, TRAIN, *whole.shape)[:, :3].reshape(-1, *whole.shape)
    subset = ImageSubset(classes=2, per_class=3)
    dataset, log = layouts.write(tmp_path, Origin(**vars(ILSVRC) | {"subset": subset}))
    assert (dataset.classes, dataset.train, dataset.test) == (CLASSES[:2], 6, 4)
    np.testing.assert_array_equal(dataset.split("train")[0], expected)
    assert dataset.subset == "the first 2 classes by id, the first 3 training images of each class"
    assert "pictures outside of the subset: 8 (train/n01440764/n01440764_3.JPEG)" in log[-1]


def test_a_subset_by_ids(tmp_path: Path) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    ids = (CLASSES[2], CLASSES[0])
    dataset = layouts.write(tmp_path, Origin(**vars(ILSVRC) | {"subset": ImageSubset(ids=ids)}))[0]
    assert (dataset.classes, dataset.train) == ((CLASSES[0], CLASSES[2]), 2 * TRAIN)


def test_the_rule_is_part_of_the_digest(tmp_path: Path) -> None:
    """Even where it leaves out nothing: the images are the same, and what they are called is not."""
    layouts.write_ilsvrc(tmp_path / "data")
    rules = (ImageSubset(), ImageSubset(classes=3), ImageSubset(per_class=100), ImageSubset(classes=3, per_class=4))
    made = [layouts.write(tmp_path, Origin(**vars(ILSVRC) | {"subset": rule}))[0] for rule in rules]
    assert len({dataset.digest for dataset in made}) == len(rules)
    assert len({dataset.digests["train_images.npy"] for dataset in made}) == 1


@pytest.mark.parametrize(
    ("subset", "words"),
    [
        (ImageSubset(classes=4), "subset takes 4 classes; expected at most the 3 there are"),
        (
            ImageSubset(ids=("n1", CLASSES[0])),
            "subset names n1, which is no class here; expected some of 3 classes, n0",
        ),
    ],
)
def test_a_subset_of_what_is_not_there_is_one_line(tmp_path: Path, subset: ImageSubset, words: str) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    assert words in refused(tmp_path, Origin(**vars(ILSVRC) | {"subset": subset}))


def test_classes_may_have_names_of_their_own(tmp_path: Path) -> None:
    layouts.write_ilsvrc(tmp_path / "data")
    names = {CLASSES[0]: "tench", CLASSES[2]: "cassette player"}
    dataset = layouts.write(tmp_path, Origin(**vars(ILSVRC) | {"names": names}))[0]
    assert dataset.classes == ("tench", CLASSES[1], "cassette player")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({CLASSES[0]: CLASSES[1]}, f"names gives 2 classes the name {CLASSES[1]}; expected a name of its own for each"),
        ({"typo": "zebra"}, f"names has typo, which is no class here; expected some of 3 classes, {CLASSES[0]}"),
    ],
)
def test_names_that_do_not_fit_the_classes_are_one_line(tmp_path: Path, names: dict[str, str], words: str) -> None:
    flat_folder(tmp_path, lines())
    assert f"params.yaml: datasets.pets.{words}" in refused(tmp_path, Origin(**vars(FLAT) | {"names": names}))


def test_names_may_be_those_of_the_whole_for_a_subset(tmp_path: Path) -> None:
    flat_folder(tmp_path, lines())
    part = vars(FLAT) | {"names": {CLASSES[0]: "tench", CLASSES[2]: "owl"}, "subset": ImageSubset(classes=2)}
    assert layouts.write(tmp_path, Origin(**part))[0].classes == ("tench", CLASSES[1])


def test_the_projects_subset_is_a_tenth_of_ilsvrc() -> None:
    whole, part = ORIGINS["ilsvrc2012"], ORIGINS["ilsvrc100"]
    assert part == Origin(**vars(whole) | {"subset": ImageSubset(classes=100, per_class=500)})
