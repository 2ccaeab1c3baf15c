"""Guards datasets of photographs: directories and archives of small pictures made here, whole, odd and damaged."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import itertools
import lzma
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines.command.errors import UserError, printable
from pipelines.config import schema
from pipelines.config.origins import Origin
from pipelines.data import containers
from tests.data import layouts
from tests.processes import soon

REPOSITORY = Path(__file__).parents[2]
CLASSES = {"n02": 4, "n01": 3}  # pictures a class and split


def picture(seed: int, width: int = 20, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def packed(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def pictures() -> dict[str, bytes]:
    """Files as an archive holds them, with clutter beside them; the seed of each picture is its place."""
    files = {
        "set/README.md": b"x",
        "set/train/n01/._0.png": b"junk",
        "set/labels.csv": b"x",
        "set/train/stray.png": b"x",
    }
    seed = 0
    for split in ("train", "val"):
        for kind, count in CLASSES.items():
            for number in range(count):
                files[f"set/{split}/{kind}/{number}.png"] = packed(picture(seed))
                seed += 1
    return files


def as_archive(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def of_archive(path: Path, size: int = 8) -> Origin:
    return Origin(kind="imagefolder", archive=path.name, size=size)


def expected(seed: int, size: int) -> npt.NDArray[np.uint8]:
    """Short side 12 to ``size``, centre crop: Pillow's own resize, cut by hand."""
    image = picture(seed)
    width = round(20 * size / 12)
    resized = np.asarray(image.resize((width, size), Image.Resampling.BILINEAR))
    left = (width - size) // 2
    return resized[:, left : left + size].transpose(2, 0, 1)


@pytest.mark.parametrize("name", ["pets.tar", "pets.tgz", "pets.zip"])
def test_an_archive_becomes_arrays(tmp_path: Path, pictures: dict[str, bytes], name: str) -> None:
    source = of_archive(as_archive(tmp_path / "data" / name, pictures))
    dataset, log = layouts.write(tmp_path, source)
    dataset.verify()
    assert (dataset.classes, dataset.shape, dataset.train, dataset.test) == (("n01", "n02"), (3, 8, 8), 7, 7)
    images, labels = dataset.split("train")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    for row, seed in enumerate((4, 5, 6, 0, 1, 2, 3)):  # classes sorted, files sorted
        np.testing.assert_allclose(images[row].astype(int), expected(seed, 8), atol=1)  # cropped before it is scaled
    np.testing.assert_allclose(dataset.split("test")[0][3].astype(int), expected(7, 8), atol=1)
    assert f"14 images of 2 classes in {name}" in log


def test_all_containers_give_the_same_dataset(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    layouts.as_folder(tmp_path / "mine", pictures)
    digests = {layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))[0].digest}
    for name in ("pets.tar", "pets.zip"):
        digests.add(layouts.write(tmp_path, of_archive(as_archive(tmp_path / "data" / name, pictures)))[0].digest)
    tar = (tmp_path / "data" / "pets.tar").read_bytes()
    for name, compress in (("pets.tar.bz2", bz2.compress), ("pets.tar.xz", lzma.compress)):
        (tmp_path / "data" / name).write_bytes(compress(tar))
        digests.add(layouts.write(tmp_path, of_archive(tmp_path / "data" / name))[0].digest)
    assert len(digests) == 1


def test_split_folders_may_have_other_names(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    renamed = {name.replace("/val/", "/held/out/"): content for name, content in pictures.items()}
    layouts.as_folder(tmp_path / "mine", renamed)
    dataset, _ = layouts.write(
        tmp_path, Origin(kind="imagefolder", folder="mine", size=8, train="./train", val="held//out/")
    )
    assert dataset.test == 7


def test_a_class_may_bear_the_name_of_a_split(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    files = {name.replace("n02", "train"): content for name, content in pictures.items()}
    layouts.as_folder(tmp_path / "mine", files)
    dataset, _ = layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))
    assert dataset.classes == ("n01", "train") and dataset.train == 7


# Bad input: one line, nothing left behind


def refused(root: Path, source: Origin) -> str:
    with pytest.raises(UserError) as caught:
        layouts.write(root, source)
    assert not (root / "datasets").exists() or not list((root / "datasets").iterdir())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_undecodable_image_is_named(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    pictures["set/val/n02/1.png"] = b"<html>"
    line = refused(tmp_path, of_archive(as_archive(tmp_path / "data" / "pets.tar", pictures)))
    assert line == "pets.tar: set/val/n02/1.png cannot be decoded (cannot identify image file)"
    pictures["set/val/n02/1.png"] = packed(picture(0, 200, 200), "JPEG")[:900]
    line = refused(tmp_path, of_archive(as_archive(tmp_path / "data" / "pets.tar", pictures)))
    assert "set/val/n02/1.png cannot be decoded (image file is truncated" in line


def test_no_images(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    (tmp_path / "empty").mkdir()
    source = Origin(kind="imagefolder", folder="empty")
    assert refused(tmp_path, source).startswith("empty: no images in train/<class>/ or val/<class>/; expected")
    layouts.as_folder(tmp_path / "half", {name: b"" for name in pictures if "/val/" not in name})
    assert "half: no images in val/<class>/" in refused(tmp_path, Origin(kind="imagefolder", folder="half"))
    layouts.as_folder(tmp_path / "apart", {"a/train/x/1.png": b"", "b/val/x/1.png": b""})
    assert "train/ and val/ of one folder" in refused(tmp_path, Origin(kind="imagefolder", folder="apart"))


@pytest.mark.parametrize(("split", "has", "lacks"), [("val", "train", "val"), ("train", "val", "train")])
def test_a_class_missing_from_one_split(
    tmp_path: Path, pictures: dict[str, bytes], split: str, has: str, lacks: str
) -> None:
    files = {name: content for name, content in pictures.items() if f"{split}/n02" not in name}
    layouts.as_folder(tmp_path / "mine", files)
    line = refused(tmp_path, Origin(kind="imagefolder", folder="mine"))
    assert line == f"mine: class n02 has images in {has}/ but none in {lacks}/; expected both"


def test_an_absent_folder_names_the_key(tmp_path: Path) -> None:
    line = refused(tmp_path, Origin(kind="imagefolder", folder="nowhere"))
    assert line == "params.yaml: datasets.pets.folder: no such folder: nowhere"


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pets.tar").write_bytes(b"no archive")
    line = refused(tmp_path, Origin(kind="imagefolder", archive="pets.tar"))
    assert line.endswith("pets.tar: no archive, or its beginning is damaged; expected a tar, tgz or zip")


@pytest.mark.parametrize("name", ["pets.tar", "pets.tgz"])
def test_a_truncated_archive(tmp_path: Path, pictures: dict[str, bytes], name: str) -> None:
    whole = as_archive(tmp_path / "data" / name, pictures)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3 + 100])
    line = refused(tmp_path, Origin(kind="imagefolder", archive=name))
    assert line.startswith(f"{name}: cannot be read to its end")


def test_a_link_to_nowhere(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    (layouts.as_folder(tmp_path / "mine", pictures) / "set/val/n02/9.png").symlink_to("/nowhere/9.png")
    line = refused(tmp_path, Origin(kind="imagefolder", folder="mine"))
    assert line == "mine: set/val/n02/9.png cannot be read (No such file or directory)"


@pytest.mark.parametrize(
    ("field", "place", "value", "words"),
    [
        ("a password", 6, 1, "encrypted, password required"),
        ("the method Deflate64", 8, 9, "That compression method is not supported"),
        ("a later version", 4, 99, "zip file version 9.9"),
    ],
)
def test_a_zip_that_cannot_be_unpacked(
    tmp_path: Path, pictures: dict[str, bytes], field: str, place: int, value: int, words: str
) -> None:
    """Each header is changed as its field asks; in the central directory the field lies 2 bytes further on."""
    content = bytearray(as_archive(tmp_path / "data" / "pets.zip", pictures).read_bytes())
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + place + shift] = value
    (tmp_path / "data" / "pets.zip").write_bytes(content)
    line = refused(tmp_path, Origin(kind="imagefolder", archive="pets.zip"))
    assert line.startswith("pets.zip: cannot be read to its end (") and words in line
    assert line.endswith("; expected a whole tar, tgz or zip (of method Deflate, without a password)")


def test_a_hard_link_to_what_the_archive_does_not_hold(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    with tarfile.open(as_archive(tmp_path / "data" / "pets.tar", pictures), "a") as tar:
        link = tarfile.TarInfo("set/val/n02/9.png")
        link.type, link.linkname = tarfile.LNKTYPE, "set/val/n02/absent.png"
        tar.addfile(link)
    line = refused(tmp_path, Origin(kind="imagefolder", archive="pets.tar"))
    assert line == "pets.tar: set/val/n02/9.png cannot be read (No such file or directory)"


# What is passed over is counted, and the same in every form


FORMS = ("pets.tar", "pets.tgz", "pets.zip")
Tree = dict[str, bytes | str | None]  # by path: content, where a link leads, None for a FIFO


def as_tree(folder: Path, tree: Tree) -> Path:
    for name, what in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            os.mkfifo(folder / name)
        elif isinstance(what, str):
            (folder / name).symlink_to(what)
        else:
            (folder / name).write_bytes(what)
    return folder


def pack(path: Path, folder: Path) -> Path:
    """``folder`` as the usual programs pack it: links as links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        subprocess.run(["zip", "-qry", path, "."], cwd=folder, check=True, capture_output=True)
    else:
        subprocess.run(["tar", "-caf" if path.suffix == ".tgz" else "-cf", path, "."], cwd=folder, check=True)
    return path


def cluttered(pictures: dict[str, bytes]) -> Tree:
    hidden: Tree = {
        f"set/train/{folder}/0.png": b"junk"
        for folder in (".ipynb_checkpoints", "@eaDir", "n01/.Trash-1000", "__MACOSX", "n02/lost+found")
    }
    return {
        **pictures,
        **hidden,
        "set/train/n01/raw.heic": b"x",
        "set/val/n02/raw.CR2": b"x",
        "set/train/n01/loop": ".",
        "set/train/n02/back": "../../train",
        "set/val/n02/ring": "ring",
        "set/val/n03": "n02",
        "set/val/n02/7.jfif": "0.png",
        "set/deep/er/train/n01/0.png": packed(picture(0)),
        "set/deep/er/val/n01/0.png": packed(picture(0)),
    }


LEFT_OUT = (
    "left out: hidden or the system's: 6 (set/train/.ipynb_checkpoints), links to folders read before: 3"
    " (set/train/n01/loop), links to nothing: 1 (set/val/n02/ring), other files: 2 (set/README.md), pictures below a"
    " second train/ and val/: 2 (set/deep/er/train/n01/0.png), pictures of formats that are not read: 2"
    " (set/train/n01/raw.heic), pictures outside of train/ and val/: 1 (set/train/stray.png)"
)


def test_what_is_passed_over_is_counted_by_reason_in_every_form(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    folder = as_tree(tmp_path / "mine", cluttered(pictures))
    with soon():
        dataset, log = layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))
    assert log[-1] == f"15 images taken from mine; {LEFT_OUT}"
    assert (dataset.classes, dataset.train, dataset.test) == (("n01", "n02"), 7, 8)
    for form in FORMS:
        if form == "pets.zip" and shutil.which("zip") is None:
            continue
        again, log = layouts.write(tmp_path, of_archive(pack(tmp_path / "data" / form, folder)))
        assert (again.digest, log[-1]) == (dataset.digest, f"15 images taken from {form}; {LEFT_OUT}")


def test_nothing_left_out_is_said_too(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    layouts.as_folder(tmp_path / "mine", {name: content for name, content in pictures.items() if name.count("/") == 3})
    (tmp_path / "mine/set/train/n01/._0.png").unlink()
    _, log = layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))
    assert log[-1] == "14 images taken from mine; left out: nothing"


def test_what_is_left_out_is_said_before_an_error_that_it_may_explain(tmp_path: Path) -> None:
    for split in ("train", "val"):
        as_tree(tmp_path / "mine", {f"{split}/cat/1.heic": b"x", f"{split}/dog/1.heic": b"x"})
    log: list[str] = []
    with pytest.raises(UserError, match="no images in train/<class>/ or val/<class>/"):
        layouts.write_images(tmp_path, Origin(kind="imagefolder", folder="mine"), log.append)
    assert log[-1] == "mine: left out: pictures of formats that are not read: 4 (train/cat/1.heic)"


def test_a_fifo_a_socket_and_a_device_are_not_waited_for(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    folder = as_tree(tmp_path / "mine", {**pictures, "set/train/n01/a.png": None, "set/val/n01/b.png": "/dev/zero"})
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "set/train/n02/c.png"))
        with soon():
            _, log = layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))
    assert "neither files nor folders: 3 (set/train/n01/a.png)" in log[-1]


def test_links_lead_to_pictures_elsewhere(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    plain = layouts.as_folder(tmp_path / "plain", pictures)
    tree: Tree = {"train": str(plain / "set/train"), "val/n01": str(plain / "set/val/n01")}
    for number in range(4):
        tree[f"val/n02/{number}.png"] = str(plain / f"set/val/n02/{number}.png")
    as_tree(tmp_path / "mine", tree)
    digests = {
        layouts.write(tmp_path, Origin(kind="imagefolder", folder=name, size=8))[0].digest for name in ("plain", "mine")
    }
    assert len(digests) == 1


def test_links_above_the_folder_end_there(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    as_tree(tmp_path / "mine", {**pictures, "set/train/n01/up": "/", "set/train/n01/out": ".."})
    with soon():
        _, log = layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))
    assert "links to folders read before: 2 (set/train/n01/out)" in log[-1]


def test_a_class_that_links_to_the_other_split_is_no_second_one(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    as_tree(
        tmp_path / "mine", {**{name: what for name, what in pictures.items() if "val" not in name}, "set/val": "train"}
    )
    line = refused(tmp_path, Origin(kind="imagefolder", folder="mine"))
    assert line == "mine: no images in val/<class>/; expected files such as .jpg and .png"


def test_a_folder_that_cannot_be_listed(
    tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a class images would be lost; elsewhere it is counted."""
    folder = layouts.as_folder(tmp_path / "mine", {**pictures, "private/x": b"x", "set/train/n01/sub/1.png": b"x"})
    scandir, closed = os.scandir, {str(folder / "private")}

    def guarded(place: str) -> object:
        if place in closed:
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    (folder / "set/train/n01/sub/1.png").write_bytes(packed(picture(0)))
    _, log = layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))
    assert "unreadable outside of train/ and val/: 1 (private/*)" in log[-1]
    shutil.rmtree(tmp_path / "datasets")
    closed.add(str(folder / "set/train/n01/sub"))
    line = refused(tmp_path, Origin(kind="imagefolder", folder="mine"))
    assert line == "mine: set/train/n01/sub/* cannot be read (Permission denied)"


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    expected = layouts.write(tmp_path, of_archive(as_archive(tmp_path / "data" / "pets.tar", pictures)))[0].digest
    files = {"./set/train/n01/0.png": packed(picture(99)), "set//val/n02/1.png": b"junk"} | pictures
    for form in ("pets.tar", "pets.zip"):
        dataset, log = layouts.write(tmp_path, of_archive(as_archive(tmp_path / "data" / form, files)))
        assert dataset.digest == expected
        assert "replaced by later ones of the same name: 2 (set/train/n01/0.png)" in log[-1]


def test_a_file_of_several_names_fills_every_row_of_its(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    path = as_archive(tmp_path / "data" / "pets.tar", pictures)
    with tarfile.open(path, "a") as tar:
        for name, kind, target in (
            ("set/val/n01/8.png", tarfile.LNKTYPE, "./set/train/n01/0.png"),
            ("set/val/n01/9.png", tarfile.SYMTYPE, "../../train/n02/../n01/0.png"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    dataset, _ = layouts.write(tmp_path, of_archive(path))
    train, test = dataset.split("train")[0], dataset.split("test")[0]
    assert (dataset.train, dataset.test) == (7, 9)
    np.testing.assert_array_equal(test[3], train[0])
    np.testing.assert_array_equal(test[4], train[0])


def test_paths_that_lead_out_of_an_archive_are_left_out(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    files = pictures | {"set/train/n01/../../../../etc/1.png": b"x"}
    _, log = layouts.write(tmp_path, of_archive(as_archive(tmp_path / "data" / "pets.tar", files)))
    assert "paths that lead out of the archive: 1 (set/train/n01/../../../../etc/1.png)" in log[-1]


def test_names_in_a_zip_need_not_say_that_they_are_utf_8(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    renamed = {name.replace("n01", "größe"): content for name, content in pictures.items()}
    path = as_archive(tmp_path / "data" / "pets.zip", renamed)
    content = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + shift + 1] &= ~8  # bit 11
    path.write_bytes(content)
    assert layouts.write(tmp_path, of_archive(path))[0].classes == ("größe", "n02")


def test_two_image_folders_side_by_side_are_one_too_many(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    both = pictures | {name.replace("set/", "other/"): content for name, content in pictures.items()}
    layouts.as_folder(tmp_path / "mine", both)
    line = refused(tmp_path, Origin(kind="imagefolder", folder="mine"))
    assert line == "mine: train/ and val/ lie in other/ and in set/; expected them in one folder"
    source = Origin(kind="imagefolder", folder="mine", size=8, train="set/train", val="set/val")
    assert layouts.write(tmp_path, source)[0].train == 7


# Splits and classes


@pytest.mark.parametrize(
    ("train", "val"), [("all", "all"), ("all", "all/val"), ("a/b", "a"), ("./all", "all/"), ("train", "train//x")]
)
def test_a_picture_is_in_one_split(train: str, val: str) -> None:
    with pytest.raises(UserError) as caught:
        schema.parse(Origin, {"kind": "imagefolder", "folder": "mine", "train": train, "val": val}, "pets")
    both = f"pets.train is '{train}' and val '{val}'"
    assert str(caught.value) == f"{both}; expected two folders, neither within the other"


@pytest.mark.parametrize("folder", [".", "..", "/data/val", "a/../val", "./"])
def test_a_split_has_a_folder(folder: str) -> None:
    with pytest.raises(UserError) as caught:
        schema.parse(Origin, {"kind": "imagefolder", "folder": "mine", "val": folder}, "pets")
    assert str(caught.value) == f"pets.val is '{folder}'; expected a folder such as val"


def test_a_row_that_nothing_fills_is_no_black_image(
    tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_archive(as_archive(tmp_path / "data" / "pets.tar", pictures))
    read = containers.Archive.read
    monkeypatch.setattr(containers.Archive, "read", lambda files, wanted: itertools.islice(read(files, wanted), 13))
    line = refused(tmp_path, source)
    assert line == "pets.tar: set/val/n01/2.png is gone; expected files that do not change while they are read"


@pytest.mark.parametrize(
    "name", ["cat\n", "\x1b[31mred", "\udcff", " cat", "\u202etac", "cat\u3000", "\x7f", "a\u200bb"]
)
@pytest.mark.parametrize("form", ["folder", "pets.tar"])
def test_a_class_has_a_name_that_can_be_shown(tmp_path: Path, pictures: dict[str, bytes], name: str, form: str) -> None:
    renamed = {path.replace("n02", name): content for path, content in pictures.items()}
    if form == "folder":
        layouts.as_folder(tmp_path / "mine", renamed)
        source = Origin(kind="imagefolder", folder="mine")
    else:
        source = of_archive(as_archive(tmp_path / "data" / form, renamed))
    line = refused(tmp_path, source)
    assert line.isprintable() and f": the folder train/{printable(name)} names a class; expected a class name" in line


@pytest.mark.parametrize("name", ["größe", "ネコ", "a b", "$\\frac{$", "<b>&amp;", '"x",y', "=1+1", "a" * 255, "1e5"])
def test_classes_of_any_other_name_are_kept(tmp_path: Path, pictures: dict[str, bytes], name: str) -> None:
    layouts.as_folder(tmp_path / "mine", {path.replace("n02", name): content for path, content in pictures.items()})
    dataset, _ = layouts.write(tmp_path, Origin(kind="imagefolder", folder="mine", size=8))
    assert set(dataset.classes) == {"n01", name}


def test_one_class_is_nothing_to_learn(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    layouts.as_folder(tmp_path / "mine", {name: content for name, content in pictures.items() if "n02" not in name})
    line = refused(tmp_path, Origin(kind="imagefolder", folder="mine"))
    assert line == "mine: only one class, n01; expected two or more"


# Damaged archives, and those that claim what they do not hold


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def last_header(tar: bytes, name: bytes = b"set/val/n02/0.png") -> int:
    return tar.rindex(name)


DAMAGED = "a member is damaged, or another archive follows"
FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {  # by fault: of a tar, what becomes of it and what is said
    "a gzip's checksum": (lambda tar: flipped(gzip.compress(tar), -8), "CRC check failed"),
    "a gzip cut short": (lambda tar: gzip.compress(tar)[:-4], "ended before the end-of-stream marker"),
    "bytes behind a gzip": (lambda tar: gzip.compress(tar) + b"garbage", "Not a gzipped file"),
    "a later header": (lambda tar: flipped(tar, last_header(tar) + 10), DAMAGED),
    "a later header, packed": (lambda tar: gzip.compress(flipped(tar, last_header(tar) + 10)), DAMAGED),
    "an archive behind another": (lambda tar: tar + tar, DAMAGED),
    "bytes behind a tar": (lambda tar: tar + b"x", DAMAGED),
    "no end": (lambda tar: tar[: last_header(tar)], "it is cut short"),
    "half a header": (lambda tar: tar[: last_header(tar) + 100], "it is cut short"),
    "half a member": (lambda tar: tar[: last_header(tar) + 600], "unexpected end of data"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_archive_without_an_md5_is_refused(tmp_path: Path, pictures: dict[str, bytes], fault: str) -> None:
    """Where the last members are lost, too, which would cost some images and no word."""
    path = as_archive(tmp_path / "data" / "pets.tar", pictures)
    damage, words = FAULTS[fault]
    path.write_bytes(damage(path.read_bytes()))
    line = refused(tmp_path, Origin(kind="imagefolder", archive="pets.tar"))
    assert line.startswith("pets.tar: cannot be read to its end (") and words in line


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (header("set/train/n01/big.png", 8 << 30), "unexpected end of data"),
        (header("x", 8 << 30, tarfile.XHDTYPE), "a header claims 8589934592 bytes"),
        (header("x", 8 << 30, tarfile.GNUTYPE_LONGNAME), "a header claims 8589934592 bytes"),
        (header("set/train/n01/x.png", -1024), "set/train/n01/x.png has a size of -1024 bytes"),
        (header("x", -512, tarfile.XHDTYPE), "a header claims"),
        (header("a/" * 3000, 0), "a path of 6000 characters"),
        (header("x", 1 << 62), ""),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_makes_no_room_and_no_loop(tmp_path: Path, head: bytes, words: str, packed: bool) -> None:
    (tmp_path / "data").mkdir()
    content = head + bytes(10240)
    (tmp_path / "data" / "pets.tar").write_bytes(gzip.compress(content) if packed else content)
    with soon():
        line = refused(tmp_path, Origin(kind="imagefolder", archive="pets.tar"))
    assert line.startswith("pets.tar: cannot be read to its end (") and words in line


def test_headers_that_go_on_and_on_end(tmp_path: Path) -> None:
    """The map of a sparse file has as many blocks as it says, each of which says whether another follows."""
    head = bytearray(header("x", 0, tarfile.GNUTYPE_SPARSE))
    head[482] = 1
    head[148:156] = b"%06o\0 " % sum(head[:148] + b" " * 8 + head[156:512])
    block = bytearray(512)
    block[504] = 1
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pets.tar").write_bytes(gzip.compress(head + block * 100_000))
    line = refused(tmp_path, Origin(kind="imagefolder", archive="pets.tar"))
    assert "cannot be read to its end (the headers of a member take more than 1048576 bytes)" in line


@pytest.mark.parametrize("form", ["pets.tar", "pets.zip"])
def test_more_names_than_fit_into_memory_are_refused(
    tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(containers, "ROOM_FOR_NAMES", 5000)
    line = refused(tmp_path, of_archive(as_archive(tmp_path / "data" / form, pictures)))
    assert "cannot be read to its end (more members than fit into 5000 bytes of memory)" in line


@pytest.mark.parametrize("form", ["folder", *FORMS])
def test_a_file_larger_than_any_picture_is_not_read(
    tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(containers, "LARGEST_FILE", 2_000_000)
    pictures["set/val/n02/3.png"] = bytes(2_000_001)
    if form == "folder":
        layouts.as_folder(tmp_path / form, pictures)
        source = Origin(kind="imagefolder", folder=form)
    else:
        source = of_archive(as_archive(tmp_path / "data" / form, pictures))
    line = refused(tmp_path, source)
    assert line == f"{form}: set/val/n02/3.png cannot be read (more than 2000000 bytes)"


def test_what_is_left_of_a_zip_is_damaged_and_not_no_archive(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    path = as_archive(tmp_path / "data" / "pets.zip", pictures)
    path.write_bytes(path.read_bytes()[:-100])
    line = refused(tmp_path, Origin(kind="imagefolder", archive="pets.zip"))
    assert line.startswith("pets.zip: cannot be read to its end (File is not a zip file)")


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    inner = as_archive(tmp_path / "inner.zip", {"readme": b"x"}).read_bytes()
    path = as_archive(tmp_path / "data" / "pets.tar", {**pictures, "set/inner.zip": inner})
    assert zipfile.is_zipfile(path)
    assert layouts.write(tmp_path, of_archive(path))[0].train == 7


def test_names_of_others_move_no_cursor(tmp_path: Path) -> None:
    layouts.as_folder(
        tmp_path / "\x1b[1m", {f"{split}/{kind}/\x1b.png": b"x" for split in ("train", "val") for kind in "ab"}
    )
    line = refused(tmp_path, Origin(kind="imagefolder", folder="\x1b[1m"))
    assert line.isprintable() and "train/a/\\x1b.png cannot be decoded" in line


# Under a limit of addresses


BOMBS = r"""
import io, resource, struct, sys, tarfile, zlib
from pathlib import Path
from pipelines.config.origins import Origin
from tests.data import layouts

resource.setrlimit(resource.RLIMIT_AS, (1_200_000_000,) * 2)

def png(width, height):
    rows = zlib.compressobj(1)
    row = bytes(1 + 3 * width)
    data = b"".join(rows.compress(row * 64) for _ in range(height // 64)) + rows.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks))

def chunk(named):
    name, body = named
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

large = png(8192, 8192)
root = Path(sys.argv[1])
(root / "data").mkdir()
with tarfile.open(root / "data" / "pets.tar", "w") as tar:
    for name in [f"{split}/{kind}/0.png" for split in ("train", "val") for kind in "ab"]:
        member = tarfile.TarInfo(name)
        member.size = len(large)
        tar.addfile(member, io.BytesIO(large))
layouts.write_images(root, Origin(kind="imagefolder", archive="pets.tar", size=8), print)
"""


@pytest.mark.slow  # photographs of many megabytes
def test_pictures_of_the_largest_size_fit_into_a_bounded_memory(tmp_path: Path) -> None:
    """Four of 67 million pixels, which take 270 MB each: one at a time in a process."""
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, tmp_path],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "4 images taken from pets.tar; left out: nothing"
