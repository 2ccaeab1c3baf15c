"""Where data sets come from: the entries of ``datasets`` in params.yaml.

data.dvc pins raw files of a fixed format (``idx``, ``cifar``) as ``data/<name>/<file>``. Photographs in folders
(``imagefolder``) come as an archive, an archive for each split, or an unpacked directory; where data.dvc pins
``data/<archive>``, fetch checks it, and downloads it from ``urls``.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pipelines.config import wording
from pipelines.config.values import EACH_ONCE, Count, Rule, default, named, within
from pipelines.config.wording import require

LARGEST_SIZE = 1024  # pixels: an image takes size x size x 3 bytes, so at most 3 MB
WITH_VERSION = re.compile(r"(@[\w.-]+/)?[\w.-]+@[\w.+-]+")  # of npm
# Keys of idx and cifar, beside kind; the others are imagefolder's.
PINNED = ("classes", "gzips", "tarballs", "packed", "npm")

DatasetName = Annotated[
    str, named("[a-z0-9]+([-_][a-z0-9]+)*", "small letters, digits, hyphens and underscores, like my-photos")
]
Package = Annotated[str, Rule("a package with its version, like name@1.0.0", WITH_VERSION.fullmatch)]
Place = Annotated[str, Rule("a name", lambda value: value.strip() and "\n" not in value)]  # of a file or a folder
Within = Annotated[Place, Rule("a folder such as val", lambda value: is_within(PurePosixPath(value).parts))]
MD5 = Annotated[str, Rule("32 hexadecimal digits", re.compile("[0-9a-f]{32}").fullmatch)]
Url = Annotated[str, Rule("an address like https://host/folder", re.compile("https?://", re.IGNORECASE).match)]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Size and md5 of a published, compressed file."""

    bytes: Count
    md5: MD5


@dataclass(frozen=True, kw_only=True)
class ImageSubset:
    """A subset by rule, not by chance, so that everyone gets the same images.

    Classes are sorted by folder name (WordNet ids in ImageNet), the images of a class by path.
    """

    classes: Annotated[int, within(2)] | None = None  # the first n classes
    ids: Annotated[tuple[str, ...], EACH_ONCE] = ()  # or these classes
    per_class: Count | None = None  # the first n training images of each class; all validation images stay

    def __post_init__(self) -> None:
        require(self.classes is None or not self.ids, f"classes is {self.classes} beside ids; expected one of the two")
        require(len(self.ids) != 1, f"ids is {wording.show(self.ids)}; expected two classes or more")

    @property
    def words(self) -> str:
        """The rule in words, for the ledger and the data set's digest; empty where it leaves out nothing."""
        named = f"classes {', '.join(sorted(self.ids))}" if self.ids else ""
        classes = named if self.classes is None else f"the first {self.classes} classes by id"
        images = "" if self.per_class is None else f"the first {self.per_class} training images of each class"
        return ", ".join(filter(None, (classes, images)))


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where one dataset comes from."""

    kind: Literal["idx", "cifar", "imagefolder"]
    classes: Annotated[tuple[str, ...], EACH_ONCE] = ()  # idx, cifar: names, in the order of the labels
    gzips: tuple[Url, ...] = ()  # of folders with a <file>.gz for each raw file
    tarballs: tuple[Url, ...] = ()  # of archives with all raw files
    packed: dict[str, Packed] = field(default_factory=dict)  # of these .gz files and archives, by file name
    npm: Package | None = None  # a package with the raw files, or with files to rebuild them from
    archive: Place | None = None  # imagefolder: file name of a tar, tgz or zip below data/
    archives: dict[str, str] = field(default_factory=dict)  # or one for each split: train, val
    folder: Place | None = None  # or an unpacked directory
    urls: tuple[Url, ...] = ()  # of the archive; data.dvc pins it
    by_hand: str | None = None  # where to get archives that no program may download
    labels: Place | None = None  # a file beside the images with the class of each image of a flat val
    devkit: Place | None = None  # or ILSVRC's development kit, below data/
    names: dict[str, str] = field(default_factory=dict)  # class names by folder, where they differ
    # images are stored as size x size, short side scaled, centre cropped
    size: Annotated[int, within(8, LARGEST_SIZE, " pixels")] = 256
    train: Within = "train"
    val: Within = "val"
    subset: ImageSubset = field(default_factory=ImageSubset)

    def __post_init__(self) -> None:
        for key in dataclasses.fields(self):
            value = getattr(self, key.name)
            foreign = key.name != "kind" and (key.name in PINNED) == (self.kind == "imagefolder")
            if foreign and value != default(key):
                raise ValueError(f"{key.name} is {wording.show(value)}; expected none with kind: {self.kind}")
        if self.kind == "imagefolder":
            self._check_folder()
        else:
            classes = f"classes is {wording.show(self.classes)}"
            require(len(self.classes) > 1, f"{classes}; expected the names of two or more")

    @property
    def packed_images(self) -> tuple[str, ...]:
        """The archives of an imagefolder, below data/."""
        one = () if self.archive is None else (self.archive,)
        return (*one, *self.archives.values(), *(() if self.devkit is None else (self.devkit,)))

    def _check_folder(self) -> None:
        given = [name for name in ("archive", "archives", "folder") if getattr(self, name)]
        state = " and ".join(f"{name} is {wording.show(getattr(self, name))}" for name in given) or "archive is null"
        require(len(given) == 1, f"{state}; expected exactly one of archive, archives and folder")
        splits = wording.show(sorted(self.archives))
        require(sorted(self.archives) in ([], ["train", "val"]), f"archives has {splits}; expected train and val")
        require(not self.urls or self.archive is not None, f"urls is {wording.show(self.urls)}; expected an archive")
        both = self.labels is None or self.devkit is None
        require(both, f"labels is {wording.show(self.labels)} beside devkit; expected one of the two")
        twice = sorted({name for name in self.names.values() if [*self.names.values()].count(name) > 1})
        require(not twice, f"names has {wording.listed(twice)} twice; expected each once")

        train, val = PurePosixPath(self.train), PurePosixPath(self.val)
        folders = f"train is {wording.show(self.train)} and val {wording.show(self.val)}"
        apart = not (train.is_relative_to(val) or val.is_relative_to(train))
        require(apart, f"{folders}; expected two folders, neither within the other")


def is_within(parts: tuple[str, ...]) -> bool:
    """Whether a path leads to a folder below the one it begins in."""
    return bool(parts) and not {"..", "/"} & {*parts}
