"""Files of plain tensors, as torch saves them: read with a line for what is wrong, and sealed where nothing vouches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import CheckpointIO

from pipelines.command.errors import UserError
from pipelines.training import store


def load(path: Path, what: str) -> dict[str, Any]:
    """Names and tensors; UserError naming the file when it is missing, damaged or something else."""
    with store.reading(path) as file:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except UserError:
            raise
        except Exception as error:
            said = " ".join(str(error).split()).partition(". ")[0]  # what follows is advice, with colours
            reason = "".join(filter(str.isprintable, said))[:120]
            if isinstance(error, MemoryError) or "allocate memory" in reason:
                raise UserError(
                    f"{path}: not enough memory to load it; expected more, or fewer trials at once"
                ) from None
            line = f"{path} is damaged or foreign; expected {what} ({type(error).__name__}: {reason})"
            raise store.DamagedError(line) from None
    if not isinstance(found, dict):
        raise store.DamagedError(f"{path} holds a {type(found).__name__}; expected {what}")
    return found


def load_sealed(path: Path, what: str) -> dict[str, Any]:
    """What ``save_sealed`` saved; DamagedError where it is not what was saved."""
    store.check_seal(path)
    return load(path, what)


def save_sealed(path: Path, value: dict[str, Any]) -> None:
    """Replace ``path`` in one step by ``value`` and a digest."""
    with store.sealing(path) as file:
        torch.save(value, file)


class Checkpoints(CheckpointIO):
    """How Lightning saves and loads a trial's checkpoint, whatever it thinks of when to.

    Its own way copies the whole in memory, and leaves a file that only its owner may read.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace the checkpoint in one step: a kill at any moment leaves the last one or the new one."""
        save_sealed(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Only what is whole; tensors come to the CPU, and nothing but plain types is loaded."""
        return load_sealed(Path(path), "a checkpoint")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Lightning removes none of ours."""
        Path(path).unlink(missing_ok=True)
