"""The checkpoint callback: what a trial writes while it trains. It may be killed at any moment."""

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
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import CheckpointIO

from pipelines.command.errors import PREEMPTED, AdvisedError, UserError
from pipelines.command.files import write_bytes, write_json
from pipelines.training import provenance, status, tensors
from pipelines.training.classifier import Classifier
from pipelines.training.spec import Spec

if TYPE_CHECKING:
    from pipelines.data.batches import Chunks

CHECKPOINT_EVERY_S = 10.0  # at least; longer where saving would take more than a twentieth of the time
PROGRESS_EVERY_S = 5.0
FIRST_S = 10.0  # at the start of a trial, when progress is reported up to five times as often
AT_ONCE_S = 1.0  # signals within it are one: timeout(1) sends a command two, and its processes get the group's as well
GO_ON = "the same command goes on from there"
AGREE_EVERY = 5  # chunks: how often several workers agree on whether to save
Watch = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """This process's place among the workers of a trial, and the arguments that it adds to the Trainer's."""

    rank: int = 0
    workers: int = 1
    trainer: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[pl.Trainer], pl.Trainer] = lambda trainer: trainer
    # Signals that ask this process to save a checkpoint and end, where it trains in its main thread.
    preempted_by: Sequence[signal.Signals] = ()
    preempted: Callable[[], int | None] = lambda: None  # elsewhere: the signal that has asked for it, if any


class PreemptedError(AdvisedError):
    """A signal has ended the trial early; its checkpoint is saved."""

    status = PREEMPTED

    @property
    def number(self) -> int:
        """The signal's number."""
        number: int = self.args[2]
        return number


class CheckpointCallback(pl.Callback):
    """Keeps a trial's checkpoint, curve and progress on disk; only rank 0 writes."""

    def __init__(self, spec: Spec, chunks: Chunks, worker: Worker, watch: Watch) -> None:
        self.spec, self.chunks, self.worker, self.watch = spec, chunks, worker, watch
        self.loader = chunks.loader
        self.curve: list[dict[str, Any]] = []
        self.trained_on = [provenance.hardware(spec.device)]  # in the order of their work
        self.worked_with = [worker.workers]  # workers, in the order of their work
        self.trained_s = self.device_s = 0.0  # in earlier processes; of all workers
        self.resumed = 0
        self.started = self.saved = self.reported = time.monotonic()
        self.saving_s = 0.0
        self.images = 0  # in this process
        self.epoch_started_s = 0.0  # value of elapsed() when the epoch began
        self.ended_by: int | None = None  # the signal upon which to save and end
        self.asked = 0.0  # when it came

    def recipe_epochs(self, epochs: float) -> float:
        """Epochs as they are reported (``Spec.recipe_epochs``)."""
        return round(self.spec.recipe_epochs(epochs), 6)

    def elapsed(self) -> float:
        """Seconds of training, over all restarts."""
        return self.trained_s + time.monotonic() - self.started

    def device_seconds(self, elapsed: float) -> float:
        """Seconds of training, summed over all workers; their number may change with a restart."""
        return self.device_s + (elapsed - self.trained_s) * self.worker.workers

    def state_dict(self) -> dict[str, Any]:
        """The state from which a resumed trial continues."""
        return {
            "key": self.spec.key,
            "position": self.loader.state_dict(),
            "curve": self.curve,
            "trained_s": (elapsed := self.elapsed()),
            "trained_on": self.trained_on,
            "worked_with": self.worked_with,
            "device_s": self.device_seconds(elapsed),
            "resumed": self.resumed,
            "epoch_started_s": self.epoch_started_s,
        }

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count the finished chunks as this device cuts them: Lightning ends the epoch by that count."""
        done = checkpoint["callbacks"][self.state_key]["position"]["done"]
        if done:
            behind = self.chunks.behind(done)
            counts = {"ready": behind, "started": behind, "processed": behind, "completed": behind - 1}
            chunks_of(checkpoint)["current"] = counts  # as Lightning has them when it calls ``on_train_batch_end``

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called by Lightning when it loads any checkpoint; UserError for another trial's.

        Lightning restores a loader's position only in the middle of an epoch; after the end of an epoch, it would
        begin again with the order of the first.
        """
        if state["key"] != self.spec.key:
            raise UserError(f"a checkpoint of another trial (key {state['key']}); expected {self.spec.key}")
        self.loader.load_state_dict(state["position"])
        self.curve, self.trained_s = list(state["curve"]), state["trained_s"]
        self.trained_on = list(dict.fromkeys([*state.get("trained_on", ()), *self.trained_on]))
        self.worked_with = list(dict.fromkeys([*state.get("worked_with", ()), *self.worked_with]))
        self.device_s = state.get("device_s", state["trained_s"] * self.worker.workers)
        self.resumed = state["resumed"] + 1
        self.epoch_started_s = state["epoch_started_s"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Rewrite the curve on disk, which may be ahead of the checkpoint or behind it, from the checkpoint.

        Lightning has set its own signal handlers by now, and restores the earlier ones afterwards.
        """
        if threading.current_thread() is threading.main_thread():
            for number in self.worker.preempted_by:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGINT is in a shell's background jobs
                    signal.signal(number, self.preempt)
        self.started = self.saved = time.monotonic()
        if self.worker.rank == 0:
            self._write_curve()
            self.report("running", None)

    def preempt(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: save at the end of the chunk, and end; another one later ends at once."""
        if self.ended_by is None:  # the first one decides
            self.ended_by, self.asked = number, time.monotonic()
        elif time.monotonic() - self.asked > AT_ONCE_S:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report, and save when it is time; after the last chunk ``on_train_epoch_end`` does so."""
        assert isinstance(module, Classifier)
        self.images = module.sums.seen
        now = time.monotonic()
        often = max(0.2, min(1.0, (now - self.started) / FIRST_S))
        if self.worker.rank == 0 and now - self.reported >= PROGRESS_EVERY_S * often:
            self.report("running", float(outputs["loss"]))
        if self.loader.done and self._agree(now, batch_idx):
            self._save(trainer)
            self._make_room()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Add a line to the curve; then save if it is time, or if this was the last epoch."""
        assert isinstance(module, Classifier)
        ended, last = trainer.current_epoch + 1, trainer.current_epoch + 1 == self.spec.epochs
        self._add_point(ended, module, trainer.optimizers[0].param_groups[0]["lr"])
        if self._agree(time.monotonic(), 0) or last:
            self._save(trainer)
            if not last:  # to finish takes no longer than to end early
                self._make_room()

    def _add_point(self, ended: int, module: Classifier, lr: float) -> None:
        """Add the curve's line for ``ended`` epochs; UserError where the loss is no number."""
        loss, error, images = module.drain()
        seconds = self.elapsed()
        self.curve.append(
            {
                "epoch": self.recipe_epochs(ended),
                "loss": loss,
                "train_error": error,
                "lr": lr,
                "images_per_s": images / max(seconds - self.epoch_started_s, 1e-9),
                "seconds": seconds,
                "time": time.time(),
            }
        )
        self.epoch_started_s = seconds
        if self.worker.rank == 0 and not math.isfinite(loss):
            self.report("failed", None)
            epoch = f"{self.recipe_epochs(ended):g}"
            raise UserError(f"{self.spec.name}: the loss of epoch {epoch} is {loss}; try a lower lr")
        if self.worker.rank == 0:
            self._write_curve()
            self._report_plateau(ended)

    def _report_plateau(self, ended: int) -> None:
        """Log, once, that a net is stuck at chance."""
        classes = int(self.loader.labels.max()) + 1 if ended == 2 else 0
        losses = [point["loss"] for point in self.curve]
        if classes > 1 and status.at_plateau(self.spec.benchmark.recipe.loss, losses, classes):
            line = f"stuck at chance: after 2 epochs its loss is {losses[-1]:.4f}, that of a guess ln {classes}"
            print(f"{self.spec.name}: {line} = {math.log(classes):.4f}", flush=True)

    def _make_room(self) -> None:
        if self.ended_by is not None:
            how = signal.Signals(self.ended_by).name
            raise PreemptedError(f"{self.spec.name} was ended by {how}, its checkpoint is saved", GO_ON, self.ended_by)

    def _agree(self, now: float, batch_idx: int) -> bool:
        """Whether to save now: all workers or none, by rank 0's clock or where a signal asks one of them to end.

        All of them then have the signal in ``ended_by``.
        """
        due = now - self.saved >= max(CHECKPOINT_EVERY_S, 20 * self.saving_s)
        if self.worker.workers == 1:
            if (number := self.worker.preempted()) is not None:  # else a handler may have set it meanwhile
                self.ended_by = number
            return due or self.ended_by is not None
        if batch_idx % AGREE_EVERY:
            return False
        flags = torch.tensor([float(due and self.worker.rank == 0), float(self.worker.preempted() or 0)])
        if torch.distributed.get_backend() == "nccl":
            flags = flags.cuda()
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        self.ended_by = int(flags[1].item()) or None
        return bool(flags.any().item())

    def _save(self, trainer: pl.Trainer) -> None:
        """Replace the checkpoint (``Checkpoints``)."""
        begun = time.monotonic()
        trainer.save_checkpoint(self.spec.files.checkpoint)
        self.saved = time.monotonic()
        self.saving_s = self.saved - begun

    def _write_curve(self) -> None:
        text = "".join(json.dumps(point) + "\n" for point in self.curve)
        write_bytes(self.spec.files.curve, text.encode())

    def report(self, state: str, loss: float | None) -> None:
        """Rewrite progress.json and call ``watch``."""
        self.reported = time.monotonic()
        ahead = self.spec.epochs * len(self.loader.positions)
        position = min(self.loader.epoch + self.loader.done / len(self.loader), self.spec.epochs)
        loss = self.curve[-1]["loss"] if loss is None and self.curve else loss
        rate = self.images * self.worker.workers / max(time.monotonic() - self.started, 1e-9) if self.images else None
        progress = {
            "state": state,
            "epoch": self.recipe_epochs(position),
            "epochs": self.recipe_epochs(self.spec.epochs),
            "loss": loss if loss is not None and math.isfinite(loss) else None,
            "images_per_s": rate,
            "eta_s": ahead * (1 - position / self.spec.epochs) / rate if rate else None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
        }
        write_json(self.spec.files.progress, progress, lasting=False)
        self.watch(progress)


def chunks_of(held: dict[str, Any]) -> dict[str, Any]:
    """Lightning's count of the epoch's chunks in a checkpoint."""
    counts: dict[str, Any] = held["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return counts


class Checkpoints(CheckpointIO):
    """Saves and loads a trial's checkpoint for Lightning, which decides when.

    Lightning's own class copies the whole checkpoint in memory, and writes a file that only its owner may read.
    """

    def __init__(self) -> None:
        self.loaded: dict[Path, dict[str, Any]] = {}  # read and checked, until Lightning asks for it

    def read(self, path: Path, what: str) -> dict[str, Any]:
        """The checkpoint, kept for Lightning, so that the file is read once; DamagedError unless it is whole."""
        self.loaded[path] = tensors.load_sealed(path, what)
        return self.loaded[path]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replace the checkpoint in one step: a kill at any moment leaves the last one or the new one."""
        tensors.save_sealed(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a whole file, onto the CPU, with plain types only."""
        return self.loaded.pop(Path(path), None) or tensors.load_sealed(Path(path), "a checkpoint")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Part of the interface; Lightning does not call it for ours."""
        Path(path).unlink(missing_ok=True)
