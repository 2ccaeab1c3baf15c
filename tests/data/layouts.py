"""Small archives in the layouts of Tiny-ImageNet, ILSVRC-2012 and others, of pictures made here."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from pipelines.config.origins import Origin
from pipelines.data import imagefolder
from pipelines.data.datasets import Dataset, open_dataset

CLASSES = ("n01440764", "n02102040", "n02979186")
TRAIN, VAL = 4, 2  # pictures a class
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
SYNSETS = "ILSVRC2012_devkit_t12/data/meta.mat"


def picture(kind: int, number: int, side: int = 24) -> bytes:
    """A JPEG whose brightness tells its class, and its colour its number."""
    pixels = np.full((side, side + 4, 3), 40 + 70 * kind, np.uint8)
    pixels[..., 0] += 4 * number
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def train_files(within: str = "") -> dict[str, bytes]:
    """``<class>/<within><class>_<number>.JPEG``."""
    return {
        f"{name}/{within}{name}_{number}.JPEG": picture(kind, number)
        for kind, name in enumerate(CLASSES)
        for number in range(TRAIN)
    }


def val_files(prefix: str) -> tuple[dict[str, bytes], list[int]]:
    """``<prefix><number>.JPEG`` from 1 on, and the class of each: not in their order."""
    order = [2, 0, 1, 1, 2, 0]
    return {f"{prefix}{i:08}.JPEG": picture(kind, 9) for i, kind in enumerate(order, 1)}, order


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tiny_imagenet() -> dict[str, bytes]:
    """Its files: folders ``images``, boxes, a list of the validation images, a test split without labels."""
    val, order = val_files("val_")
    lines = [f"{name}\t{CLASSES[kind]}\t0\t32\t44\t62" for name, kind in zip(val, order, strict=True)]
    top = "tiny-imagenet-200"
    return {
        **{f"{top}/train/{name}": content for name, content in train_files("images/").items()},
        **{f"{top}/train/{name}/{name}_boxes.txt": b"x\t0\t0\t62\t62\n" for name in CLASSES},
        **{f"{top}/val/images/{name}": content for name, content in val.items()},
        f"{top}/val/val_annotations.txt": ("\n".join(lines) + "\n").encode(),
        f"{top}/test/images/test_0.JPEG": picture(0, 0),
        f"{top}/wnids.txt": "\n".join(CLASSES).encode(),
        f"{top}/words.txt": b"n01440764\ttench\n",
    }


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def devkit_files() -> dict[str, bytes]:
    """The devkit's list of ILSVRC2012_IDs, and its table of synsets with one that is no class, as MATLAB wrote it."""
    ids = {kind: 700 + 7 * ((kind + 1) % 3) for kind in range(len(CLASSES))}  # in another order than the WordNet ids
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(ids[kind], name, "words", "gloss", 0) for kind, name in enumerate(CLASSES)]
    table = np.array([*rows, (1001, "n00001740", "entity", "that which is", 3)], fields).reshape(-1, 1)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table})
    _, order = val_files("")
    truth = "".join(f"{ids[kind]}\n" for kind in order)
    return {"ILSVRC2012_devkit_t12/readme.txt": b"x", TRUTH: truth.encode(), SYNSETS: buffer.getvalue()}


def write_ilsvrc(data: Path) -> None:
    """Its three archives in ``data``: a tar of tars, a tar of flat images, the devkit."""
    data.mkdir(parents=True, exist_ok=True)
    inner: dict[str, dict[str, bytes]] = {}
    for path, content in train_files().items():
        name, _, file = path.partition("/")
        inner.setdefault(f"{name}.tar", {})[file] = content
    (data / "ILSVRC2012_img_train.tar").write_bytes(tar({name: tar(files) for name, files in inner.items()}))
    (data / "ILSVRC2012_img_val.tar").write_bytes(tar(val_files("ILSVRC2012_val_")[0]))
    (data / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tar(devkit_files(), "w:gz"))


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Write ``files`` below ``folder``."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write(root: Path, source: Origin) -> tuple[Dataset, list[str]]:
    """The dataset that ``source`` becomes, and the log."""
    log: list[str] = []
    write_images(root, source, log.append)
    return open_dataset(root / "datasets", "pets"), log


def write_images(
    root: Path, source: Origin, say: imagefolder.Say, decode: imagefolder.Decode = imagefolder.in_this_process
) -> None:
    """``datasets/pets``."""
    with imagefolder.writing(root, "pets", source, say) as rows:
        rows.fill(decode)
