"""Guards the replay of a captured pass: the same weights as without it, or a line and no replay."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.normalisation import ResponseNorm
from pipelines.command.files import read_json
from pipelines.config.recipes import Optimiser, Recipe
from pipelines.training import graphs, trainer
from pipelines.training.classifier import Classifier
from pipelines.training.graphs import PASSES_BEFORE, REPLAYS_COMPARED, Passed, Replay, Replayed
from tests.golden import trainings
from tests.training.trials import planned

STEPS = 3 * (PASSES_BEFORE + REPLAYS_COMPARED)  # every third minibatch is the smaller rest of an epoch
Capture = Callable[[Callable[[], object]], Replay]
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Training:
    """Some steps of a net with dropout; on a CPU a captured pass keeps its tensors in place, as a CUDA graph does."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.device, self.replays, self.cuda = device, 0, graphs.CudaCapture()
        norm = ResponseNorm(3, alpha=0.1, k=1.0)
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), norm, nn.Dropout(), nn.Flatten(), nn.Linear(144, 10))
        self.model.to(device)
        self.parameters = list(self.model.parameters())
        self.passed = Passed(torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device))
        self.images = torch.randn(8, 1, 8, 8).to(device)
        self.labels = torch.randint(10, (8,)).to(device)

    def learn(self, images: Tensor, labels: Tensor) -> Passed:
        outputs = self.model(images)
        loss = nn.functional.cross_entropy(outputs, labels)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        self.passed.loss.copy_(loss.detach())
        self.passed.wrong.copy_((outputs.argmax(1) != labels).sum())
        return self.passed

    def capture(self, run: Callable[[], object]) -> Replay:
        if self.device == "cuda":
            return self.counted(self.cuda(run))
        run()
        own = [parameter.grad for parameter in self.parameters]

        def replay() -> None:
            run()
            for gradient, parameter in zip(own, self.parameters, strict=True):
                assert gradient is not None and parameter.grad is not None
                gradient.copy_(parameter.grad)

        return self.counted(replay)

    def counted(self, replay: Replay) -> Replay:
        def count() -> None:
            self.replays += 1
            replay()

        return count

    def run(self, learn: graphs.Pass) -> tuple[list[float], list[Tensor]]:
        """The losses, and the weights at the end; each step has a seed and a rate of its own."""
        optimiser = torch.optim.SGD(self.parameters, lr=0.1, momentum=0.9)
        losses = []
        for step in range(STEPS):
            size = 5 if step % 3 == 2 else 8
            torch.manual_seed(step)
            optimiser.param_groups[0]["lr"] = 0.1 / (1 + step)
            losses.append(float(learn(self.images[:size] + step, self.labels[:size]).loss))
            optimiser.step()
        return losses, [parameter.detach().cpu() for parameter in self.parameters]


def replayed(training: Training, capture: Capture | None = None) -> Replayed:
    return Replayed(training.learn, training.parameters, capture or training.capture)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_a_replayed_pass_trains_as_the_pass_itself_does(device: str) -> None:
    plain, captured = Training(device), Training(device)
    learn = replayed(captured)
    (losses, weights), (expected, others) = captured.run(learn), plain.run(plain.learn)
    assert learn.outcome == "replayed" and set(learn.graphs) == {(8, 1, 8, 8), (5, 1, 8, 8)}
    assert captured.replays == STEPS - 2 * PASSES_BEFORE == learn.replays + 2 * REPLAYS_COMPARED  # of two shapes
    near = 0.0 if device == "cpu" else 1e-4
    assert losses == pytest.approx(expected, rel=near)
    for mine, other in zip(weights, others, strict=True):
        torch.testing.assert_close(mine, other, rtol=near, atol=near)


def unable(run: Callable[[], object]) -> Replay:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def idle(run: Callable[[], object]) -> Replay:
    """A replay that leaves the gradients of the capture."""
    run()
    return lambda: None


@pytest.mark.parametrize(
    ("capture", "line", "shapes"),
    [(unable, "operation not permitted when stream is capturing", 1), (idle, "% apart from those of its kernels", 2)],
)
def test_what_cannot_be_replayed_runs_kernel_by_kernel(
    capture: Capture, line: str, shapes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, refusing = Training("cpu"), Training("cpu")
    learn = replayed(refusing, capture)
    (losses, weights), (expected, others) = refusing.run(learn), plain.run(plain.learn)
    assert losses == expected and all(map(torch.equal, weights, others))
    assert learn.outcome.endswith(line) and not learn.graphs and not learn.replays
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"steps run without a CUDA graph, kernel by kernel: {learn.outcome}"
    assert len(said) == shapes  # after a capture that fails, no other shape is tried


def test_a_reason_not_to_try_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    training = Training("cpu")
    learn = Replayed(training.learn, training.parameters, training.capture, "no two passes are alike")
    training.run(learn)
    assert (learn.outcome, training.replays) == ("no two passes are alike", 0)
    assert capsys.readouterr().out.count("no two passes are alike") == 1


def test_distance_is_relative_to_the_others_norm() -> None:
    some, others = [torch.tensor([3.0, 0.0]), None], [torch.tensor([3.0, 4.0]), None]
    assert graphs.distance(some, others) == pytest.approx(4 / 5)
    assert graphs.distance([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert graphs.distance([torch.ones(2)], [torch.zeros(2)]) == math.inf
    assert graphs.distance([torch.tensor([math.nan])], [torch.zeros(1)]) == math.inf
    assert graphs.distance([None], [torch.ones(1)]) == graphs.distance([torch.ones(1)], [None]) == math.inf


@NEEDS_CUDA
def test_trials_on_a_gpu_replay_their_passes_and_free_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainings.write_images(Path("datasets"), "mnist")  # a machine with a GPU may have no network
    held = []
    for seed in range(3):
        trial = planned({"budgets.laptop": {"epochs": 6, "seeds": [0]}}, seed=seed).on("cuda", threads=1)
        assert read_json(trainer.run(trial).result)["cuda_graph"] == "replayed"
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[2] <= held[1]


def test_a_module_frees_its_graphs_at_the_end_of_its_training() -> None:
    training = Training("cpu")
    recipe = Recipe(batch=4, optimiser=Optimiser(name="sgd", lr=0.1))
    module = Classifier(training.model, recipe, steps=1)
    module.replayed = replayed(training)
    training.run(module.replayed)
    module.on_train_end()
    assert vars(module)["replayed"] is None and module.cuda_graph == "replayed"


def test_no_graph_is_replayed_after_a_capture_that_failed() -> None:
    plain, training = Training("cpu"), Training("cpu")

    def capture(run: Callable[[], object]) -> Replay:
        return training.capture(run) if not learn.graphs else unable(run)

    learn = replayed(training, capture)
    (losses, _), (expected, _) = training.run(learn), plain.run(plain.learn)
    assert losses == expected and not learn.graphs
    assert learn.outcome == "operation not permitted when stream is capturing"


@NEEDS_CUDA
def test_a_capture_that_failed_leaves_generator_and_allocator_as_they_were() -> None:
    plain, waiting, next_one = Training("cuda"), Training("cuda"), Training("cuda")

    def look(images: Tensor, labels: Tensor) -> Passed:
        passed = waiting.learn(images, labels)
        passed.loss.item()  # waits for the device
        return passed

    learn = Replayed(look, waiting.parameters, waiting.capture)
    (losses, _), (expected, _) = waiting.run(learn), plain.run(plain.learn)  # with dropout
    assert losses == pytest.approx(expected, rel=1e-4) and "capturing" in learn.outcome
    torch.cuda.empty_cache()
    learn = replayed(next_one)
    assert next_one.run(learn)[0] == pytest.approx(expected, rel=1e-4) and learn.outcome == "replayed"
