"""Guards the numbers: short trainings of real recipes come to the very losses and weights that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import trainings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all rows: those with the same preprocessing share what is fitted."""
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", trainings.ROWS)
def test_losses_and_weights_are_the_committed_ones(name: str, home: Path) -> None:
    golden = trainings.FOLDER / trainings.platform() / f"{name}.txt"
    if not golden.exists():
        pytest.skip(f"no golden losses of {trainings.platform()}; write them with: python -m tests.golden")
    assert trainings.train(name, home) == golden.read_text(encoding="utf-8")
