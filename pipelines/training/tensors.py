"""Files of plain tensors in torch's format, sealed where no other file holds their digest; any fault is one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch

from pipelines.command.errors import UserError
from pipelines.command.files import DamagedError, reading, reading_sealed, sealing


def load(path: Path, what: str) -> dict[str, Any]:
    """Names and tensors, on the CPU; UserError naming the file when it is missing, damaged or something else."""
    with reading(path) as file:
        return _load(file, path, what)


def load_sealed(path: Path, what: str) -> dict[str, Any]:
    """The names and tensors that ``save_sealed`` saved; DamagedError for any other file."""
    with reading_sealed(path) as file:
        return _load(file, path, what)


def save_sealed(path: Path, value: dict[str, Any]) -> None:
    """Replace ``path`` in one step by ``value`` and a digest."""
    with sealing(path) as file:
        torch.save(value, file)


@contextmanager
def laid_out(path: Path) -> Iterator[None]:
    """DamagedError where the block fails because ``path`` has another layout than our files."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is foreign: {type(error).__name__} {error!s:.80}") from None


def _load(file: BufferedReader, path: Path, what: str) -> dict[str, Any]:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        first = " ".join(str(error).split()).partition(". ")[0]  # advice follows, in colour
        reason = "".join(filter(str.isprintable, first))[:120]
        if isinstance(error, MemoryError) or "allocate memory" in reason:
            raise UserError(f"{path}: not enough memory to load it; expected more, or fewer trials at once") from None
        line = f"{path} is damaged or foreign; expected {what} ({type(error).__name__}: {reason})"
        raise DamagedError(line) from None
    if not isinstance(held, dict):
        raise DamagedError(f"{path} holds a {type(held).__name__}; expected {what}")
    return held
