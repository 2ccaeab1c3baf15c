"""What a trial writes while it trains: checkpoint, learning curve, progress. It may be killed at any moment."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from pipelines.command.errors import UserError
from pipelines.data.batches import Batches
from pipelines.training import store
from pipelines.training.classifier import Classifier
from pipelines.training.spec import Spec

CHECKPOINT_EVERY_S = 10.0  # at least; and never so often that saving takes more than a twentieth of the time
PROGRESS_EVERY_S = 1.0
PREEMPTED = "its checkpoint is saved, the same command goes on from there"
AGREE_EVERY = 5  # chunks: how often several workers agree on whether to save


@dataclass(frozen=True, kw_only=True)
class Worker:
    """This process's place among the workers of a trial, and what the Trainer needs to be told about it."""

    rank: int = 0
    workers: int = 1
    trainer: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[pl.Trainer], pl.Trainer] = lambda trainer: trainer
    # That ask this process to save a checkpoint and end; for one worker, which trains in its process's main thread.
    preempted_by: Sequence[signal.Signals] = ()


class PreemptedError(UserError):
    """The trial was asked to make room: its checkpoint is saved, and it ends before it is trained."""

    def __init__(self, line: str, number: int) -> None:
        super().__init__(line)
        self.number = number  # of the signal

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray sends it to another process."""
        return type(self), (str(self), self.number)


class Journal(pl.Callback):
    """Keeps a trial's checkpoint, curve and progress on disk; on rank 0, but for the parts that all workers share.

    ``whole`` is how many images the recipe trains on where no budget cuts them: an epoch that is told to anyone is a
    pass over these, whatever the budget leaves.
    """

    def __init__(
        self, spec: Spec, loader: Batches, worker: Worker, watch: Callable[[Mapping[str, Any]], None], whole: int
    ) -> None:
        self.spec, self.loader, self.worker, self.watch, self.whole = spec, loader, worker, watch, whole
        self.curve: list[dict[str, Any]] = []
        self.trained_s = 0.0  # in earlier processes
        self.resumed = 0
        self.started = self.saved = self.told = time.monotonic()
        self.saving_s = 0.0
        self.images = 0  # in this process
        self.epoch_started_s = 0.0  # value of elapsed() when the epoch began
        self.asked: int | None = None  # by a signal, to save and end

    def passes(self, epochs: float) -> float:
        """Passes over the images that the recipe trains on, in ``epochs`` over those that the budget leaves."""
        return round(epochs * len(self.loader.positions) / self.whole, 6)

    def elapsed(self) -> float:
        """Seconds of training, restarts summed."""
        return self.trained_s + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """What a resumed trial goes on from."""
        return {
            "key": self.spec.key,
            "position": self.loader.state_dict(),
            "curve": self.curve,
            "trained_s": self.elapsed(),
            "resumed": self.resumed,
            "epoch_started_s": self.epoch_started_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called by Lightning when it loads a checkpoint, wherever from; UserError for another trial's.

        Lightning itself gives a loader its position back in the middle of an epoch only; at the end of one, the next
        would begin with the order of the first.
        """
        if state["key"] != self.spec.key:
            raise UserError(f"a checkpoint of another trial (key {state['key']}); expected {self.spec.key}")
        self.loader.load_state_dict(state["position"])
        self.curve, self.trained_s = list(state["curve"]), state["trained_s"]
        self.resumed = state["resumed"] + 1
        self.epoch_started_s = state["epoch_started_s"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The curve on disk may be ahead of the checkpoint, or behind it; the checkpoint is right.

        Lightning has put its own handlers of signals in place before, and puts back afterwards what it found.
        """
        if threading.current_thread() is threading.main_thread():
            for number in self.worker.preempted_by:
                signal.signal(number, self.preempt)
        self.started = self.saved = time.monotonic()
        if self.worker.rank == 0:
            self._write_curve()
            self.tell("running", None)

    def preempt(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal: save at the end of the chunk, and end; a second one does not wait for it."""
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, tell, and save when it is time; the last chunk is left to the end of the epoch."""
        assert isinstance(module, Classifier)
        self.images = module.seen
        now = time.monotonic()
        if self.worker.rank == 0 and now - self.told >= PROGRESS_EVERY_S:
            self.tell("running", float(outputs["loss"]))
        if self.loader.done and (self.asked is not None or self._agree(now, batch_idx)):
            self._save(trainer)
            self._make_room()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """One line of the curve; then save if it is time, or if this was the last epoch."""
        assert isinstance(module, Classifier)
        loss, error, images = module.drain()
        seconds = self.elapsed()
        ended, last = trainer.current_epoch + 1, trainer.current_epoch + 1 == self.spec.epochs
        self.curve.append(
            {
                "epoch": self.passes(ended),
                "loss": loss,
                "train_error": error,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                "images_per_s": images / max(seconds - self.epoch_started_s, 1e-9),
                "seconds": seconds,
                "time": time.time(),
            }
        )
        self.epoch_started_s = seconds
        if self.worker.rank == 0 and not math.isfinite(loss):
            self.tell("failed", None)
            epoch = f"{self.passes(ended):g}"
            raise UserError(f"{self.spec.name}: the loss of epoch {epoch} is {loss}; try a lower lr")
        if self.worker.rank == 0:
            self._write_curve()
        if last or self.asked is not None or self._agree(time.monotonic(), 0):
            self._save(trainer)
            if not last:  # what is left takes no longer than to end does
                self._make_room()

    def _make_room(self) -> None:
        if self.asked is not None:
            how = signal.Signals(self.asked).name
            raise PreemptedError(f"{self.spec.name} was ended by {how}; {PREEMPTED}", self.asked)

    def _agree(self, now: float, batch_idx: int) -> bool:
        """Whether to save now; workers save together or not at all, on rank 0's clock."""
        due = now - self.saved >= max(CHECKPOINT_EVERY_S, 20 * self.saving_s)
        if self.worker.workers == 1:
            return due
        if batch_idx % AGREE_EVERY:
            return False
        flag = torch.tensor([float(due)])
        if torch.distributed.get_backend() == "nccl":
            flag = flag.cuda()
        torch.distributed.broadcast(flag, src=0)
        return bool(flag.item())

    def _save(self, trainer: pl.Trainer) -> None:
        """Replace the checkpoint (``tensors.Checkpoints``)."""
        begun = time.monotonic()
        trainer.save_checkpoint(self.spec.files.checkpoint)
        self.saved = time.monotonic()
        self.saving_s = self.saved - begun

    def _write_curve(self) -> None:
        text = "".join(json.dumps(point) + "\n" for point in self.curve)
        store.write_bytes(self.spec.files.curve, text.encode())

    def tell(self, state: str, loss: float | None) -> None:
        """Rewrite progress.json and call ``watch``."""
        self.told = time.monotonic()
        ahead = self.spec.epochs * len(self.loader.positions)
        position = min(self.loader.epoch + self.loader.done / len(self.loader), self.spec.epochs)
        loss = self.curve[-1]["loss"] if loss is None and self.curve else loss
        rate = self.images * self.worker.workers / max(time.monotonic() - self.started, 1e-9) if self.images else None
        told = {
            "state": state,
            "epoch": self.passes(position),
            "epochs": self.passes(self.spec.epochs),
            "loss": loss if loss is not None and math.isfinite(loss) else None,
            "images_per_s": rate,
            "eta_s": ahead * (1 - position / self.spec.epochs) / rate if rate else None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
        }
        store.write_json(self.spec.files.progress, told)
        self.watch(told)
