"""The forward and backward pass on a GPU as a CUDA graph: captured once a shape, replayed for each minibatch.

The host takes longer to launch the hundred kernels of a small network's pass than a GPU takes to run them; a graph
launches all of them at once. Indexing, augmentation and the update stay outside: they are few kernels, and the update's
learning rates may change with every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

PASSES_BEFORE = 3  # passes of a shape before its capture, in which cuDNN and cuBLAS choose algorithms and allocate
REPLAYS_COMPARED = 3  # first replays of a graph that are compared with the same pass, kernel by kernel
APART = 0.02  # most distance of the gradients, relative to their norm: atomic additions come in any order


class Passed(NamedTuple):
    """The result of a pass over a minibatch, beside the gradients."""

    loss: Tensor  # the mean over images, a scalar
    wrong: Tensor  # wrong answers, an int64 scalar


Pass = Callable[[Tensor, Tensor], Passed]  # sets the gradients from images (n, C, H, W) and labels (n,)
Replay = Callable[[], object]  # repeats a captured pass


@dataclass
class Graph:
    """A captured pass: it reads ``images`` and ``labels``, and writes ``passed`` and ``gradients``, all its own."""

    images: Tensor
    labels: Tensor
    replay: Replay
    passed: Passed
    gradients: list[Tensor | None]  # by parameter
    compared: int = 0  # replays


class Replayed:
    """A pass for minibatches of any shape; one that comes again and again is captured, and replayed from then on.

    A pass that can't be captured, or whose replay gives other gradients, always runs kernel by kernel; ``refused`` is
    the reason.
    """

    def __init__(
        self,
        run: Pass,
        parameters: Sequence[nn.Parameter],
        capture: Callable[[Callable[[], None]], Replay],
        refused: str | None = None,
    ) -> None:
        """``capture`` calls a function, whose kernels it may record without running them, and returns their replay.

        ``refused`` is a reason not to try.
        """
        self.run, self.parameters, self.capture = run, parameters, capture
        self.graphs: dict[torch.Size, Graph] = {}
        self.seen: Counter[torch.Size] = Counter()  # passes before a capture
        self.refused: str | None = None
        if refused is not None:
            self._refuse(refused)

    def __call__(self, images: Tensor, labels: Tensor) -> Passed:
        """As the pass itself; the result is overwritten by the next call."""
        graph = self._graph(images, labels)
        if graph is None:
            self.seen[images.shape] += 1
            return self.run(images, labels)
        if graph.compared < REPLAYS_COMPARED:
            return self._compare(graph, images, labels)
        return self._replay(graph, images, labels)

    def _graph(self, images: Tensor, labels: Tensor) -> Graph | None:
        if self.refused is None and images.shape not in self.graphs and self.seen[images.shape] >= PASSES_BEFORE:
            try:
                self.graphs[images.shape] = self._captured(images.clone(), labels.clone())
            except RuntimeError as error:
                self._refuse(str(error).partition("\n")[0])
        return self.graphs.get(images.shape)

    def _captured(self, images: Tensor, labels: Tensor) -> Graph:
        passed: list[Passed] = []
        before = _generator_state(images.device)
        replay = self.capture(lambda: passed.append(self.run(images, labels)))
        _restore(images.device, before)
        return Graph(images, labels, replay, passed[0], [parameter.grad for parameter in self.parameters])

    def _replay(self, graph: Graph, images: Tensor, labels: Tensor) -> Passed:
        graph.images.copy_(images)
        graph.labels.copy_(labels)
        graph.replay()
        for parameter, gradient in zip(self.parameters, graph.gradients, strict=True):
            parameter.grad = gradient  # a pass of another shape has set its own
        return graph.passed

    def _compare(self, graph: Graph, images: Tensor, labels: Tensor) -> Passed:
        """The pass, kernel by kernel and replayed: with the gradients of the first, where they differ too much."""
        before = _generator_state(images.device)
        passed = self.run(images, labels)
        gradients = [parameter.grad for parameter in self.parameters]
        _restore(images.device, before)
        self._replay(graph, images, labels)
        graph.compared += 1
        apart = distance(graph.gradients, gradients)
        if not apart <= APART:  # also where it is no number: the trial's loss will tell
            self._refuse(f"the gradients of its replay are {apart:.1%} apart from those of its kernels")
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return passed

    def _refuse(self, reason: str) -> None:
        self.refused = reason
        self.graphs.clear()
        print(f"steps run without a CUDA graph, kernel by kernel: {reason}", flush=True)


def distance(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> float:
    """The norm of the difference of two lists of gradients, relative to the norm of ``others``; 0 where both are 0."""
    pairs = [(one, other) for one, other in zip(some, others, strict=True) if one is not None and other is not None]
    apart = sum(float((one - other).square().sum()) for one, other in pairs)
    whole = sum(float(other.square().sum()) for _, other in pairs)
    return (apart / whole) ** 0.5 if whole else float(apart > 0)


def capture(run: Callable[[], None]) -> Replay:
    """Record the kernels that ``run`` launches on the current GPU; they do not run before the replay."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile, such as the one that sends images.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore(device: torch.device, state: Tensor) -> None:
    torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
