"""The first cases of every area of ``make fuzz``; at least 2,000 in all."""

from __future__ import annotations

import pytest

from tests.fuzz import harness

CASES = 700  # an area


@pytest.mark.parametrize("area", sorted(harness.areas()))
def test_random_input_ends_well_or_in_one_line(area: str) -> None:
    case = harness.areas()[area]
    wrong = {seed: told for seed in range(CASES) if (told := harness.run(case, seed))}
    assert not wrong, f"{len(wrong)} of {CASES} failed; seed {min(wrong)}: {wrong[min(wrong)]}"
