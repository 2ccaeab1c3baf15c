"""Every rule of the verdict table on cases worked out by hand."""

from __future__ import annotations

import functools

import pytest
from scipy import stats

from pipelines.results.verdicts import (
    Verdict,
    ablation_margin,
    claim_margin,
    clipped,
    difference,
    interval,
    judge,
    judge_ablation,
)

# Five seeds 0.1 apart: standard deviation sqrt(0.1 / 4) = 0.158114, so with t(0.975, 4) = 2.776 the half width is
# 2.776 * 0.158114 / sqrt(5) = 0.1963.
STEPS = (-0.2, -0.1, 0.0, 0.1, 0.2)
# A claim of 50 % on 10,000 images: margin 1.96 * sqrt(0.25 / 10,000) = 0.98 points, so 49.02 to 50.98.
CLAIM, IMAGES = 50.0, 10_000


def five(mean: float) -> list[float]:
    return [mean + step for step in STEPS]


def verdict(values: list[float], *, short: bool = False, metric: str = "error") -> Verdict:
    return judge(metric=metric, claim=CLAIM, test_images=IMAGES, values=values, short=short)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (five(1.2), 1.2 - 0.1963, 1.2 + 0.1963),
        ([51.0, 51.0, 54.0], 52 - 4.303, 52 + 4.303),  # standard error sqrt(3) / sqrt(3) = 1
        ([1.0, 2.0, 3.0], 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5),  # t(0.975, 2) = 4.303, standard deviation 1
    ],
)
def test_interval_is_students_t(values: list[float], low: float, high: float) -> None:
    assert interval(values) == pytest.approx((low, high), abs=1e-3)


def test_an_interval_ends_where_percentages_do() -> None:
    assert clipped([1.0, 1.0, 4.0]) == pytest.approx((0.0, 2 + 4.303), abs=1e-3)
    assert clipped([99.0, 99.0, 96.0]) == pytest.approx((98 - 4.303, 100.0), abs=1e-3)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 3.0], [1.0, 1.0]])
def test_fewer_than_three_seeds_have_no_interval(values: list[float]) -> None:
    assert interval(values) is None and clipped(values) is None


def test_equal_seeds_have_an_interval_of_no_width() -> None:
    assert interval([1.1] * 5) == (1.1, 1.1)


def test_without_a_figure_to_compare_with_there_is_no_claim_however_much_was_run() -> None:
    for values in ([], five(1.2)):
        assert judge(metric="error", claim=None, test_images=100, values=values, short=False) is Verdict.NO_CLAIM


def test_a_top_5_error_is_judged_as_an_error_is() -> None:
    for values in (five(18.0), five(20.0)):
        one, other = (
            judge(metric=metric, claim=18.2, test_images=50_000, values=values, short=False)
            for metric in ("error", "top-5 error")
        )
        assert one is other


@pytest.mark.parametrize(
    ("value", "images", "margin"),
    [
        (50.0, 10_000, 0.98),
        (0.95, 10_000, 0.1901),  # 1.96 * sqrt(0.0095 * 0.9905 / 10,000)
        (20.0, 1_000, 2.4792),  # 1.96 * sqrt(0.16 / 1,000)
        (0.0, 100, 0.0),
    ],
)
def test_margin_is_binomial(value: float, images: int, margin: float) -> None:
    assert claim_margin(value, images) == pytest.approx(margin, abs=1e-4)
    assert claim_margin(100 - value, images) == pytest.approx(margin, abs=1e-4)  # an accuracy errs like its error


# (values, trained shorter than published, verdict)
CASES: list[tuple[list[float], bool, Verdict]] = [
    ([], False, Verdict.UNTESTED),
    ([], True, Verdict.UNTESTED),
    # Five seeds at the published length.
    (five(48.80), False, Verdict.BETTER),  # high 48.996 < 49.02
    (five(48.90), False, Verdict.REPRODUCED),  # high 49.096: below the claim, but not below its margin
    (five(50.00), False, Verdict.REPRODUCED),
    (five(50.70), False, Verdict.REPRODUCED),  # high 50.896 <= 50.98
    (five(50.80), False, Verdict.INCONCLUSIVE),  # 50.604 to 50.996 straddles 50.98
    (five(51.10), False, Verdict.INCONCLUSIVE),  # low 50.904
    (five(51.20), False, Verdict.NOT_REPRODUCED),  # low 51.004 > 50.98
    ([40.0, 60.0, 40.0, 60.0, 50.0], False, Verdict.INCONCLUSIVE),  # so wide that nothing can be said
    # Equal seeds are compared as a point.
    ([49.0] * 5, False, Verdict.BETTER),
    ([50.9] * 5, False, Verdict.REPRODUCED),
    ([51.0] * 5, False, Verdict.NOT_REPRODUCED),
    # Fewer than five seeds at the published length never conclude, however clear they look.
    ([10.0], False, Verdict.INCONCLUSIVE),
    ([90.0], False, Verdict.INCONCLUSIVE),
    ([10.0, 10.1, 10.2, 10.3], False, Verdict.INCONCLUSIVE),
    ([90.0, 90.1, 90.2, 90.3], False, Verdict.INCONCLUSIVE),
    # Shorter than published: not there is under budget, also when it straddles or has no interval.
    (five(51.20), True, Verdict.UNDER_BUDGET),
    (five(50.80), True, Verdict.UNDER_BUDGET),
    ([90.0, 90.1], True, Verdict.UNDER_BUDGET),
    ([10.0, 10.1], True, Verdict.UNDER_BUDGET),  # no interval yet
    ([10.0], True, Verdict.UNDER_BUDGET),
    # Shorter than published and there: five seeds conclude, fewer do not.
    (five(50.70), True, Verdict.REPRODUCED),
    (five(48.80), True, Verdict.BETTER),
    ([10.0, 10.1, 10.2, 10.3], True, Verdict.INCONCLUSIVE),
]


@pytest.mark.parametrize(("values", "short", "expected"), CASES)
def test_error_claims(values: list[float], short: bool, expected: Verdict) -> None:
    assert verdict(values, short=short) is expected


@pytest.mark.parametrize(("values", "short", "expected"), CASES)
def test_accuracy_claims_are_the_mirror_image(values: list[float], short: bool, expected: Verdict) -> None:
    assert verdict([100 - value for value in values], short=short, metric="accuracy") is expected


def test_better_accuracy_is_higher() -> None:
    assert verdict(five(60.0), metric="accuracy") is Verdict.BETTER
    assert verdict(five(60.0), metric="error") is Verdict.NOT_REPRODUCED


def test_a_smaller_test_set_forgives_more() -> None:
    values = five(82.0)  # an error of 82 beside 80: 81.80 to 82.20
    assert judge(metric="error", claim=80, test_images=1_000, values=values, short=False) is Verdict.REPRODUCED
    assert judge(metric="error", claim=80, test_images=10_000, values=values, short=False) is Verdict.NOT_REPRODUCED


def test_a_difference_has_welchs_interval() -> None:
    values, others = [42.1, 42.3, 41.9, 42.6, 42.0], [40.7, 40.9, 40.2]
    expected = stats.ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    assert difference(values, others) == pytest.approx((expected.low, expected.high))
    assert difference(values, values[:2]) is None
    assert difference([42.0] * 3, [40.5] * 3) == (1.5, 1.5)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [  # of 1.4 points claimed with a margin of 0.61; Welch's interval on STEPS is +-0.23
        (1.4, Verdict.REPRODUCED),
        (1.05, Verdict.REPRODUCED),  # 0.82 to 1.28
        (0.9, Verdict.INCONCLUSIVE),  # 0.67 to 1.13
        (0.5, Verdict.NOT_REPRODUCED),  # 0.27 to 0.73: the part helps, by less
        (-1.4, Verdict.NOT_REPRODUCED),
        (2.4, Verdict.NOT_REPRODUCED),
    ],
)
def test_an_ablation_is_judged_on_its_difference_to_the_whole_net(gap: float, expected: Verdict) -> None:
    margin = ablation_margin(40.7, 50_000)
    assert margin == pytest.approx(0.609, abs=1e-3)
    pair = {"values": five(41 + gap), "others": five(41)}
    assert judge_ablation(claim=1.4, margin=margin, short=False, **pair) is expected
    short = judge_ablation(claim=1.4, margin=margin, short=True, **pair)
    assert short is (expected if expected is Verdict.REPRODUCED else Verdict.UNDER_BUDGET)


def test_an_ablation_of_a_small_part_must_still_be_seen_to_lose() -> None:
    """0.4 points are less than their own sampling error: an interval around nothing lies within that margin."""
    judged = functools.partial(judge_ablation, claim=0.4, margin=ablation_margin(40.7, 50_000), short=False)
    assert judged(values=five(41.1), others=five(41)) is Verdict.INCONCLUSIVE
    assert judged(values=five(41.3), others=five(41)) is Verdict.REPRODUCED
    assert judged(values=five(41.3), others=five(41)[:4]) is Verdict.INCONCLUSIVE
    assert judged(values=five(41.3), others=[]) is Verdict.UNTESTED
