"""The rows of the arrays, from pictures in ``train/<class>/*`` and ``val/<class>/*``, or ``val/*`` with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.command.errors import UserError, brief
from pipelines.config.origins import ImageSubset
from pipelines.data.containers import LeftOut, Picture
from pipelines.data.datasets import SPLITS, Split
from pipelines.data.labels import LabelList

ByClass = dict[str, list[Picture]]
NAMED = 5  # classes in a message
LABELS = "expected labels: <file> in params.yaml, which names the class of each validation image"
FLAT = ""  # the class of pictures outside of class folders


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The pictures of each split in the order of their rows: sorted by class, then by path."""

    classes: tuple[str, ...]
    known: tuple[str, ...]  # classes, those that a subset leaves out included
    pictures: Mapping[Split, Sequence[Picture]]
    labels: Mapping[Split, Sequence[int]]

    @property
    def images(self) -> int:
        """Their number."""
        return sum(map(len, self.pictures.values()))


def lay_out(
    label: str,
    found: Sequence[Picture],
    folders: Mapping[Split, str],
    left_out: LeftOut,
    labels: LabelList | None = None,
    subset: ImageSubset | None = None,
) -> Layout:
    """Sort pictures into splits and classes; the two split folders may lie below a common folder.

    ``labels`` has the classes of a flat validation folder. Raises ``UserError`` for no pictures, fewer than two
    classes, different classes in the two splits, a class whose name is not plain text, a picture that cannot be read,
    and a ``subset`` of classes that are absent.
    """
    folders = {split: str(PurePosixPath(folder)) for split, folder in folders.items()}
    flat: Split | None = None if labels is None else "test"
    bases: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for picture in found:
        for base, split, _ in _readings(picture.path, folders, flat):
            bases[split].add(base)
    root = _root(label, bases, folders, found)
    by_split = _split(found, root, folders, flat, left_out)
    for picture in _every(by_split):
        if picture.fault:
            raise UserError(f"{label}: {brief(picture.path)} cannot be read ({picture.fault})")
    if labels is not None:
        below = PurePosixPath(root, folders["test"])
        by_split["test"] = labels.assign(
            {str(PurePosixPath(picture.path).relative_to(below)): picture for picture in by_split["test"][FLAT]}
        )
    _check_classes(label, by_split, folders)
    return _in_order(sorted(by_split["train"]), _cut(label, by_split, subset or ImageSubset(), left_out))


def _split(
    found: Sequence[Picture], root: str, folders: Mapping[Split, str], flat: Split | None, left_out: LeftOut
) -> dict[Split, ByClass]:
    """The pictures of the split folders in ``root``; counts the others."""
    by_split: dict[Split, ByClass] = {split: {} for split in SPLITS}
    for picture in found:
        readings = {base: (split, class_name) for base, split, class_name in _readings(picture.path, folders, flat)}
        if root in readings:
            split, class_name = readings[root]
            by_split[split].setdefault(class_name, []).append(picture)
        else:
            what, where = "unreadable" if picture.fault else "pictures", "below a second" if readings else "outside of"
            left_out.add(f"{what} {where} {_both(folders)}", picture.path)
    return by_split


def _in_order(known: Sequence[str], by_split: Mapping[Split, ByClass]) -> Layout:
    classes = sorted(by_split["train"])
    pictures: dict[Split, list[Picture]] = {"train": [], "test": []}
    labels: dict[Split, list[int]] = {"train": [], "test": []}
    for split in SPLITS:
        for index, class_name in enumerate(classes):
            ordered = _by_path(by_split[split][class_name])
            pictures[split] += ordered
            labels[split] += [index] * len(ordered)
    return Layout(classes=tuple(classes), known=tuple(known), pictures=pictures, labels=labels)


def _every(by_split: Mapping[Split, ByClass]) -> Iterator[Picture]:
    for by_class in by_split.values():
        for pictures in by_class.values():
            yield from pictures


def _by_path(pictures: Sequence[Picture]) -> list[Picture]:
    return sorted(pictures, key=lambda picture: picture.path)


def _cut(
    label: str, by_split: Mapping[Split, ByClass], subset: ImageSubset, left_out: LeftOut
) -> Mapping[Split, ByClass]:
    """The classes and training images that ``subset`` selects; counts the others."""
    if not subset.words:
        return by_split
    known = sorted(by_split["train"])
    absent = sorted(set(subset.ids) - set(known))
    if absent:
        there = f"{len(known)} classes, {brief(known[0], 30)} to {brief(known[-1], 30)}"
        raise UserError(
            f"{label}: subset names {brief(absent[0], 30)}, which is no class here; expected some of {there}"
        )
    if subset.classes is not None and subset.classes > len(known):
        raise UserError(f"{label}: subset takes {subset.classes} classes; expected at most the {len(known)} there are")
    classes = subset.ids or known[: subset.classes]
    first = {"train": subset.per_class, "test": None}
    kept = {split: {one: _by_path(by_split[split][one])[: first[split]] for one in classes} for split in SPLITS}
    taken = {id(picture) for picture in _every(kept)}
    for picture in _every(by_split):
        if id(picture) not in taken:
            left_out.add("pictures outside of the subset", picture.path)
    return kept


def _readings(path: str, folders: Mapping[Split, str], flat: Split | None) -> Iterator[tuple[str, Split, str]]:
    """Base, split and class of each reading of ``path`` as ``<base>/<split's folder>/<class>/...``.

    There is no class in the split that is ``flat``.
    """
    parts = path.split("/")
    for split, folder in folders.items():
        wanted, below = folder.split("/"), 0 if split == flat else 1
        for start in range(len(parts) - len(wanted) - below):
            if parts[start : start + len(wanted)] == wanted:
                yield "/".join(parts[:start]), split, FLAT if split == flat else parts[start + len(wanted)]


def _root(label: str, bases: Mapping[Split, Set[str]], folders: Mapping[Split, str], found: Sequence[Picture]) -> str:
    """The uppermost folder with both splits."""
    by_depth: dict[int, list[str]] = {}
    for base in sorted(bases["train"] & bases["test"]):
        by_depth.setdefault(len(PurePosixPath(base).parts), []).append(base)
    if by_depth:
        root, *others = by_depth[min(by_depth)]
        if others:
            both = f"{_both(folders)} lie in {brief(root, 60)}/ and in {brief(others[0], 60)}/"
            raise UserError(f"{label}: {both}; expected them in one folder")
        return root
    lacking = [brief(folders[split]) for split in SPLITS if not bases[split]]
    where = " or ".join(f"{folder}/<class>/" for folder in lacking) or f"{_both(folders)} of one folder"
    flat = next((one.path for one in found if any(_readings(one.path, {"test": folders["test"]}, "test"))), None)
    if not bases["test"] and flat is not None:
        raise UserError(f"{label}: no images in {where}, but {brief(flat)}; {LABELS}")
    raise UserError(f"{label}: no images in {where}; expected files such as .jpg and .png")


def _both(folders: Mapping[Split, str]) -> str:
    return " and ".join(f"{brief(folders[split])}/" for split in SPLITS)


def _check_classes(label: str, by_split: Mapping[Split, ByClass], folders: Mapping[Split, str]) -> None:
    train, test = (by_split[split].keys() for split in SPLITS)
    for name in sorted(train | test):
        if not name.isprintable() or name != name.strip():
            folder = f"{folders['train' if name in train else 'test']}/{name}"
            text = "expected a class name of printable characters in UTF-8, without a space at either end"
            raise UserError(f"{label}: the folder {brief(folder)} names a class; {text}")
    if not train & test:
        few = ", ".join(brief(name, 30) for name in sorted(test)[:NAMED])
        line = f"{label}: no class of {brief(folders['train'])}/ is in {brief(folders['test'])}/, which has {few}"
        raise UserError(f"{line}; expected the same folders, or {LABELS.removeprefix('expected ')}")
    for have, lack in ((SPLITS[0], SPLITS[1]), (SPLITS[1], SPLITS[0])):
        missing = sorted(by_split[have].keys() - by_split[lack].keys())
        if missing:
            named = ", ".join(brief(name, 30) for name in missing[:NAMED])
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            held, absent = brief(folders[have]), brief(folders[lack])
            raise UserError(f"{label}: class {named}{more} has images in {held}/ but none in {absent}/; expected both")
    if len(train) < 2:
        raise UserError(f"{label}: only one class, {brief(next(iter(train)))}; expected two or more")
