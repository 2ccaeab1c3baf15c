"""Small folders of pictures with odd names, links and clutter: the same data set from each of their forms, or one line.

Archives that no folder could be packed to, and damaged ones, come with them.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import posixpath
import random
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.command.errors import UserError
from pipelines.config.origins import Origin
from pipelines.data.datasets import open_dataset
from tests.data import layouts
from tests.fuzz.images_cases import damage

FORMS = ("pets.tar", "pets.tgz", "pets.zip")
SPLITS = ("train", "val")
CLASSES = ("cat", "dog", "größe", "a b", "$\\frac{$", "=1+1", "<b>", "train", "val", "n" * 200, "x.jpg", "1")
ODD_CLASSES = ("a\nb", "\x1b[31m", "\udcff", " x", "\u202e", ".hidden", "@eaDir", "__MACOSX", ".ipynb_checkpoints")
PICTURES = ("0.png", "1.PNG", "2.jpg", "ä.png", "a b.png", "[/b].png", "\udce9.png", "-rf.png")
CLUTTER = ("README.md", "labels.csv", "a.heic", "._0.png", ".DS_Store", "noext", "x.JPG.txt")
SIZE = 8
Tree = dict[str, bytes | str | None]  # by path: a file's content, where a link leads, None for a FIFO


def case(random: random.Random, folder: Path) -> None:
    """Compare two forms of a folder, or make something of an archive that is damaged, or packed oddly."""
    tree = _tree(random)
    form = random.choice(FORMS)
    archive = folder / "data" / form
    archive.parent.mkdir()
    if random.random() < 0.5:
        _lay_out(folder / "mine", tree)
        archive.write_bytes(_packed(random, form, tree))
        unpacked = _outcome(folder, Origin(kind="imagefolder", folder="mine", size=SIZE))
        packed = _outcome(folder, Origin(kind="imagefolder", archive=form, size=SIZE))
        assert unpacked == packed, f"unpacked {unpacked}, {form} {packed}"
        return
    content = _packed(random, form, tree, odd=True)
    if form == "pets.tgz" and random.random() < 0.7:  # or the checksum alone is met
        content = gzip.compress(_damaged(random, gzip.decompress(content)), 1)
    elif random.random() < 0.7:
        content = _damaged(random, content)
    archive.write_bytes(content)
    layouts.write(folder, Origin(kind="imagefolder", archive=form, size=SIZE))
    open_dataset(folder / "datasets", "pets").verify()


def _outcome(folder: Path, source: Origin) -> tuple[str, str]:
    """The data set's digest and what was left out, or the error; without the name of the form."""
    said: list[str] = []
    label = source.folder or source.archive or ""
    try:
        layouts.write_images(folder, source, said.append)
    except UserError as error:
        if not str(error).isprintable() or len(str(error)) > 500:
            raise
        return "refused", " ".join([str(error), *said[-1:]]).replace(label, "")
    dataset = open_dataset(folder / "datasets", "pets")
    return dataset.digest, f"{dataset.classes} {said[-1].replace(label, '')}"


def _tree(random: random.Random) -> Tree:
    base = random.choice(("", "", "set/", "a/b/"))
    tree = _images(random, base)
    folders = sorted({posixpath.dirname(path) for path in tree} | {"", base.rstrip("/")})
    for _ in range(random.choice((0, 1, 3))):
        tree[_within(random.choice(folders), random.choice(CLUTTER + ODD_CLASSES))] = b"x"
    if random.random() < 0.1:
        tree[_within(random.choice(folders), random.choice(("fifo", "fifo.png")))] = None
    for _ in range(random.choice((0, 0, 1, 3))):
        _link(random, tree, folders)
    return {path: what for path, what in tree.items() if not any(other.startswith(f"{path}/") for other in tree)}


def _images(random: random.Random, base: str) -> Tree:
    tree: Tree = {}
    classes = random.sample(CLASSES, random.choice((1, 2, 2, 2, 3)))
    if random.random() < 0.2:
        classes.append(random.choice(ODD_CLASSES))
    for kind in (f"{split}/{kind}" for split in SPLITS for kind in classes if random.random() < 0.97):
        below = random.choice(("", "", "sub/"))
        for name in random.sample(PICTURES, random.randint(1, 2)):
            tree[f"{base}{kind}/{below}{name}"] = random.choice(_pictures())
    if random.random() < 0.15:
        second = random.choice(("other", f"{base}deep/er", f"{base}train/cat/"))
        for split in SPLITS:
            tree[posixpath.normpath(f"{second}/{split}/cat/0.png")] = random.choice(_pictures())
    return tree


def _link(random: random.Random, tree: Tree, folders: list[str]) -> None:
    """A link to a file, a folder, a link, itself or nothing; from a folder that is no link, so that none leads out."""
    where = random.choice(folders)
    path = _within(where, random.choice(("link", "link.png", "loop", "val")))
    if path in tree:
        return
    target = random.choice([*folders, *tree, path, "nowhere", "train"])
    tree[path] = "/nowhere" if random.random() < 0.1 else posixpath.relpath(target or ".", where or ".")


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


@functools.cache
def _pictures() -> list[bytes]:
    found = []
    for seed, kind in enumerate(("PNG", "JPEG", "PNG", "GIF")):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (5 + seed, 9 - seed, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def _lay_out(root: Path, tree: Tree) -> None:
    root.mkdir()
    for path, what in tree.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            os.mkfifo(place)
        elif isinstance(what, str):
            place.symlink_to(what)
        else:
            place.write_bytes(what)


def _packed(random: random.Random, form: str, tree: Tree, odd: bool = False) -> bytes:
    """The tree as an archive of ``form``; ``odd`` adds members that no folder could have."""
    members = list(tree.items())
    random.shuffle(members)
    prefix = random.choice(("", "./"))
    names = [(prefix + path, what) for path, what in members]
    if odd and names:
        for _ in range(random.choice((0, 1, 2))):
            name, what = random.choice(names)
            changed = random.choice(
                (name, f"./{name}", f"/{name}", f"../{name}", name.replace("/", "//"), f"{name}/x.png")
            )
            names.append((changed, what))
    buffer = io.BytesIO()
    if form == "pets.zip":
        _zip(buffer, names)
    else:
        style = random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
            _tar(random, tar, names)
    return gzip.compress(buffer.getvalue(), 1) if form == "pets.tgz" else buffer.getvalue()


def _tar(random: random.Random, tar: tarfile.TarFile, names: list[tuple[str, bytes | str | None]]) -> None:
    earlier: dict[bytes, str] = {}
    for name, what in names:
        member = tarfile.TarInfo(name)
        if what is None:
            member.type = tarfile.FIFOTYPE
        elif isinstance(what, str):
            member.type, member.linkname = tarfile.SYMTYPE, what
        elif what in earlier and random.random() < 0.3:
            member.type, member.linkname = tarfile.LNKTYPE, earlier[what]
        else:
            member.size = len(what)
            earlier[what] = name
        tar.addfile(member, io.BytesIO(what) if isinstance(what, bytes) else None)


class _Member(zipfile.ZipInfo):
    """A member whose name is written byte for byte, without a word on its encoding, as most programs do."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return os.fsencode(self.filename), self.flag_bits


def _zip(buffer: io.BytesIO, names: list[tuple[str, bytes | str | None]]) -> None:
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w") as archive:  # of names given twice
        for name, what in names:
            member = _Member(name)
            kind = stat.S_IFIFO if what is None else stat.S_IFLNK if isinstance(what, str) else stat.S_IFREG
            member.create_system, member.external_attr = 3, (kind | 0o644) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, b"" if what is None else os.fsencode(what) if isinstance(what, str) else what)


def _damaged(random: random.Random, content: bytes) -> bytes:
    for _ in range(random.randint(1, 3)):
        content = damage(random, content)
    return content
