"""Guards the placing of trials, by a clock: no device is idle while a trial waits that could have it."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import placement as simulated
from pipelines.cluster import placement
from pipelines.cluster.placement import Job, Need, Node, Placing, Start
from pipelines.config.params import load_params
from tests.conftest import ROOT

FOUR = [Node(cpus=16, gpus=4, id="a")]
QUARTER, WHOLE = Need(gpus=0.25), Need(gpus=1.0)


def jobs(need: Need, *seconds: float, workers: int = 1, start: int = 0) -> list[Job]:
    return [
        Job(key=f"{need} {workers} {number}", need=need, seconds=each, counts=(workers,))
        for number, each in enumerate(seconds, start)
    ]


def on_gpus(starts: list[Start]) -> list[int]:
    """How many trials each GPU has that has any, sorted."""
    return sorted(Counter((seat.node, seat.gpu) for start in starts for seat in start.seats).values())


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.25, 8, [2, 2, 2, 2]), (0.25, 3, [1, 1, 1]), (0.25, 99, [4, 4, 4, 4]), (0.6, 9, [1, 1, 1, 1])],
)
def test_fractions_spread_over_all_gpus_before_two_share_one(share: float, count: int, expected: list[int]) -> None:
    assert on_gpus(Placing(jobs(Need(gpus=share), *[1.0] * count), FOUR).starts(0)) == expected


def test_fractions_leave_whole_gpus_to_those_that_wait_for_them() -> None:
    placing = Placing([*jobs(QUARTER, *[9.0] * 4), *jobs(WHOLE, *[8.0] * 3)], FOUR)
    assert on_gpus(placing.starts(0)) == [1, 1, 1, 4]


def test_fractions_spread_over_nodes_and_share_a_gpus_part_of_the_cpus() -> None:
    nodes = [Node(cpus=2, gpus=1, id="a"), Node(cpus=2, gpus=1, id="b")]
    assert on_gpus(Placing(jobs(QUARTER, *[1.0] * 8), nodes).starts(0)) == [2, 2]
    alone = Placing([*jobs(QUARTER, 9.0), *jobs(Need(), *[1.0] * 9)], nodes)
    assert len(alone.starts(0)) == 3  # two on the CPUs that belong to no shared GPU


def test_distributed_trials_run_side_by_side_as_they_fit_and_on_few_nodes() -> None:
    nodes = [Node(cpus=2, id="a"), Node(cpus=4, id="b"), Node(cpus=2, id="c")]
    starts = Placing(jobs(Need(), 3.0, 3.0, 3.0, workers=3), nodes).starts(0)
    assert [len({seat.node for seat in start.seats}) for start in starts] == [1, 2]


def test_an_elastic_trial_takes_what_fits_now_and_as_long_as_that_takes() -> None:
    elastic = Job(key="elastic", need=Need(), seconds=10.0, counts=(4, 2, 1))
    for cpus, taken, end in ((9, 4, 10.0), (3, 2, 20.0), (1, 1, 40.0)):
        (start,) = Placing([elastic], [Node(cpus=cpus, id="a")]).starts(0)
        assert (len(start.seats), start.end) == (taken, end)


def test_memory_and_other_resources_count_like_cpus() -> None:
    need = Need(others=(("accelerator_type:H100", 0.001), ("memory", 4e9)))
    h100 = Node(cpus=8, others={"accelerator_type:H100": 1.0, "memory": 9e9}, id="a")
    other = Node(cpus=8, others={"accelerator_type:V100": 1.0, "memory": 64e9}, id="b")
    assert [h100.holds(need), other.holds(need)] == [2, 0]
    assert need.options == {
        "num_cpus": 1,
        "num_gpus": 0.0,
        "memory": 4e9,
        "resources": {"accelerator_type:H100": 0.001},
    }
    placing = Placing(jobs(need, 3.0, 2.0, 1.0), [other, h100])
    first, second = placing.starts(0)
    assert {start.seats[0].node for start in (first, second)} == {"a"}
    placing.ended(second.job.key)
    assert len(placing.starts(1)) == 1


def test_what_does_not_fit_yet_lets_others_pass_and_is_trained_all_the_same() -> None:
    nodes = [Node(cpus=2, gpus=2, id="a")]
    order = [*jobs(WHOLE, 7.0), *jobs(WHOLE, 9.0, workers=2), *jobs(WHOLE, *[4.0] * 4, start=1)]
    outcome = placement.simulate(order, nodes)
    (both,) = (start for start in outcome.starts if start.job.counts == (2,))
    assert (both.begin, outcome.seconds) == (12.0, 21.0)  # 24 s with a GPU kept for it
    fractions = [*jobs(QUARTER, *range(20, 24)), *jobs(WHOLE, 19.0), *jobs(QUARTER, *[3.0] * 30, start=4)]
    outcome = placement.simulate(fractions, [Node(cpus=8, gpus=1, id="a")])
    assert len(outcome.starts) == len(fractions) and outcome.starts[-1].job.need == WHOLE


def test_the_order_is_the_longest_first_where_no_better_one_is_found() -> None:
    nodes = [Node(cpus=2, id="a")]
    found = placement.in_order(jobs(Need(), 1.0, 3.0, 2.0), nodes)
    assert [job.seconds for job in found] == [3.0, 2.0, 1.0]
    lengths = [3.0, 3.0, 2.0, 2.0, 2.0]  # the longest first: 7
    assert placement.simulate(placement.in_order(jobs(Need(), *lengths), nodes), nodes).seconds == 6
    unknown = placement.in_order(jobs(Need(), 5.0, float("inf")), nodes)
    assert [job.seconds for job in unknown] == [float("inf"), 5.0]


def test_nodes_come_and_go_while_trials_run() -> None:
    placing = Placing(jobs(Need(), *[1.0] * 5), [Node(cpus=2, id="a")])
    first, second = placing.starts(0)
    placing.now_on([Node(cpus=2, id="a"), Node(cpus=1, id="b")])
    (third,) = placing.starts(1)
    assert third.seats[0].node == "b"
    placing.now_on([Node(cpus=1, id="b")])
    placing.again(placing.ended(first.job.key))
    placing.ended(second.job.key)
    assert placing.starts(2) == []
    placing.ended(third.job.key)
    (again,) = placing.starts(3)
    assert again.job == first.job and again.seats[0].node == "b"


def test_a_node_that_comes_changes_nothing_on_the_others() -> None:
    """A shared GPU's reservation keeps the CPUs that it was made with, though more have come free since."""
    node = Node(cpus=4, gpus=1, id="a")
    placing = Placing([*jobs(Need(cpus=2), 9.0), *jobs(QUARTER, *[8.0] * 4)], [node])
    on_cpus, *sharing = placing.starts(0)
    assert (on_cpus.job.need.cpus, len(sharing)) == (2, 2)  # of the four, as the reservation has two CPUs
    placing.ended(on_cpus.job.key)
    placing.now_on([node, Node(cpus=1, id="b")])
    assert placing.starts(1) == []


@pytest.mark.slow  # places all trials of the papers on up to 1,024 GPUs
def test_the_suite_paper_fills_a_cluster() -> None:
    """No placing beats the longest trial, nor all work shared out evenly."""
    params = load_params(ROOT / "params.yaml")
    names = params.suites["paper"].benchmarks
    waiting = list(simulated.jobs(params, names, simulated.cluster(1)))
    seeds = [seed for name in names for seed in params.benchmark(name).budgets["paper"].seeds]
    assert len(waiting) == len(seeds)
    for gpus in (1, 8, 64, 1024):
        nodes = simulated.cluster(gpus).nodes
        outcome = placement.simulate(placement.in_order(waiting, nodes), nodes)
        assert len(outcome.starts) == len(waiting)
        assert simulated.use(outcome, gpus).ratio >= 0.9
