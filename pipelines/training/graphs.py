"""The forward and backward pass on a GPU as a CUDA graph: captured once a shape, replayed for each minibatch.

The host takes longer to launch the hundred kernels of a small network's pass than a GPU takes to run them; a graph
launches all of them at once. Indexing, augmentation and the update stay outside: they are few kernels, and the update's
learning rates may change with every step.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """A pass for minibatches of any shape; each shape is captured after some passes, and replayed after some more.

    A shape whose replay gives other gradients runs kernel by kernel; so do all after a capture that failed, which may
    leave torch unfit for the next one and for replays.
    """

    def __init__(
        self,
        run: Pass,
        parameters: Sequence[nn.Parameter],
        capture: Callable[[Callable[[], object]], Replay],
        obstacle: str | None = None,
    ) -> None:
        """``capture`` calls a function, whose kernels it may record without running them, and returns their replay.

        ``obstacle`` is a reason not to try.
        """
        self.run, self.parameters, self.capture = run, parameters, capture
        self.graphs: dict[torch.Size, Graph] = {}
        self.passes: Counter[torch.Size] = Counter()  # before a capture
        self.refused: dict[torch.Size, str] = {}  # the reasons
        self.obstacle, self.replays = obstacle, 0
        if obstacle is not None:
            _say(obstacle)

    @property
    def outcome(self) -> str:
        """For a trial's result: whether passes were replayed, or why none was."""
        if self.obstacle is None and self.replays:
            return "replayed"
        return next(filter(None, [self.obstacle, *self.refused.values(), "too few minibatches of one shape"]))

    def __call__(self, images: Tensor, labels: Tensor) -> Passed:
        """As the pass itself; the result is overwritten by the next call."""
        if self.obstacle is not None or images.shape in self.refused:
            return self.run(images, labels)
        if images.shape not in self.graphs:
            self.passes[images.shape] += 1
            if self.passes[images.shape] <= PASSES_BEFORE or not self._captures(images, labels):
                return self.run(images, labels)
        graph = self.graphs[images.shape]
        if graph.compared < REPLAYS_COMPARED:
            return self._compare(graph, images, labels)
        self.replays += 1
        return self._replay(graph, images, labels)

    def _captures(self, images: Tensor, labels: Tensor) -> bool:
        """Capture a pass over copies of a minibatch; whether that succeeds."""
        own, passed = (images.clone(), labels.clone()), list[Passed]()
        state = _generator_state(images.device)
        try:
            replay = self.capture(lambda: passed.append(self.run(*own)))
        except RuntimeError as error:  # the first error of an invalid capture is behind that of its end
            self.obstacle = str(error.__context__ or error).partition("\n")[0]
            self.graphs.clear()
            _say(self.obstacle)
            return False
        finally:
            _restore(images.device, state)
        gradients = [parameter.grad for parameter in self.parameters]
        self.graphs[images.shape] = Graph(*own, replay, passed[0], gradients)
        return True

    def _replay(self, graph: Graph, images: Tensor, labels: Tensor) -> Passed:
        graph.images.copy_(images)
        graph.labels.copy_(labels)
        graph.replay()
        for parameter, gradient in zip(self.parameters, graph.gradients, strict=True):
            parameter.grad = gradient  # a pass of another shape has set its own
        return graph.passed

    def _compare(self, graph: Graph, images: Tensor, labels: Tensor) -> Passed:
        """The pass kernel by kernel, whose gradients stay, and its replay."""
        state = _generator_state(images.device)
        passed = self.run(images, labels)
        gradients = [parameter.grad for parameter in self.parameters]
        _restore(images.device, state)
        self._replay(graph, images, labels)
        graph.compared += 1
        apart = distance(graph.gradients, gradients)
        if not apart <= APART:  # NaN too: the end of the epoch reports a loss that is no number
            self._refuse(images.shape, f"the gradients of its replay are {apart:.1%} apart from those of its kernels")
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if graph.compared == REPLAYS_COMPARED and images.device.type == "cuda":
            torch.cuda.empty_cache()  # passes outside of the graph had memory of their own
        return passed

    def _refuse(self, shape: torch.Size, reason: str) -> None:
        self.refused[shape] = reason
        self.graphs.pop(shape, None)
        _say(reason)


def _say(reason: str) -> None:
    print(f"steps run without a CUDA graph, kernel by kernel: {reason}", flush=True)


def distance(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> float:
    """The norm of the difference of two lists of gradients, relative to the norm of ``others``.

    Infinite where only ``others`` are 0, or where one of a pair is missing.
    """
    pairs = [(one, other) for one, other in zip(some, others, strict=True) if one is not None and other is not None]
    if len(pairs) < sum(one is not None or other is not None for one, other in zip(some, others, strict=True)):
        return math.inf
    apart = sum(float((one - other).square().sum()) for one, other in pairs)
    whole = sum(float(other.square().sum()) for _, other in pairs)
    if whole:
        return math.sqrt(apart / whole)
    return 0.0 if apart == 0 else math.inf


class CudaCapture:
    """Records the kernels that a function launches on the current GPU; they do not run before the replay.

    Captures share their memory: what one pass leaves there beside its results, the next may overwrite.
    """

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, run: Callable[[], object]) -> Replay:
        """Capture ``run``; RuntimeError where it does what a graph can't. No earlier graph may be replayed after that.

        Other threads may use the device meanwhile.
        """
        gc.collect()  # a graph that Python destroys during a capture would make it invalid
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                run()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # torch leaves its own one current
            self._end_failed(stream.device_index)
            raise
        return graph.replay

    def _end_failed(self, device: int) -> None:
        """Where the end of a capture fails, torch 2.11's allocator and generator remain in it.

        The allocator would then refuse to free memory, and the generator to draw. A copy of the generator's state is in
        no capture, but graphs that were captured before do not draw from it.
        """
        with suppress(RuntimeError):  # it has ended
            torch._C._cuda_endAllocateToPool(device, self.pool)
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


def _generator_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore(device: torch.device, state: Tensor) -> None:
    torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
