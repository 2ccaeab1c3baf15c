"""Photographs in folders, ``train/<class>/*`` and ``val/<class>/*``, from an archive or a directory, to arrays."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from pipelines.command.errors import UserError, brief, printable
from pipelines.command.files import expect_file, intruder
from pipelines.command.progress import counting
from pipelines.config.origins import Origin
from pipelines.data.containers import Files, Folder, LeftOut, open_archive
from pipelines.data.datasets import Images, Labels, Split, new_dataset, release_pages, writing
from pipelines.data.download import Patience, Remote, SourceError, download, is_url, mismatch, shown
from pipelines.data.layout import Layout, check_folders, lay_out
from pipelines.data.pictures import Undecodable, decode, quiet_libraries

THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes and scales outside Python's lock
IN_FLIGHT = 32  # images a thread that wait, packed, in memory
IN_FLIGHT_BYTES = 1 << 27  # that they may hold, but for the last of them
RELEASE_EVERY = 500  # images


def write(root: Path, name: str, origin: Origin, say: Callable[[str], None]) -> None:
    """Write ``datasets/<name>`` from the archive or folder that ``origin`` names; ``val`` becomes the test split.

    Images become squares of ``origin.size`` pixels, see :func:`decode`; files that are left out are logged by reason.
    Raises ``UserError`` where there is no archive, its pictures make no two splits of the same classes, or an image
    cannot be decoded.
    """
    folders: dict[Split, str] = {"train": origin.train, "test": origin.val}
    check_folders(f"params.yaml: datasets.{name}", folders)
    files, md5s = locate(root, name, origin, say)
    if not md5s:
        say(
            f"params.yaml: datasets.{name} has no md5: when its files change, `dvc repro -f fetch@{name}` takes them in"
        )
    left_out = LeftOut()
    try:
        layout = lay_out(files.label, files.scan(left_out), folders, left_out)
    except UserError:
        if left_out.reasons:
            say(f"{files.label}: left out: {left_out}")
        raise
    images = sum(map(len, layout.pictures.values()))
    say(f"{images} images of {len(layout.classes)} classes in {files.label}")
    _decode_all(root, name, origin.size, files, layout, md5s)
    say(f"{images} images taken from {files.label}; left out: {left_out}")


def locate(root: Path, name: str, origin: Origin, say: Callable[[str], None]) -> tuple[Files, dict[str, str]]:
    """The files of ``origin``, and the md5 of the archive they are in, by its name."""
    if origin.folder is not None:
        path = root / origin.folder
        if not path.is_dir():
            raise UserError(f"params.yaml: datasets.{name}.folder: no such folder: {brief(origin.folder)}")
        return Folder(path, brief(origin.folder)), {}
    assert origin.archive is not None
    path = _find_archive(root, name, origin.archive, origin, say)
    md5s = {} if origin.md5 is None else {PurePosixPath(origin.archive).name: origin.md5}
    return open_archive(path, brief(origin.archive)), md5s


def _decode_all(root: Path, name: str, size: int, files: Files, layout: Layout, md5s: Mapping[str, str]) -> None:
    rows: dict[str, list[tuple[Split, int]]] = {}  # of each file, which may have several names
    paths: dict[str, str] = {}
    for split, pictures in layout.pictures.items():
        for row, picture in enumerate(pictures):
            rows.setdefault(picture.place, []).append((split, row))
            paths[picture.place] = picture.path
    with (
        quiet_libraries(),
        new_dataset(
            root / "datasets",
            name,
            classes=layout.classes,
            shape=(3, size, size),
            train=len(layout.pictures["train"]),
            test=len(layout.pictures["test"]),
            source_md5=md5s,
        ) as arrays,
        counting(f"fetch: {name}: decoding", sum(map(len, rows.values())), unit="images") as advance,
        warnings.catch_warnings(action="ignore"),  # of odd EXIF, say; only errors matter
    ):
        for split, labels in layout.labels.items():
            arrays[split][1][:] = labels

        def store(place: str, packed: bytes) -> int:
            try:
                pixels = decode(packed, size)
            except Undecodable as error:
                raise UserError(
                    f"{files.label}: {brief(paths[place])} cannot be decoded ({brief(str(error))})"
                ) from None
            ours = rows.pop(place)  # so that a row is written once
            for split, row in ours:
                arrays[split][0][row] = pixels
            return len(ours)

        _in_threads(files.read(paths), store, advance, arrays)
        if rows:  # they would be black
            lost = next(paths[place] for place in rows)
            raise UserError(f"{files.label}: {brief(lost)} is not there any more; expected files that stay as they are")


def _in_threads(
    images: Iterator[tuple[str, bytes]],
    store: Callable[[str, bytes], int],
    advance: Callable[[int], None],
    arrays: Mapping[str, tuple[Images, Labels]],
) -> None:
    """Read in this thread, decode in others; the first error ends it."""
    waiting: deque[tuple[Future[int], int]] = deque()  # with the bytes that it holds
    held = 0

    def finish_one() -> None:
        nonlocal held
        done, size = waiting.popleft()
        advance(done.result())
        held -= size

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for count, (image, packed) in enumerate(images):
                waiting.append((pool.submit(store, image, packed), len(packed)))
                held += len(packed)
                while len(waiting) > THREADS * IN_FLIGHT or (held > IN_FLIGHT_BYTES and waiting):
                    finish_one()
                if count % RELEASE_EVERY == 0:
                    for array, _ in arrays.values():
                        release_pages(array)
            while waiting:
                finish_one()
        finally:
            pool.shutdown(cancel_futures=True)


def _find_archive(root: Path, name: str, archive: str, origin: Origin, say: Callable[[str], None]) -> Path:
    """The archive with the right size and md5; ``UserError`` with every place that was tried, and what was there."""
    mirror = os.environ.get("DATA_MIRROR", "")
    remote = is_url(mirror)
    places = [Path(mirror, archive)] if mirror and not remote else []
    seen = []
    for path in (*places, root / "data" / archive):
        problem = _problem(path, origin)
        if problem is None:
            say(f"{archive}: {path}" + (", md5 ok" if origin.md5 else ""))
            return path
        seen.append(f"{path}: {problem}")
        if problem != "absent":
            say(f"{archive}: not from {path}: {problem}")
    urls = [f"{mirror.rstrip('/')}/{quote(archive)}"] if remote else []
    urls += [origin.url] if origin.url else []
    for url in urls:
        try:
            return _download(root, name, archive, Remote(url=url, size=origin.bytes, md5=origin.md5), say)
        except SourceError as error:
            seen.append(f"{shown(url)}: {error}")
            say(f"{archive}: not from {shown(url)}: {error}")
    hint = "put it into data/ or point DATA_MIRROR at a directory or URL that has it"
    raise UserError(
        printable(f"params.yaml: datasets.{name}.archive: {archive} was not found ({'; '.join(seen)}); {hint}")
    )


def _problem(path: Path, origin: Origin) -> str | None:
    """The reason why the archive cannot be taken from ``path``; None where it can."""
    try:
        if not path.is_file():
            return intruder(path) or "absent"
        with path.open("rb") as file:
            file.read(1)  # without an md5 nothing else would notice here that it cannot be read
        return mismatch(path, origin.bytes, origin.md5)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _download(root: Path, name: str, archive: str, remote: Remote, say: Callable[[str], None]) -> Path:
    final = root / "data" / archive
    part = final.with_name(f".{final.name}.part")
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        expect_file(final)
        expect_file(part)
    download(remote, part, Patience(), archive)
    part.replace(final)
    say(f"{archive}: from {shown(remote.url)}" + (", md5 ok" if remote.md5 else ""))
    return final
