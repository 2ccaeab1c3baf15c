"""Boosting: each later member trains on what the earlier ones find hard, on nothing else, and resumes bit for bit."""

from __future__ import annotations

import copy
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines import trial
from pipelines.cluster import estimate
from pipelines.command import progress
from pipelines.command.errors import UserError
from pipelines.command.files import read_json, write_json
from pipelines.config import schema
from pipelines.config.benchmarks import Benchmark
from pipelines.config.recipes import Boosting, Schedule
from pipelines.data import batches
from pipelines.training import boosting, checkpoint, checks, core, schedules, spec, speed, trainer
from pipelines.training.boosting import BoostedBatches, Examples
from pipelines.training.inputs import Inputs
from pipelines.training.spec import Spec
from tests.conftest import THREADS, hide_test_images
from tests.training.trials import same

NAME = "committee-mnist"
COUNT, BATCH = 300, 20
# Two epochs at twice the paper's pace: the first member trains for one, the others for half of the second one each.
BLOCK: dict[str, Any] = {
    "dataset": "mnist",
    "model": {"family": "lenet", "name": "boosted_lenet4", "options": {"init": "sqrt_fan_in"}},  # learns in fewer steps
    "recipe": {
        "preprocess": [{"pad": {"pixels": 2}}, {"scale": {"low": -0.1, "high": 1.175}}],
        "augment": [{"affine": {"fill": -0.1, "originals": 0.1}}],
        "subset": {"first": COUNT},
        "batch": BATCH,
        "optimiser": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
        "boosting": {"epochs": [2, 1, 1], "candidates": 1400},
    },
    "evaluation": {},
    "resources": {},
    "budgets": {"paper": {"epochs": 4, "seeds": [0]}, "laptop": {"epochs": 2, "seeds": [0]}},
    "claim": {
        "metric": "error",
        "value": 0.7,
        "source": "this test",
        "protocol": "none",
        "certainty": "computed",
        "test_images": 10_000,
    },
}
FEWER = {"recipe.boosting": {"epochs": [2, 1, 1], "candidates": 600}}  # than fill a set


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As trials run: small batches are not shared out over threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(threads)


def planned(changes: Mapping[str, Any] | None = None, *, root: str = "store") -> Spec:
    """The trial of ``BLOCK`` with ``{"recipe.batch": 7}`` applied to it."""
    block = copy.deepcopy(BLOCK)
    for dotted, value in (changes or {}).items():
        parent, _, last = dotted.rpartition(".")
        (block[parent] if parent else block)[last] = value
    benchmark = schema.parse(Benchmark, block, f"models/lenet.yaml: {NAME}", name=NAME)
    return spec.plan(benchmark, "laptop", 0, data=Path("datasets"), root=Path(root), threads=THREADS)


def prepared(one: Spec) -> BoostedBatches:
    """The trial's batches, as for its start."""
    loader, _ = core.assemble(one, Inputs.of(one))
    assert isinstance(loader, BoostedBatches)
    return loader


def taught(one: Spec) -> BoostedBatches:
    """The trial's batches with a first and second member that know something: each has trained for two epochs."""
    loader = prepared(one)
    for number in (0, 1):
        net, ordinary = loader.members[number], prepared(one)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(2):
            ordinary.load_state_dict({"epoch": 0, "done": 0})
            for images, labels in ordinary:
                optimiser.zero_grad()
                nn.functional.cross_entropy(net(images), labels).backward()
                optimiser.step()
    return loader


def all_candidates(loader: BoostedBatches, member: int) -> Examples:
    seen = list(loader.candidates(member))
    return Examples(torch.cat([part.images for part in seen]), torch.cat([part.labels for part in seen]))


@torch.no_grad()
def answers(net: nn.Module, images: Tensor) -> Tensor:
    """As the batches ask them, so many at a time: a convolution's rounding may depend on it."""
    return torch.cat([net(part).argmax(1) for part in images.split(boosting.AT_A_TIME)])


def equal(first: Examples, second: Examples) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


# --- what a member trains on ---


def test_candidates_are_distorted_training_images_pass_after_pass(project: Path) -> None:
    loader = prepared(planned())
    seen = all_candidates(loader, 1)
    assert len(seen) == 700  # the paper's 1,400 at twice the pace: two passes and a third of one
    plain = loader.preprocess(loader.images[:COUNT])
    labels = Counter(loader.labels[:COUNT].tolist())
    for start in (0, COUNT):
        assert Counter(seen.labels[start : start + COUNT].tolist()) == labels
    assert not torch.equal(seen.labels[:COUNT], seen.labels[COUNT : 2 * COUNT])  # each in an order of its own
    originals = {image.numpy().tobytes() for image in plain}
    untouched = sum(image.numpy().tobytes() in originals for image in seen.images)
    assert 35 < untouched < 110  # a tenth
    assert not torch.equal(seen.labels, all_candidates(loader, 2).labels)


@pytest.mark.numeric
def test_the_first_member_is_right_on_half_of_the_seconds_patterns(project: Path) -> None:
    loader = taught(planned(FEWER))
    found, seen = loader.examples(1), all_candidates(loader, 1)
    right = answers(loader.members[0], seen.images) == seen.labels
    half = min(int(right.sum()), int((~right).sum()))
    assert 10 < half < 150  # of the 300 that would be enough: all candidates were looked at
    assert len(found) == 2 * half
    assert equal(found[torch.arange(half)], seen[(~right).nonzero()[:half, 0]])
    assert equal(found[torch.arange(half, 2 * half)], seen[right.nonzero()[:half, 0]])


@pytest.mark.numeric
def test_the_first_two_members_disagree_on_all_of_the_thirds_patterns(project: Path) -> None:
    loader = taught(planned(FEWER))
    seen = all_candidates(loader, 2)
    disputed = answers(loader.members[0], seen.images) != answers(loader.members[1], seen.images)
    assert BATCH < int(disputed.sum()) < COUNT
    assert equal(loader.examples(2), seen[disputed.nonzero()[:, 0]])


@pytest.mark.parametrize("member", [1, 2])
@pytest.mark.numeric
def test_the_search_ends_with_as_many_as_there_are_training_images(
    project: Path, monkeypatch: pytest.MonkeyPatch, member: int
) -> None:
    loader = taught(planned({"recipe.boosting": {"epochs": [2, 1, 1], "candidates": 10**9}}))
    looked_at, candidates = 0, loader.candidates

    def counted(member: int) -> Iterator[Examples]:
        nonlocal looked_at
        for part in candidates(member):
            looked_at += 1
            yield part

    monkeypatch.setattr(loader, "candidates", counted)
    found = loader.examples(member)
    assert len(found) == COUNT
    before = looked_at
    assert loader.examples(member) is found and looked_at == before < 100  # kept, and looked for once


def test_the_patterns_are_those_of_seed_and_weights_alone(project: Path) -> None:
    first, second = taught(planned()), prepared(planned(root="other"))
    list(second)  # batches already handed out change nothing
    torch.manual_seed(77)
    for one, other in zip(first.members, second.members, strict=True):
        other.load_state_dict(one.state_dict())
    for member in (1, 2):
        assert equal(first.examples(member), second.examples(member))


def test_an_epoch_is_as_long_for_every_member_and_visits_their_patterns_alike(project: Path) -> None:
    loader, ordinary = taught(planned()), [len(labels) for _, labels in prepared(planned())]
    loader.load_state_dict({"epoch": 1, "done": 0})
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == ordinary == [BATCH] * 15
    for member, part in ((1, batches[:8]), (2, batches[8:])):  # the change is at 7.5
        held = loader.examples(member)
        names = {image.numpy().tobytes(): int(label) for image, label in zip(held.images, held.labels, strict=True)}
        for images, labels in part:
            assert [names[image.numpy().tobytes()] for image in images] == labels.tolist()
    long = taught(planned({"budgets.laptop": {"epochs": 4, "seeds": [0]}}))
    long.load_state_dict({"epoch": 2, "done": 0})
    visits = Counter(image.numpy().tobytes() for images, _ in long for image in images)
    assert len(visits) == len(long.examples(1)) and max(visits.values()) - min(visits.values()) <= 1
    assert loader.state_dict() == {"epoch": 2, "done": 0}


# --- trials ---


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store of the trial that no one disturbs is; filled by the first test that needs it."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.mark.parametrize(("stop_at", "training"), [(1.0, 0), (1.2, 1), (1.6, 2)])
def test_a_resumed_trial_ends_at_the_same_weights_and_moves_one_member_at_a_time(
    project: Path,
    mnist_slice: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Path,
    stop_at: float,
    training: int,
) -> None:
    hide_test_images(project, mnist_slice)
    straight = torch.load(trainer.run(planned(root=str(undisturbed))).weights, weights_only=True)
    one = planned()
    fresh = [dict(net.state_dict()) for net in prepared(one).members]
    with monkeypatch.context() as patched:
        save = checkpoint.CheckpointCallback._save

        def save_and_die(self: checkpoint.CheckpointCallback, trainer: Any) -> None:
            save(self, trainer)
            if self.loader.epoch + self.loader.done / len(self.loader) >= stop_at:
                raise Killed

        patched.setitem(batches.FLOPS_AT_ONCE, "cpu", 1)  # a minibatch each
        patched.setattr(checkpoint.CheckpointCallback, "_agree", lambda self, now, batch: True)
        patched.setattr(checkpoint.CheckpointCallback, "_save", save_and_die)
        with pytest.raises(Killed):
            trainer.run(one)
    half_way = torch.load(one.files.checkpoint, weights_only=False)["state_dict"]
    for number in range(3):
        prefix = f"members.{number}."
        now = {k: half_way[f"model.{prefix}{k}"] for k in fresh[number]}
        end = {k: straight[f"{prefix}{k}"] for k in fresh[number]}
        assert same(now, fresh[number]) == (number > training)  # who trains later has not begun
        assert same(now, end) == (number < training or (number == training == 0))  # who trained before stays as it was
        assert not same(fresh[number], end)
    files = trainer.run(one)
    assert read_json(files.result)["resumed"] == 1
    assert same(torch.load(files.weights, weights_only=True), straight)


def test_a_measurement_takes_the_first_member_and_looks_for_no_patterns(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boosting.BoostedBatches, "__init__", None)
    assert speed.measure(planned(), 0.3) > 0  # of two epochs and more


def test_the_estimate_counts_the_search_for_patterns(project: Path) -> None:
    one, ordinary = planned(), planned({"recipe.boosting": None})
    write_json(estimate.path(), {estimate.rate_key(each): 100.0 for each in (one, ordinary)})
    assert estimate.trial_seconds(ordinary) == pytest.approx(2 * COUNT / 100)
    assert estimate.trial_seconds(one) == pytest.approx((2 * COUNT + spec.CANDIDATE * 700) / 100)


def test_a_trial_by_hand_says_how_long_the_search_takes_too(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise UserError("before it trains")

    monkeypatch.setattr(sys, "argv", ["trial", "lenet4-boosted-mnist", "--budget", "paper"])
    monkeypatch.setattr(speed, "measure", lambda *_: 100.0)
    monkeypatch.setattr(trainer, "run", stop)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(UserError, match="before it trains"):
        trial.main()
    expected = progress.duration((30 * 2000 + spec.CANDIDATE * 600_000) / 100)
    assert f"lenet4-boosted-mnist seed 0: about {expected} from its start to its end\n" in capsys.readouterr().out


# --- the schedule of a committee ---


def test_rates_and_members_change_together() -> None:
    points = ((0.0, 1.0), (20.0, 0.0), (20.001, 1.0), (25.0, 0.0), (25.001, 1.0), (30.0, 0.0))
    schedule = Schedule(points=points, between="linear")
    ensemble = Boosting(epochs=(20, 5, 5), candidates=1)
    steps = 938
    for epochs in (30, 12, 7, 6):  # a budget's; the others are not cut into whole epochs
        place = [(n // steps + n % steps / steps) * 30 / epochs for n in range(epochs * steps)]
        members = [schedules.member(ensemble, at) for at in place]
        assert members == sorted(members)
        assert [members.count(k) / len(members) for k in range(3)] == pytest.approx([2 / 3, 1 / 6, 1 / 6], abs=3e-4)
        for begin in (members.index(1), members.index(2)):
            assert schedules.factor(schedule, place[begin - 1]) < 0.01
            assert schedules.factor(schedule, place[begin + 1]) > 0.98


# --- what is refused ---

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "sum": ({"recipe.boosting": {"epochs": [2, 1, 2], "candidates": 9}}, "[2, 1, 2]; expected a sum of 4, budgets."),
    "members": ({"recipe.boosting": {"epochs": [3, 1], "candidates": 9}}, "epochs is [3, 1]; expected a list of 3"),
    "none": ({"recipe.boosting": {"epochs": [4, 0, 0], "candidates": 9}}, "epochs[1] is 0; expected at least 1"),
    "candidates": ({"recipe.boosting": {"epochs": [2, 1, 1], "candidates": 0}}, "candidates is 0; expected 1 to 1"),
    "workers": ({"resources": {"workers": 2}}, "resources.workers is 2; expected 1 with recipe.boosting"),
    "distortions": ({"recipe.augment": []}, "augment is []; expected one, which boosting draws its candidates from"),
    "optimiser": ({"recipe.optimiser": {"name": "sdlm", "lr": 0.1}}, "optimiser.name is sdlm; expected another"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_boosted_is_said_when_params_are_read(project: Path, name: str) -> None:
    changes, words = BAD[name]
    with pytest.raises(UserError) as caught:
        planned(changes)
    assert words in str(caught.value) and str(caught.value).startswith("models/lenet.yaml: committee-mnist.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe.boosting": None}, "boosting is missing; expected with boosted_lenet4, an ensemble"),
        ({"model.name": "lenet4"}, "boosting needs an ensemble of 3; lenet4 has no members"),
    ],
)
def test_a_committee_and_boosting_come_together(project: Path, changes: dict[str, Any], words: str) -> None:
    one = planned(changes)
    with pytest.raises(UserError) as caught:
        checks.check(Inputs.of(one), "laptop")
    assert words in str(caught.value) and "models/lenet.yaml: committee-mnist.recipe." in str(caught.value)


@pytest.mark.parametrize(
    ("member", "words"), [(1, "that the first member classifies half correctly"), (2, "the first two disagree")]
)
def test_too_few_patterns_is_one_line(project: Path, member: int, words: str) -> None:
    loader = prepared(planned({"recipe.boosting": {"epochs": [2, 1, 1], "candidates": 30}}))
    with pytest.raises(UserError) as caught:
        loader.examples(member)
    line = str(caught.value)
    assert line.startswith(
        "models/lenet.yaml: committee-mnist.recipe.boosting.candidates is 30; expected more: they gave "
    )
    assert words in line and line.endswith("a batch takes 20") and "\n" not in line
