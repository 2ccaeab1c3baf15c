"""Minibatches of a dataset that lives on the training device: indexed, preprocessed and augmented as whole batches.

Everything random about a batch is a pure function of (seed, epoch, batch), so a trial can be stopped and resumed at any
batch, and N workers see the very shards of what one worker would see.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.data.transforms import Augment, Preprocess

VALUES_AT_ONCE = 2**19  # pixel values that a chunk of small minibatches may hold: a tenth of a second of LeNet-5


def stream(*parts: int | str) -> int:
    """A 63-bit seed for the random stream that ``parts`` name, such as (seed, "order", epoch)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Batches:
    """An epoch's minibatches, again and again; stateful, so that Lightning resumes it in the middle of an epoch.

    Yields images (n, C, H, W) float32, preprocessed and augmented, and labels (n,) int64, both on ``device``. ``batch``
    counts images over all workers; each gets an equal share, and the last batch of an epoch is the remainder, cut to a
    multiple of the workers.
    """

    def __init__(
        self,
        images: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        positions: Tensor,
        *,
        batch: int,
        seed: int,
        preprocess: Preprocess,
        augment: Augment,
        shuffle: bool = True,
        channels_last: bool = False,
        device: torch.device | str = "cpu",
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        on_device = torch.device(device).type != "cpu"
        pixels = torch.from_numpy(np.array(images)) if on_device else _shared(images)
        self.images = pixels.to(device)
        self.labels = torch.from_numpy(np.array(labels)).long().to(device)
        self.positions, self.batch, self.seed = positions, batch, seed
        self.preprocess, self.augment = preprocess, augment
        self.shuffle, self.channels_last = shuffle, channels_last
        self.rank, self.workers = rank, workers
        self.epoch = 0  # of the batch that comes next
        self.done = 0  # batches of that epoch already handed out

    def __len__(self) -> int:
        whole, rest = divmod(len(self.positions), self.batch)
        return whole + (1 if rest >= self.workers else 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch
        order = self.order(epoch).to(self.labels.device)  # at once: a copy in every step would wait for the device
        for number in range(self.done, len(self)):
            chosen = order[number * self.batch : (number + 1) * self.batch]
            batch = self._load(chosen, epoch, number)
            self.epoch, self.done = (epoch, number + 1) if number + 1 < len(self) else (epoch + 1, 0)
            yield batch

    def order(self, epoch: int) -> Tensor:
        """Positions in the order in which ``epoch`` visits them."""
        if not self.shuffle:
            return self.positions
        generator = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        return self.positions[torch.randperm(len(self.positions), generator=generator)]

    def samples(self, count: int, epoch: int) -> tuple[Tensor, Tensor]:
        """``count`` images of ``epoch``, drawn anew for each, or all where there are fewer; whole on every worker.

        Preprocessed and augmented like the minibatches, though with random numbers of their own: they stand for the
        examples that the epoch trains on, and a crop decides their size. A function of (seed, epoch) alone.
        """
        generator = torch.Generator().manual_seed(stream(self.seed, "samples", epoch))
        drawn = torch.randperm(len(self.positions), generator=generator)[:count]
        chosen = self.positions[drawn].to(self.labels.device)
        return self.augment(self.preprocess(self.images[chosen]), generator), self.labels[chosen]

    def _load(self, chosen: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """The whole batch is augmented before it is shared out: the random numbers do not depend on ``workers``."""
        if len(self.augment):
            generator = torch.Generator().manual_seed(stream(self.seed, "augment", epoch, number))
            images = self._share(self.augment(self.preprocess(self.images[chosen]), generator))
            chosen = self._share(chosen)
        else:
            chosen = self._share(chosen)
            images = self.preprocess(self.images[chosen])
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self.labels[chosen]

    def _share(self, values: Tensor) -> Tensor:
        """This worker's part; a remainder that the workers can't share equally is left out."""
        each = len(values) // self.workers
        return values[self.rank * each : (self.rank + 1) * each]

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is; Lightning stores it in the checkpoint."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.epoch, self.done = state["epoch"], state["done"]


class Chunk:
    """Consecutive minibatches of one epoch, each made when it is asked for.

    ``first`` is the number of the first one within the epoch. No dataclass: Lightning would copy it field by field.
    """

    def __init__(self, epoch: int, first: int, minibatches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.epoch, self.first, self.minibatches = epoch, first, minibatches


class Chunks:
    """``Batches`` by the chunk, as Lightning is given them: its hooks cost half a millisecond each time.

    That is as much as a step of a small network takes. A chunk holds ``VALUES_AT_ONCE`` at most, or one minibatch.
    """

    def __init__(self, loader: Batches) -> None:
        self.loader = loader
        values = loader.batch * loader.images[0].numel()
        self.size = max(1, VALUES_AT_ONCE // values)  # minibatches

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def __iter__(self) -> Iterator[Chunk]:
        epoch, each = self.loader.epoch, iter(self.loader)
        for first in range(self.loader.done, len(self.loader), self.size):
            yield Chunk(epoch, first, itertools.islice(each, self.size))

    def state_dict(self) -> dict[str, int]:
        """As the minibatches'."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """As the minibatches'."""
        self.loader.load_state_dict(state)


def _shared(images: np.ndarray[Any, Any]) -> Tensor:
    """A tensor over the memory map itself: trials packed on one machine share the pages instead of copying them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)
