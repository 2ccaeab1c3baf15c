"""Guards the measured rate of a trial: a moment's work, whatever its recipe takes to prepare."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.training import speed
from pipelines.training.inputs import Inputs
from pipelines.training.predictions import Examiner
from tests.training.trials import planned


def test_what_takes_long_to_fit_is_not_fitted_for_a_measurement(project: Path) -> None:
    """ZCA on CIFAR-10 took longer than all measurements may: the row's length was unknown."""
    whitened = planned({"recipe.preprocess": [{"raw": {}}, {"gcn": {"scale": 55}}, {"zca": {"bias": 0.1}}]})
    assert speed.measure(whitened, 0.05) > 0
    (fitted,) = (project / "store/fitted").glob("*.pt")
    assert fitted.stat().st_size < 784 * 784 * 4  # the bytes of ZCA's matrix


def test_convolutions_in_fp32_are_computed_in_fp32(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU torch would compute them in TF32, in training as well as in evaluation."""
    one = planned()
    inputs = Inputs.of(one)
    for settle in (lambda: speed.measure(one, 0.01), lambda: Examiner(inputs, inputs.build(), 0, "cpu", "fp32")):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        settle()
        assert not torch.backends.cudnn.allow_tf32
