"""Guards calls that are spread over Ray: each has its result, few are under way at once, and errors come through."""

from __future__ import annotations

import dataclasses
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


def test_calls_of_one_name_all_have_their_results_when_nodes_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As jobs of decoding have, whose results name their rows. Each is made again, and once more for a second node."""
    monkeypatch.setattr(connection, "NODES_EVERY_S", 0.0)
    monkeypatch.setattr(connection, "CUT_OFF_S", 0.0)
    with connection.connect() as here:
        lost = dataclasses.replace(here.nodes[0], id="a" * 56)
        on = dataclasses.replace(here, address="a cluster", nodes=(*here.nodes, lost))
        under_way = spreading._Calls[None]("math.factorial", "factorials", spreading.ONE_CPU, on)
        for number in range(6):
            under_way.begin(spreading.Call(None, (number,)))
        for times, other in ((2, "b" * 56), (3, "c" * 56)):
            under_way._look()
            assert len(under_way.tasks) == 6 * times
            under_way.alive.add(other)  # which is gone by the next look
        found: list[int] = []
        while under_way.tasks:
            found += [result for _, result in under_way.ended()]
        assert sorted(found) == [math.factorial(number) for number in range(6)]
