"""The classes of validation images that lie in no class folders: from a list beside them, or from ILSVRC's devkit."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.command.errors import UserError, brief
from pipelines.data.containers import Files, LeftOut, Picture, open_archive

GROUND_TRUTH, SYNSETS = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"  # in the devkit
LEAVES = 1000  # classes, the synsets without children; their ILSVRC2012_IDs are the first (readme.txt)


@dataclass(frozen=True)
class LabelList:
    """Lines of ``<file name> <class> ...``, or of ``<class>`` alone in the order of the sorted file names."""

    where: str
    rows: Sequence[Sequence[str]]

    def assign(self, pictures: Mapping[str, Picture]) -> dict[str, list[Picture]]:
        """Sort ``pictures``, given by path below the split's folder, into classes.

        Raises ``UserError`` where a picture has no label, or a label no picture.
        """
        if all(len(row) == 1 for row in self.rows):
            if len(self.rows) != len(pictures):
                order = "expected one a line, in the order of the sorted file names"
                raise UserError(f"{self.where}: {len(self.rows)} labels for {len(pictures)} images; {order}")
            of_path = dict(zip(sorted(pictures), (row[0] for row in self.rows), strict=True))
        else:
            of_path = self._by_name(pictures)
        by_class: dict[str, list[Picture]] = {}
        for path, class_name in of_path.items():
            by_class.setdefault(class_name, []).append(pictures[path])
        return by_class

    def _by_name(self, pictures: Mapping[str, Picture]) -> dict[str, str]:
        names = {PurePosixPath(path).name: path for path in pictures}
        found: dict[str, str] = {}
        for number, row in enumerate(self.rows, 1):
            path = row[0] if row[0] in pictures else names.get(PurePosixPath(row[0]).name)
            if path is not None and len(row) > 1:
                if found.setdefault(path, row[1]) != row[1]:
                    twice = f"expected one class an image, not {found[path]} and another"
                    raise UserError(f"{self.where} line {number}: {brief(' '.join(row))}; {twice}")
            elif number > 1:  # the first line may be a heading
                expected = "expected the name of an image of the split, and its class"
                raise UserError(f"{self.where} line {number}: {brief(' '.join(row))}; {expected}")
        lacking = sorted(pictures.keys() - found.keys())
        if lacking:
            raise UserError(f"{self.where}: {brief(lacking[0])} has no label; images without one: {len(lacking)}")
        return found


def read_list(files: Files, picture: Picture) -> LabelList:
    """The list in the file ``picture`` of ``files``, its columns separated by tabs, else commas, else blanks."""
    (content,) = (content for _, content in files.read({picture.place: picture.path}))
    where = f"{files.label}: {brief(picture.path)}"
    try:
        lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{where}: not text in UTF-8; expected lines of a file name and its class") from None
    mark = next((mark for mark in ("\t", ",") if any(mark in line for line in lines)), None)
    return LabelList(where, [[cell.strip() for cell in line.split(mark)] for line in lines])


def read_devkit(path: Path, label: str) -> LabelList:
    """The WordNet ids of ILSVRC's validation images, sorted by name, from the devkit's archive.

    Its ground truth has one ILSVRC2012_ID a line; meta.mat, a MATLAB file, has the WordNet id of each.
    """
    files = open_archive(path, label)
    truth, synsets = (_whole(files, name) for name in (GROUND_TRUTH, SYNSETS))
    by_number = _wordnet_ids(label, synsets)
    numbers = truth.decode("ascii", "replace").split()
    strange = next((number for number in numbers if number not in by_number), None)
    if strange is not None or not numbers:
        held = "nothing" if strange is None else f"'{brief(strange, 20)}'"
        raise UserError(f"{label}: {GROUND_TRUTH} holds {held}; expected the ILSVRC2012_ID of a class a line")
    return LabelList(label, [[by_number[number]] for number in numbers])


def _whole(files: Files, name: str) -> bytes:
    found = [one for one in files.scan(LeftOut(), name) if f"/{one.path}".endswith(f"/{name}")]
    if not found:
        raise UserError(f"{files.label}: {name} is missing; expected ILSVRC2012_devkit_t12.tar.gz, as published")
    ((_, content),) = files.read({found[0].place: found[0].path})
    return content


def _wordnet_ids(label: str, synsets: bytes) -> dict[str, str]:
    from scipy.io import loadmat

    try:
        table = loadmat(io.BytesIO(synsets), squeeze_me=True)["synsets"]
        pairs = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table}
    except Exception as error:  # SciPy raises errors of many kinds
        raise UserError(f"{label}: {SYNSETS} cannot be read ({brief(str(error))}); expected it as published") from None
    return {number: wordnet_id for number, wordnet_id in pairs.items() if int(number) <= LEAVES}
