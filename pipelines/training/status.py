"""The progress of a trial, as its progress.json has it, and as a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command.errors import UserError
from pipelines.command.files import read_json
from pipelines.command.progress import duration, is_number

if TYPE_CHECKING:
    from pipelines.training.spec import Spec

PLATEAU = 0.005  # a loss of C classes this near to ln C, relatively, has never left it


def read(path: Path, *, since: float) -> dict[str, Any] | None:
    """A trial's progress.json; None where it is missing, damaged, or older than ``since`` (a killed run's)."""
    try:
        state = read_json(path)
    except UserError:
        return None
    sound = (
        isinstance(state.get("state"), str)
        and all(is_number(state.get(key)) and state[key] >= 0 for key in ("time", "epoch", "epochs"))
        and all(state.get(key) is None or is_number(state[key]) for key in ("loss", "images_per_s", "eta_s"))
    )
    return state if sound and state["epochs"] > 0 and state["time"] >= since else None


def line(name: str, state: Mapping[str, Any] | None) -> str:
    """One trial's line: name, epoch, loss, images/s and time left, from its progress.json.

    Epochs are over the images that the recipe trains on: fractions of one where the budget cuts the data.
    """
    if not state:
        return f"{name:<28} waiting"
    epochs = state["epochs"]
    parts = [f"{name:<28}", f"epoch {state['epoch']:>5.{1 if epochs >= 1 else 3}f}/{round(epochs, 3):g}"]
    if state.get("loss") is not None:
        parts.append(f"loss {state['loss']:.4f}")
    if state.get("images_per_s"):
        parts.append(f"{state['images_per_s']:,.0f} images/s")
    if state["state"] == "done":
        parts.append("done")
    elif state["state"] == "failed":
        parts.append("failed")
    elif state.get("eta_s") is not None:
        parts.append(f"{duration(state['eta_s'])} left")
    return "  ".join(parts)


def at_plateau(loss: str, losses: Sequence[float | None], classes: int) -> bool:
    """Whether a net is stuck at chance: after two epochs its cross-entropy is still that of a guess, ln C.

    ``losses`` has one mean training loss an epoch, so far. Other losses than ``cross_entropy`` have no such plateau.
    """
    last = losses[-1] if len(losses) >= 2 else None
    return loss == "cross_entropy" and last is not None and abs(last / math.log(classes) - 1) < PLATEAU


class Overview:
    """The progress of trials; a file is read only when it has changed, and never again once its trial is done."""

    def __init__(self, trials: Sequence[Spec], *, since: float) -> None:
        self.trials, self.since = trials, since
        self.states: dict[str, dict[str, Any] | None] = {trial.name: None for trial in trials}
        self._read: dict[str, int] = {}  # modification time of the file as read last, in ns

    def look(self) -> list[str]:
        """Read what has changed; the names of those trials."""
        changed = []
        for trial in self.trials:
            state = self.states[trial.name]
            if (state and state["state"] == "done") or (written := _written(trial.files.progress)) is None:
                continue
            if written != self._read.get(trial.name):
                self._read[trial.name] = written
                self.states[trial.name] = read(trial.files.progress, since=self.since)
                changed.append(trial.name)
        return changed

    def board(self, most: int) -> list[str]:
        """A line for each of at most ``most`` running trials, and a line with the number of the others."""
        self.look()
        running = [line(name, state) for name, state in self.states.items() if state and state["state"] == "running"]
        ended = sum(1 for state in self.states.values() if state and state["state"] != "running")
        waiting = len(self.states) - ended - len(running)
        more = f", {len(running) - most} more running" if len(running) > most else ""
        return [*running[:most], f"{ended} of {len(self.states)} trials done{more}, {waiting} waiting"]


def _written(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return None
