"""How a model is trained: loss, optimiser and schedule as one LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines import benchmarks
from pipelines.batches import stream

Loss = Callable[[Tensor, Tensor], Tensor]


def mean_squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Squared distance to targets of +1 for the class and -1 for the others, summed over classes, mean over images.

    ``outputs`` (N, classes), ``labels`` (N,). LeCun et al. 1998, section II.A, equation 8 (but for the factor 1/2).
    """
    targets = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype) * 2 - 1
    return (outputs - targets).square().sum(1).mean()


LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": mean_squared_error}


class Classifier(pl.LightningModule):
    """A model under its recipe. Batches arrive as images (n, C, H, W) float32 and labels (n,) int64 on the device.

    The epoch's sums stay on the device until ``drain`` is called once an epoch: a value fetched every step would cost a
    synchronisation, and Lightning's ``self.log`` half a millisecond.
    """

    def __init__(
        self, model: nn.Module, recipe: benchmarks.Recipe, *, epochs: int, paper_epochs: int, seed: int, rank: int = 0
    ) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.stretch = paper_epochs / epochs  # a shorter budget runs through the paper's schedule faster
        self.seed, self.rank = seed, rank
        self.loss = LOSSES[recipe.loss]
        self.random = any(isinstance(m, (nn.Dropout, nn.Dropout1d, nn.Dropout2d)) for m in model.modules())
        self.sums = torch.zeros(3, dtype=torch.float64)  # loss, wrong, images; no buffer: DDP would overwrite it

    def on_train_start(self) -> None:
        """The sums live where the model does."""
        self.sums = self.sums.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout's randomness depends on (seed, epoch, batch) alone, so that a resumed run repeats it."""
        if self.random:
            torch.manual_seed(stream(self.seed, "dropout", self.current_epoch, batch_idx, self.rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch, a scalar."""
        images, labels = batch
        outputs = self.model(images).float()
        loss = self.loss(outputs, labels)
        with torch.no_grad():
            wrong = (outputs.argmax(1) != labels).sum()
            self.sums += torch.stack([loss.detach() * len(labels), wrong, wrong.new_tensor(len(labels))])
        return loss

    def gather(self) -> None:
        """Bring every worker's sums to rank 0; all workers call it together."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.sums)
            if self.rank > 0:
                self.sums.zero_()

    def drain(self) -> tuple[float, float, int]:
        """Mean loss, error in per cent and number of the images of the epoch so far, on rank 0; starts over."""
        self.gather()
        loss, wrong, images = self.sums.tolist()
        self.sums.zero_()
        return loss / max(images, 1), 100 * wrong / max(images, 1), int(images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint in the middle of an epoch keeps its sums."""
        self.gather()
        checkpoint["sums"] = self.sums.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the sums back, on the one worker that counts them."""
        if self.rank == 0:
            self.sums = torch.tensor(checkpoint["sums"], dtype=torch.float64)

    def configure_optimizers(self) -> dict[str, Any]:
        """The recipe's optimiser, its rate multiplied by the schedule's factor at every step."""
        chosen = self.recipe.optimiser
        optimiser = build_optimiser(chosen, self.model)
        steps = len(self.trainer.fit_loop._data_source.instance)

        def factor(step: int) -> float:
            return self.recipe.schedule.factor(step / steps * self.stretch)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def build_optimiser(chosen: benchmarks.Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """The torch optimiser for ``chosen``; ConvNetJS's Adadelta (Zeiler's, no rate) is torch's with ``lr`` 1."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = [p for name, p in named if not chosen.decay_biases and name.rpartition(".")[2] == "bias"]
    decayed = [p for name, p in named if chosen.decay_biases or name.rpartition(".")[2] != "bias"]
    groups = [{"params": decayed}] + ([{"params": free, "weight_decay": 0.0}] if free else [])
    if chosen.name == "adadelta":
        return torch.optim.Adadelta(
            groups, lr=chosen.lr, rho=chosen.rho, eps=chosen.eps, weight_decay=chosen.weight_decay
        )
    return torch.optim.SGD(
        groups, lr=chosen.lr, momentum=chosen.momentum, nesterov=chosen.nesterov, weight_decay=chosen.weight_decay
    )
