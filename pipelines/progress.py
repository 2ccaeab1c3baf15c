"""How far trials are, as text: one line a trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(path: Path, *, since: float) -> dict[str, Any] | None:
    """A trial's progress.json; None when there is none, or when it is older than ``since`` (a killed run's)."""
    try:
        found = json.loads(path.read_text())
        told: dict[str, Any] = found if float(found["time"]) >= since else {}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told or None


def line(name: str, state: Mapping[str, Any] | None) -> str:
    """One trial's line: name, epoch, loss, images/s and time left, from its progress.json."""
    if not state:
        return f"{name:<28} waiting"
    epochs = state["epochs"]
    parts = [f"{name:<28}", f"epoch {state['epoch']:>5.1f}/{epochs}"]
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


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s" if seconds % 60 else f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
