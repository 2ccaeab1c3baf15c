"""The run store: trials during and after their training, each in a folder named by its key.

The key stands for all that decides a trial's weights: a finished trial never trains twice, a killed one continues at
its last checkpoint. The store lies outside DVC's outs, which DVC deletes before a stage runs. It may be a shared
directory of a cluster: ``$RUN_STORE``.

Every file behind a result carries a sha256 that each reader checks: ``result.json`` holds its own and those of the
weights and the curve, in the store and where a stage copies them; checkpoints and fitted preprocessing end in theirs
(``sealing``). A damaged file is renamed to ``<name>.damaged`` and made anew.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from pipelines.command.errors import UserError
from pipelines.command.files import remove
from pipelines.command.folders import require_folder

TEMPORARY = "writing"  # in the name of a file that is not whole yet
SEAL = b"\nsha256 "  # comes before the digest at the end of a sealed file
SHA256_DIGITS = 64


class DamagedError(UserError):
    """A file that is not what was written: it must not go on as a result."""


class MissingError(DamagedError):
    """A file that is not there."""


def default() -> Path:
    """``$RUN_STORE``, or ``store/`` in the working directory; absolute, since Ray's workers run elsewhere."""
    return Path(os.environ.get("RUN_STORE") or "store").absolute()


def key(config: Mapping[str, Any], dataset_digest: str, seed: int, code: Mapping[str, str]) -> str:
    """The trial's key: 16 hex digits of the hash of its config, data, seed and code (``fingerprint.of_training``)."""
    identity = {"config": config, "dataset": dataset_digest, "sources": code, "seed": seed}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TrialFiles:
    """The files of one trial."""

    folder: Path

    @property
    def trial(self) -> Path:
        """What is trained: benchmark, seed, resolved config, digests."""
        return self.folder / "trial.json"

    @property
    def progress(self) -> Path:
        """How far it is, rewritten every few seconds."""
        return self.folder / "progress.json"

    @property
    def curve(self) -> Path:
        """One JSON object a line, one line a finished epoch."""
        return self.folder / "curve.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Lightning's checkpoint: weights, optimiser, position in the data, curve so far."""
        return self.folder / "last.ckpt"

    @property
    def weights(self) -> Path:
        """The state dict at the end of the last epoch."""
        return self.folder / "weights.pt"

    @property
    def result(self) -> Path:
        """The provenance; written last, so that its presence means the trial is finished."""
        return self.folder / "result.json"

    @property
    def kept(self) -> tuple[Path, Path, Path]:
        """The files of a finished trial that later stages read."""
        return self.weights, self.curve, self.result

    @property
    def finished(self) -> bool:
        """Whether the trial is trained to its end, and its files are whole."""
        with suppress(DamagedError):
            self.read_result(self.folder.name)
            return True
        return False

    def read_result(self, key: str | None, *, weights: bool = True) -> dict[str, Any]:
        """The provenance of the trial ``key`` (None: of any), with its digest and those of its files checked.

        Without ``weights`` these are not read, for those who have no use for them.

        Raises DamagedError for one that is missing, differs from its digest, or belongs to another trial.
        """
        result = read_json(self.result)
        digests = result.get("files")
        if result.get("digest", "") != _own_digest(result) or not isinstance(digests, dict):
            raise DamagedError(f"{self.result} is damaged, or older than digests: it does not hold its own")
        if key is not None and result.get("key") != key:
            raise DamagedError(f"{self.result} is of another trial (key {result.get('key')}); expected {key}")
        for path in (self.weights, self.curve) if weights else (self.curve,):
            if digest(path) != digests.get(path.name):
                raise DamagedError(f"{path} is damaged: its sha256 is not the one in {self.result.name}")
        return result

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the provenance with the digests of weights and curve; from now on the trial is finished."""
        whole = json.loads(json.dumps({**result, "files": {p.name: digest(p) for p in (self.weights, self.curve)}}))
        write_json(self.result, whole | {"digest": _own_digest(whole)})

    def inspect(self, name: str) -> str | None:
        """Set aside a damaged result, so that the trial called ``name`` trains again; a line where there was one.

        Only under the trial's lock.
        """
        if os.path.lexists(self.result):
            try:
                self.read_result(self.folder.name)
            except DamagedError as error:
                for path in self.kept:
                    set_aside(path)
                return f"{error}; set aside, and {name} is trained again"
        return None

    def inspect_checkpoint(self, name: str) -> str | None:
        """The same for a damaged checkpoint; a trial that resumes checks its own as it reads it."""
        if os.path.lexists(self.checkpoint):
            try:
                check_seal(self.checkpoint)
            except DamagedError as error:
                set_aside(self.checkpoint)
                return f"{error}; set aside, and {name} is trained from the start"
        return None

    def sweep(self) -> None:
        """Remove the temporary files of killed writers. Only under the trial's lock."""
        for path in self.folder.glob(f".*.{TEMPORARY}.*"):
            with suppress(OSError):
                path.unlink()


def _own_digest(result: Mapping[str, Any]) -> str | None:
    """The right value of ``digest``; None where the rest is nested too deep to be ours."""
    rest = {key: value for key, value in result.items() if key != "digest"}
    try:
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        return None


def write_json(path: Path, value: Any, *, lasting: bool = True) -> None:
    """Replace ``path`` in one step, so that a reader sees the old or the new whole.

    Also after a crash of the machine, unless it is not ``lasting``: to wait for the disk takes long on shared storage.
    """
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), lasting=lasting)


def write_bytes(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Replace ``path`` in one step."""
    with replacing(path, lasting=lasting) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on a clean exit it takes that name, otherwise it goes."""
    require_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{TEMPORARY}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary
        if lasting:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a file") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def sealing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to; on a clean exit it replaces ``path``, followed by the digest of what was written.

    torch.load and unzip read the result as they would without.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        hashing = _Hashing(file)
        yield cast(IO[bytes], hashing)
        file.write(SEAL + hashing.sum.hexdigest().encode())
        file.flush()


class _Hashing:
    """The part of a file's interface that torch.save needs, hashing what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def check_seal(path: Path) -> None:
    """DamagedError unless ``path`` ends in the digest of what comes before."""
    with reading_sealed(path):
        pass


@contextmanager
def reading_sealed(path: Path) -> Iterator[BufferedReader]:
    """A file that ends in the digest of what comes before, open at its beginning; DamagedError for any other."""
    with reading(path) as file:
        left = os.fstat(file.fileno()).st_size - len(SEAL) - SHA256_DIGITS
        seen = hashlib.sha256()
        while left > 0 and (part := file.read(min(left, 2**20))):
            seen.update(part)
            left -= len(part)
        if left or file.read() != SEAL + seen.hexdigest().encode():
            raise DamagedError(f"{path} is damaged, or older than digests: it does not end in its sha256")
        file.seek(0)
        yield file


def set_aside(path: Path) -> None:
    """Rename ``path``, whatever it is, to ``<name>.damaged``, for a person to look at; replaces an earlier one."""
    if os.path.lexists(path):
        kept = path.with_name(f"{path.name}.damaged")
        remove(kept)
        path.rename(kept)


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """A regular file, open; DamagedError for what is missing, something else or unreadable; no pipe is waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{path} is missing; expected a file that an earlier stage writes") from None
    except OSError as error:
        kind = DamagedError if error.errno in (errno.ELOOP, errno.ENXIO) else UserError  # a socket; no right
        raise kind(f"{path} can't be read ({error.strerror}); expected a file") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"{path} is no regular file; expected one")
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise DamagedError(f"{path} can't be read ({error.strerror})") from None


def digest(path: Path) -> str:
    """The sha256 of a file; DamagedError where there is none. Hashed once, as long as it is not written to."""
    with reading(path) as file:
        about = os.fstat(file.fileno())
        version = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        return _digest(path, version)


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, version: tuple[int, ...]) -> str:
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; DamagedError when the file is missing or damaged."""
    found = _parsed(path)
    if not isinstance(found, dict):
        raise DamagedError(f"{path} is damaged: it holds a {type(found).__name__}; expected an object")
    return found


def read_list(path: Path) -> list[Any]:
    """The list in ``path``; DamagedError when the file is missing or damaged."""
    found = _parsed(path)
    if not isinstance(found, list):
        raise DamagedError(f"{path} is damaged: it holds a {type(found).__name__}; expected a list")
    return found


def _parsed(path: Path) -> Any:
    with reading(path) as file:
        text = file.read()
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}); expected JSON") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, [] when there is none; a last line without an end is one still being written."""
    try:
        with reading(path) as file:
            text = file.read()
    except MissingError:
        return []
    try:
        lines = text.decode().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error}); expected one JSON object a line") from None
    others = {type(line).__name__ for line in found} - {"dict"}
    if others:
        raise DamagedError(f"{path} is damaged: it holds a {others.pop()}; expected one JSON object a line")
    return found
