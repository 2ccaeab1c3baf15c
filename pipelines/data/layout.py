"""From pictures in ``train/<class>/*`` and ``val/<class>/*`` to the rows of the arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.command.errors import UserError, brief
from pipelines.data.containers import LeftOut, Picture
from pipelines.data.datasets import SPLITS, Split

Kinds = dict[str, list[Picture]]  # pictures by class
NAMED = 5  # classes in a message


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The pictures of each split in the order of their rows: by class, then by path, as sorted."""

    classes: tuple[str, ...]
    pictures: Mapping[Split, Sequence[Picture]]
    labels: Mapping[Split, Sequence[int]]


def check_folders(where: str, folders: Mapping[Split, str]) -> None:
    """Raise ``UserError`` where a picture could be in both splits, or a split has no valid folder."""
    keys = {"train": "train", "test": "val"}
    for split, folder in folders.items():
        parts = PurePosixPath(folder).parts
        if not parts or ".." in parts or "/" in parts:
            raise UserError(f"{where}.{keys[split]} is '{brief(folder)}'; expected a folder such as {keys[split]}")
    train, test = (PurePosixPath(folders[split]) for split in SPLITS)
    if train.is_relative_to(test) or test.is_relative_to(train):
        both = f"train is '{brief(folders['train'])}' and val '{brief(folders['test'])}'"
        raise UserError(f"{where}.{both}; expected two folders, neither within the other")


def lay_out(label: str, found: Sequence[Picture], folders: Mapping[Split, str], left_out: LeftOut) -> Layout:
    """Sort pictures into splits and classes; the two split folders may lie below a common folder.

    Raises ``UserError`` where there are no pictures, fewer than two classes, or other classes in one split than in the
    other, where the name of a class is not plain text, and where a picture cannot be read.
    """
    by_base: dict[str, dict[Split, Kinds]] = {}
    for picture in found:
        for split, folder in folders.items():
            for base, kind in _below(picture.path, folder):
                by_base.setdefault(base, {}).setdefault(split, {}).setdefault(kind, []).append(picture)
    base = _base(label, by_base, folders)
    by_split = by_base[base]
    _pass_over(found, by_base, base, folders, left_out)
    for picture in (picture for kinds in by_split.values() for kind in kinds.values() for picture in kind):
        if picture.fault:
            raise UserError(f"{label}: {brief(picture.path)} cannot be read ({picture.fault})")
    _check_classes(label, by_split, folders)
    classes = tuple(sorted(by_split["train"]))
    pictures: dict[Split, list[Picture]] = {"train": [], "test": []}
    labels: dict[Split, list[int]] = {"train": [], "test": []}
    for split in SPLITS:
        for index, kind in enumerate(classes):
            ordered = sorted(by_split[split][kind], key=lambda picture: picture.path)
            pictures[split] += ordered
            labels[split] += [index] * len(ordered)
    return Layout(classes=classes, pictures=pictures, labels=labels)


def _below(path: str, folder: str) -> Iterator[tuple[str, str]]:
    """Each reading of ``path`` as ``<base>/<folder>/<class>/...``: its base and its class."""
    parts, wanted = path.split("/"), list(PurePosixPath(folder).parts)
    for start in range(len(parts) - len(wanted) - 1):
        if parts[start : start + len(wanted)] == wanted:
            yield "/".join(parts[:start]), parts[start + len(wanted)]


def _base(label: str, by_base: Mapping[str, Mapping[Split, Kinds]], folders: Mapping[Split, str]) -> str:
    """The uppermost folder that holds both splits."""
    whole = (base for base, splits in by_base.items() if len(splits) == len(SPLITS))
    bases = sorted(whole, key=lambda base: (_depth(base), base))
    if not bases:
        seen = {split for splits in by_base.values() for split in splits}
        lacking = [brief(folders[split]) for split in SPLITS if split not in seen]
        nowhere = f"{brief(folders['train'])}/ and {brief(folders['test'])}/ of one folder"
        where = " or ".join(f"{folder}/<class>/" for folder in lacking) or nowhere
        raise UserError(f"{label}: no images in {where}; expected files such as .jpg and .png")
    equal = [brief(base, 60) for base in bases if _depth(base) == _depth(bases[0])]
    if len(equal) > 1:
        both = f"{brief(folders['train'])}/ and {brief(folders['test'])}/"
        raise UserError(f"{label}: {both} lie in {equal[0]}/ and in {equal[1]}/; expected them in one folder")
    return bases[0]


def _depth(base: str) -> int:
    return len(PurePosixPath(base).parts)


def _pass_over(
    found: Sequence[Picture],
    by_base: Mapping[str, Mapping[Split, Kinds]],
    base: str,
    folders: Mapping[Split, str],
    left_out: LeftOut,
) -> None:
    """Count the pictures that are in no split of ``base``."""
    readings = {
        home: {picture.path for kinds in splits.values() for kind in kinds.values() for picture in kind}
        for home, splits in by_base.items()
    }
    taken = readings.pop(base)
    elsewhere = set().union(*readings.values())
    split_folders = " and ".join(f"{brief(folders[split])}/" for split in SPLITS)
    for picture in found:
        if picture.path not in taken:
            where = f"below a second {split_folders}" if picture.path in elsewhere else f"outside of {split_folders}"
            left_out.add(f"{'unreadable' if picture.fault else 'pictures'} {where}", picture.path)


def _check_classes(label: str, by_split: Mapping[Split, Kinds], folders: Mapping[Split, str]) -> None:
    train, test = (by_split[split].keys() for split in SPLITS)
    for kind in sorted(train | test):
        if not kind.isprintable() or kind != kind.strip():
            folder = f"{folders['train' if kind in train else 'test']}/{kind}"
            text = "expected a class name of printable characters in UTF-8, without a space at either end"
            raise UserError(f"{label}: the folder {brief(folder)} names a class; {text}")
    for have, lack in ((SPLITS[0], SPLITS[1]), (SPLITS[1], SPLITS[0])):
        missing = sorted(by_split[have].keys() - by_split[lack].keys())
        if missing:
            named = ", ".join(brief(kind, 30) for kind in missing[:NAMED])
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            held, absent = brief(folders[have]), brief(folders[lack])
            raise UserError(f"{label}: class {named}{more} has images in {held}/ but none in {absent}/; expected both")
    if len(train) < 2:
        raise UserError(f"{label}: one class alone, {brief(next(iter(train)))}; expected two or more to tell apart")
