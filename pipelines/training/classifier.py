"""A model in training: loss, optimiser and schedule, as one LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.data.streams import stream
from pipelines.training import graphs, schedules
from pipelines.training.graphs import Passed
from pipelines.training.losses import build_loss
from pipelines.training.optimisers import build_optimiser

if TYPE_CHECKING:
    from pipelines.config.recipes import Recipe
    from pipelines.data.batches import Batches, Chunk
    from pipelines.training.losses import Loss


@runtime_checkable
class SecondOrder(Protocol):
    """An optimiser that estimates second derivatives before each epoch (``sdlm.SDLM``)."""

    samples: int  # images that an estimate takes
    examples: int  # of the minibatch at hand, over all workers

    def estimate(self, model: nn.Module, loss: Loss, images: Tensor, labels: Tensor) -> None:
        """Second derivatives anew, from images (N, C, H, W) and labels (N,); a collective call."""


class Sums:
    """Sums over a worker's images of an epoch, on the device: a step that fetched them would wait for it.

    Lightning's ``self.log`` takes half a millisecond. No buffers, which DDP would overwrite, and no module, whose
    attributes are slow to set.
    """

    def __init__(self) -> None:
        self.loss, self.wrong = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        self.images = 0
        self.seen = 0  # images in this process, whatever the epoch

    def to(self, device: torch.device | str) -> None:
        """Move the sums."""
        self.loss, self.wrong = self.loss.to(device), self.wrong.to(device)

    def add(self, passed: Passed, images: int) -> None:
        """Add a minibatch of so many images."""
        self.loss.add_(passed.loss, alpha=images)
        self.wrong.add_(passed.wrong)
        self.images += images
        self.seen += images

    def hold(self, sums: Sequence[float]) -> None:
        """Replace loss, wrong answers and images."""
        self.loss.fill_(sums[0])
        self.wrong.fill_(sums[1])
        self.images = int(sums[2])


class Classifier(pl.LightningModule):
    """A model under its recipe.

    Lightning passes chunks of minibatches (``Chunks``), and the module itself steps through them: Lightning's hooks,
    once a step, took longer than the step of a small network.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        steps: int,
        stretch: float = 1.0,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        """``steps`` an epoch; ``stretch`` is how much faster than published the trial runs through the schedule."""
        super().__init__()
        self.automatic_optimization = False
        self.model, self.recipe = model, recipe
        self.steps, self.stretch, self.seed, self.rank = steps, stretch, seed, rank
        self.loss = build_loss(recipe)
        self.random = any(isinstance(m, (nn.Dropout, nn.Dropout1d, nn.Dropout2d)) for m in model.modules())
        self.sums = Sums()
        self.trained: list[nn.Parameter] = []
        self.backward_from: Callable[[Tensor], None] = Tensor.backward
        self.replayed: graphs.Replayed | None = None  # ``forward_backward`` as a CUDA graph, on a GPU
        self.cuda_graph: str | None = None  # for a trial's result: whether it was replayed on a GPU, or why not

    def on_train_start(self) -> None:
        """Move the sums to the model's device. On a GPU, passes become a CUDA graph."""
        self.sums.to(self.device)
        if _world() > 1:  # DDP needs Lightning's hooks, which take as long as a small network's backward pass
            self.backward_from = self.manual_backward
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.device.type == "cuda":
            capture = graphs.CudaCapture()
            self.replayed = graphs.Replayed(self.forward_backward, self.trained, capture, self._obstacle())

    def on_train_end(self) -> None:
        """Free the graphs' memory, which the next trial of this process may need."""
        if self.replayed is not None:
            self.cuda_graph, self.replayed = self.replayed.outcome, None

    def _obstacle(self) -> str | None:
        """Why passes should not be captured; None where it can be tried."""
        if self.recipe.boosting is not None:
            return "the members of an ensemble take turns"
        if _world() > 1:
            return "several workers exchange their gradients during a pass"
        # Their copies outlive a failed capture; and reading them takes longer than a launch.
        streamed = self.trainer.train_dataloader.loader.streamed
        return "the images stay on the disk" if streamed else None

    def training_step(self, chunk: Chunk, batch_idx: int) -> Tensor:
        """A step of the optimiser for each minibatch of the chunk; returns the last one's loss, a scalar."""
        optimiser = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimiser, torch.optim.Optimizer)
        if chunk.first == 0:
            self.prepare_epoch(optimiser, self.trainer.train_dataloader.loader, chunk.epoch)
        learn = self.replayed or self.forward_backward
        second_order = optimiser if isinstance(optimiser, SecondOrder) else None  # once: the check is slow
        for number, (images, labels) in enumerate(chunk.minibatches, chunk.first):
            self.prepare_step(optimiser, chunk.epoch, number)
            passed = learn(images, labels)
            self.sums.add(passed, len(labels))
            if second_order is not None:
                second_order.examples = len(labels) * _world()
            optimiser.step()
        return passed.loss

    def forward_backward(self, images: Tensor, labels: Tensor) -> Passed:
        """Forward and backward: new gradients of the trained parameters."""
        judged = self.judge(images, labels)
        for parameter in self.trained:
            parameter.grad = None
        self.backward_from(judged.loss)
        return Passed(judged.loss.detach(), judged.wrong)

    def prepare_epoch(self, optimiser: torch.optim.Optimizer, loader: Batches, epoch: int) -> None:
        """Second derivatives for an optimiser that needs them; a trial resumed within an epoch has them already.

        Lightning skips its own hook for an epoch's start where a trial resumes between epochs.
        """
        if isinstance(optimiser, SecondOrder):
            optimiser.estimate(self.model, self.loss, *loader.samples(optimiser.samples, epoch))

    def prepare_step(self, optimiser: torch.optim.Optimizer, epoch: int, number: int) -> None:
        """Set rate and dropout's generator from (seed, epoch, number) alone, so that a resumed run repeats them.

        Likewise the member of an ensemble that trains; the others get no gradient, and do not change.
        """
        place = (epoch + number / self.steps) * self.stretch  # in epochs of the paper's budget
        factor = schedules.factor(self.recipe.schedule, place)
        if self.recipe.boosting is not None:
            self.model.member = schedules.member(self.recipe.boosting, place)  # type: ignore[assignment]
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        if self.random:
            torch.manual_seed(stream(self.seed, "dropout", epoch, number, self.rank))

    def judge(self, images: Tensor, labels: Tensor) -> Passed:
        """The loss, with its gradient, and the wrong answers of images (n, C, H, W) float32 with labels (n,) int64."""
        outputs = self.model(images).float()
        return Passed(self.loss(outputs, labels), (outputs.detach().argmax(1) != labels).sum())

    def gather(self) -> list[float]:
        """Sum of losses, wrong answers and images of the epoch so far, over all workers; a collective call.

        Rank 0 holds them afterwards, the others nothing.
        """
        own = self.sums
        sums = torch.tensor([own.loss, own.wrong, own.images], dtype=torch.float64, device=own.loss.device)
        if _world() > 1:
            dist.all_reduce(sums)
        total: list[float] = sums.tolist()
        self.sums.hold(total if self.rank == 0 else [0.0, 0.0, 0.0])
        return total

    def drain(self) -> tuple[float, float, int]:
        """Mean loss, error in per cent and number of the images of the epoch so far; resets the sums."""
        loss, wrong, images = self.gather()
        self.sums.hold([0.0, 0.0, 0.0])
        return loss / max(images, 1), 100 * wrong / max(images, 1), int(images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint in the middle of an epoch keeps its sums."""
        checkpoint["sums"] = self.gather()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums, on rank 0, which holds them."""
        if self.rank == 0:
            self.sums.hold(checkpoint["sums"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimiser."""
        return build_optimiser(self.recipe.optimiser, self.model)


def _world() -> int:
    """Workers that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1
