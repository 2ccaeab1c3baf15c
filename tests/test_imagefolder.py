"""ImageFolder datasets, from directories and archives of small pictures made here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines import imagefolder
from pipelines.benchmarks import Source
from pipelines.datasets import Dataset, open_dataset
from pipelines.errors import UserError
from pipelines.pictures import decode

REPOSITORY = Path(__file__).parents[1]
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


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


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


def of_archive(path: Path, size: int = 8) -> Source:
    content = path.read_bytes()
    digest = hashlib.md5(content).hexdigest()
    return Source(kind="imagefolder", archive=path.name, md5=digest, bytes=len(content), size=size)


def write(root: Path, source: Source) -> tuple[Dataset, list[str]]:
    log: list[str] = []
    imagefolder.write(root, "pets", source, log.append)
    return open_dataset(root / "datasets", "pets"), log


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
    dataset, log = write(tmp_path, source)
    dataset.verify()
    assert (dataset.classes, dataset.shape, dataset.train, dataset.test) == (("n01", "n02"), (3, 8, 8), 7, 7)
    images, labels = dataset.split("train")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    for row, seed in enumerate((4, 5, 6, 0, 1, 2, 3)):  # classes sorted, files sorted
        np.testing.assert_allclose(images[row].astype(int), expected(seed, 8), atol=1)  # cropped before it is scaled
    np.testing.assert_allclose(dataset.split("test")[0][3].astype(int), expected(7, 8), atol=1)
    assert json.loads((dataset.path / "meta.json").read_text())["source_md5"] == {name: source.md5}
    assert any("md5 ok" in line for line in log) and f"14 images of 2 classes in {name}" in log


def test_all_containers_give_the_same_dataset(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    as_folder(tmp_path / "mine", pictures)
    digests = {write(tmp_path, Source(kind="imagefolder", folder="mine", size=8))[0].digest}
    for name in ("pets.tar", "pets.zip"):
        digests.add(write(tmp_path, of_archive(as_archive(tmp_path / "data" / name, pictures)))[0].digest)
    assert len(digests) == 1


def test_split_folders_may_have_other_names(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    renamed = {name.replace("/val/", "/held/out/"): content for name, content in pictures.items()}
    as_folder(tmp_path / "mine", renamed)
    dataset, _ = write(tmp_path, Source(kind="imagefolder", folder="mine", size=8, val="held/out"))
    assert dataset.test == 7


def test_a_class_may_bear_the_name_of_a_split(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    files = {name.replace("n02", "train"): content for name, content in pictures.items()}
    as_folder(tmp_path / "mine", files)
    dataset, _ = write(tmp_path, Source(kind="imagefolder", folder="mine", size=8))
    assert dataset.classes == ("n01", "train") and dataset.train == 7


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_picture_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert decode(packed(picture(0).convert(mode), kind), 8).shape == (3, 8, 8)


def test_a_palette_with_transparency_is_no_warning() -> None:
    buffer = io.BytesIO()
    picture(0).convert("P").save(buffer, "PNG", transparency=bytes(range(256)))
    assert decode(buffer.getvalue(), 8).shape == (3, 8, 8)


@pytest.mark.parametrize(("width", "height"), [(8, 8), (9, 8), (8, 31), (3, 2), (1000, 1)])
def test_any_proportions_fill_the_square(width: int, height: int) -> None:
    pixels = decode(packed(Image.new("RGB", (width, height), (10, 20, 30))), 8)
    assert pixels.shape == (3, 8, 8) and (pixels == np.array([10, 20, 30])[:, None, None]).all()


# Bad input: one line, nothing left behind


def refused(root: Path, source: Source) -> str:
    with pytest.raises(UserError) as caught:
        imagefolder.write(root, "pets", source, lambda line: None)
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
    source = Source(kind="imagefolder", folder="empty")
    assert refused(tmp_path, source).startswith("empty: no images in train/<class>/ or val/<class>/; expected")
    as_folder(tmp_path / "half", {name: b"" for name in pictures if "/val/" not in name})
    assert "half: no images in val/<class>/" in refused(tmp_path, Source(kind="imagefolder", folder="half"))
    as_folder(tmp_path / "apart", {"a/train/x/1.png": b"", "b/val/x/1.png": b""})
    assert "train/ and val/ of one folder" in refused(tmp_path, Source(kind="imagefolder", folder="apart"))


@pytest.mark.parametrize(("split", "has", "lacks"), [("val", "train", "val"), ("train", "val", "train")])
def test_a_class_missing_from_one_split(
    tmp_path: Path, pictures: dict[str, bytes], split: str, has: str, lacks: str
) -> None:
    files = {name: content for name, content in pictures.items() if f"{split}/n02" not in name}
    as_folder(tmp_path / "mine", files)
    line = refused(tmp_path, Source(kind="imagefolder", folder="mine"))
    assert line == f"mine: class n02 has images in {has}/ but none in {lacks}/; expected both"


def test_an_absent_folder_names_the_key(tmp_path: Path) -> None:
    line = refused(tmp_path, Source(kind="imagefolder", folder="nowhere"))
    assert line == "datasets.pets.folder: no such folder: nowhere"


def test_an_absent_archive_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_MIRROR", "/mirror")
    line = refused(tmp_path, Source(kind="imagefolder", archive="pets.tar"))
    assert "datasets.pets.archive: pets.tar was not found (/mirror/pets.tar: absent; " in line
    assert "data/pets.tar: absent)" in line and "DATA_MIRROR" in line


def test_a_wrong_md5_is_passed_over(
    tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_archive(as_archive(tmp_path / "data" / "pets.tar", pictures))
    foreign = tmp_path / "mirror"
    foreign.mkdir()
    (foreign / "pets.tar").write_bytes(b"foreign")
    monkeypatch.setenv("DATA_MIRROR", str(foreign))
    _, log = write(tmp_path, source)
    assert "not from" in log[0] and str(source.md5) in log[0] and hashlib.md5(b"foreign").hexdigest() in log[0]
    shutil.rmtree(tmp_path / "datasets")
    (tmp_path / "data" / "pets.tar").write_bytes(b"also foreign")
    line = refused(tmp_path, source)
    assert hashlib.md5(b"also foreign").hexdigest() in line and str(foreign) in line


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pets.tar").write_bytes(b"no archive")
    line = refused(tmp_path, Source(kind="imagefolder", archive="pets.tar"))
    assert line.endswith("pets.tar: no archive, or its beginning is damaged; expected a tar, tgz or zip")


@pytest.mark.parametrize("name", ["pets.tar", "pets.tgz"])
def test_a_truncated_archive(tmp_path: Path, pictures: dict[str, bytes], name: str) -> None:
    whole = as_archive(tmp_path / "data" / name, pictures)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3 + 100])
    line = refused(tmp_path, Source(kind="imagefolder", archive=name))
    assert line.startswith(f"{name}: cannot be read through")


def test_a_link_to_nowhere(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    (as_folder(tmp_path / "mine", pictures) / "set/val/n02/9.png").symlink_to("/nowhere/9.png")
    line = refused(tmp_path, Source(kind="imagefolder", folder="mine"))
    assert line == "mine: set/val/n02/9.png cannot be read (No such file or directory)"


@pytest.mark.parametrize(
    ("field", "place", "value", "words"),
    [
        ("a password", 6, 1, "set/train/n01/0.png is encrypted"),
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
    line = refused(tmp_path, Source(kind="imagefolder", archive="pets.zip"))
    assert line.startswith("pets.zip: cannot be read through (") and words in line
    assert line.endswith("; expected a whole tar, tgz or zip (of method Deflate, without a password)")


def test_a_hard_link_to_what_the_archive_does_not_hold(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    with tarfile.open(as_archive(tmp_path / "data" / "pets.tar", pictures), "a") as tar:
        link = tarfile.TarInfo("set/val/n02/9.png")
        link.type, link.linkname = tarfile.LNKTYPE, "set/val/n02/absent.png"
        tar.addfile(link)
    line = refused(tmp_path, Source(kind="imagefolder", archive="pets.tar"))
    assert line == "pets.tar: set/val/n02/9.png cannot be read (No such file or directory)"


def test_an_archive_that_cannot_be_read_is_passed_over(
    tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_archive(tmp_path / "data" / "pets.tar", pictures)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "pets.tar").symlink_to("/proc/self/mem")  # reading there is an input/output error
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path / "mirror"))
    _, log = write(tmp_path, Source(kind="imagefolder", archive="pets.tar", size=8))
    assert log[0] == f"pets.tar: not from {tmp_path}/mirror/pets.tar: cannot be read (Input/output error)"


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:80O0", "http://[::1/data"])
def test_an_address_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    monkeypatch.setenv("DATA_MIRROR", mirror)
    line = refused(tmp_path, Source(kind="imagefolder", archive="pets.tar"))
    assert f"{mirror}/pets.tar: not an address; expected one like http://host:8000/data" in line


def test_the_command_refuses_a_foreign_archive(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    as_archive(tmp_path / "data" / "imagenette2-224px.tar", {"x": b"x"})
    environment = {name: value for name, value in os.environ.items() if name != "DATA_MIRROR"}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.fetch", "imagenette"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: datasets.imagenette.archive: imagenette2-224px.tar was not found (data/")
    assert "expected md5" in done.stderr and len(done.stderr.splitlines()) == 1
