"""Guards calls that are spread over Ray: each has its result, few are under way at once, and errors come through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cluster import connection, spreading
from pipelines.command.errors import UserError

CALLS = 20


def test_calls_have_their_results_and_few_are_under_way(tmp_path: Path) -> None:
    taken = 0

    def calls() -> Iterator[tuple[int, tuple[int]]]:
        nonlocal taken
        for number in range(CALLS):
            taken += 1
            yield number, (number,)

    with connection.connect():
        found: dict[int, int] = {}
        for number, result in spreading.spread("math.factorial", calls(), what="factorials", in_flight=3):
            assert taken <= len(found) + 3
            found[number] = result
        assert found == {number: math.factorial(number) for number in range(CALLS)}
        assert dict(spreading.spread("math.factorial", {"a": (3,), "b": (4,)}, what="factorials")) == {"a": 6, "b": 24}
        absent = {"file": (tmp_path / "absent.yaml",)}
        with pytest.raises(UserError, match=r"absent\.yaml"):
            list(spreading.spread("pipelines.config.yamlfile.read", absent, what="reading"))
        with pytest.raises(
            UserError, match="factorials, a node of the cluster: it has no module 'elsewhere'; expected the"
        ):
            list(spreading.spread("elsewhere.factorial", {"a": (3,)}, what="factorials"))
        with pytest.raises(ValueError, match="factorial"):
            list(spreading.spread("math.factorial", {"a": (-1,)}, what="factorials"))
