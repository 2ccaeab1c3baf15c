"""Minibatches of a dataset that lives on the training device: indexed, preprocessed and augmented as whole batches.

Everything random about a batch is a pure function of (seed, epoch, batch), so a trial can be stopped and resumed at any
batch, and N workers see the very shards of what one worker would see. Each prepares its own shard alone.

An epoch's order and random numbers are on the device before its first step: a step that seeds a generator, or copies
from the host, keeps a GPU waiting.

Images that exceed the device stay in the file's memory map. A thread reads the shards that come next and sends them.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipelines.data.streams import stream
from pipelines.data.transforms import Augment, Drawn, Draws, Preprocess, Shape, output_shape, sent

ROOM = 0.6  # of a GPU's free memory, for images
AHEAD = 2  # shares on their way to the device
Sent = tuple[Tensor, torch.cuda.Event | None]  # images, and when they are there
VALUES_AT_ONCE = {"cpu": 2**19, "cuda": 2**24}  # pixel values of a chunk: about a tenth of a second of LeNet-5
STEPS_AT_ONCE = 256  # minibatches of a chunk, where they are small: a quarter of a second of a GPU
# Images whose random numbers are drawn at once: an epoch's, but for ImageNet's. Its 1.2 million take 35 MB and, in ten
# thousand batches, a second of the host, for which a GPU would wait.
DRAWN_AT_ONCE = 2**17


class Ahead(NamedTuple):
    """Random numbers of consecutive batches, on the device: by operation, this worker's images one after another."""

    epoch: int
    batches: range
    drawn: list[Drawn]


class Batches:
    """An epoch's minibatches, again and again; stateful, so that Lightning resumes it in the middle of an epoch.

    Yields images (n, C, H, W) float32, preprocessed and augmented, and labels (n,) int64, both on ``device``. ``batch``
    counts images over all workers; each gets an equal share, and the last batch of an epoch is the remainder, cut to a
    multiple of ``even``: by default of the workers, and of the most that an elastic trial may have.
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
        even: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.streamed = exceeds(images.nbytes, self.device)
        moved = self.device.type != "cpu" and not self.streamed
        self.images = torch.from_numpy(np.array(images)).to(device) if moved else _shared(images)
        self.labels = torch.from_numpy(np.array(labels)).long().to(device)
        self.shape: Shape = images.shape[1:]  # (C, H, W) before preprocessing
        self.positions, self.batch, self.seed = positions, batch, seed
        self.preprocess, self.augment = preprocess, augment
        self.shuffle, self.channels_last = shuffle, channels_last
        self.rank, self.workers, self.even = rank, workers, even or workers
        self.epoch = 0  # of the batch that comes next
        self.done = 0  # batches of that epoch already handed out
        self._ahead = Ahead(0, range(0), [])
        if moved and preprocess.dear:
            self._preprocess_once()

    def _preprocess_once(self) -> None:
        """Keep the images as preprocessed where the device has the room; a GPU's bits may change with the batch."""
        shape = (len(self.images), *output_shape(self.preprocess, self.shape))
        if exceeds(4 * math.prod(shape), self.device):
            return
        kept = torch.empty(shape, device=self.device)
        for here, there in zip(self.images.split(self.batch), kept.split(self.batch), strict=True):
            there.copy_(self.preprocess(here))
        self.images, self.shape, self.preprocess = kept, shape[1:], Preprocess()

    def __len__(self) -> int:
        whole, rest = divmod(len(self.positions), self.batch)
        return whole + (1 if rest >= self.even else 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, numbers = self.epoch, range(self.done, len(self))
        order = self.order(epoch)
        parts = (self._share(order[number * self.batch : (number + 1) * self.batch]) for number in numbers)
        shares = self._sent(parts) if self.streamed else itertools.repeat(None)
        there = sent(order, self.device)
        for number, share in zip(numbers, shares, strict=False):
            chosen = there[number * self.batch : (number + 1) * self.batch]
            batch = self._load(chosen, epoch, number, share)
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
        chosen = self.positions[drawn].to(self.device)
        return self.augment(self.preprocess(self.pixels(chosen)), generator), self.labels[chosen]

    def pixels(self, chosen: Tensor) -> Tensor:
        """Images (n, C, H, W) uint8 at these positions, on the device."""
        return self.images[chosen.to(self.images.device)].to(self.device)

    def _load(self, chosen: Tensor, epoch: int, number: int, share: Future[Sent] | None) -> tuple[Tensor, Tensor]:
        """``chosen`` is the whole batch, whose random numbers do not depend on ``workers``; ``share`` is on its way."""
        own = self._share(chosen)
        images = self.preprocess(self.pixels(own) if share is None else self._received(share))
        if len(self.augment):
            images = self.augment.transform(images, self._drawn(epoch, number))
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self.labels[own]

    def _drawn(self, epoch: int, number: int) -> list[Drawn]:
        """What augmentation drew for this worker's images of a batch; drawn with those of the batches that follow."""
        if self._ahead.epoch != epoch or number not in self._ahead.batches:
            last = min(len(self), number + max(1, DRAWN_AT_ONCE // self.batch))
            self._ahead = Ahead(epoch, range(number, last), self._draw(epoch, range(number, last)))
        own = self._own(self.batch)
        size = own.stop - own.start
        first = self._ahead.batches.index(number) * size
        return [tuple(one[first : first + size] for one in part) for part in self._ahead.drawn]

    def _draw(self, epoch: int, numbers: range) -> list[Drawn]:
        """Each batch from a stream of its own, of which a worker takes its share."""
        shape = output_shape(self.preprocess, self.shape)
        generator, found = torch.Generator(), []
        for number in numbers:
            generator.manual_seed(stream(self.seed, "augment", epoch, number))
            count = min(self.batch, len(self.positions) - number * self.batch)
            found.append(self.augment.draw(Draws(generator, count, self._own(count)), shape))
        operations = (zip(*parts, strict=True) for parts in zip(*found, strict=True))
        return [tuple(sent(torch.cat(one), self.device) for one in parts) for parts in operations]

    def _share(self, values: Tensor) -> Tensor:
        """This worker's part; a remainder that the workers can't share equally is left out."""
        return values[self._own(len(values))]

    def _own(self, count: int) -> slice:
        each = count // self.even * self.even // self.workers
        return slice(self.rank * each, (self.rank + 1) * each)

    def _sent(self, shares: Iterator[Tensor]) -> Iterator[Future[Sent]]:
        """The images at these positions, on their way to the device, ``AHEAD`` of them before they are asked for."""
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        with ThreadPoolExecutor(1) as pool:
            coming = deque(pool.submit(self._send, share, side) for share in itertools.islice(shares, AHEAD))
            while coming:
                yield coming.popleft()
                coming.extend(pool.submit(self._send, share, side) for share in itertools.islice(shares, 1))

    def _send(self, share: Tensor, side: torch.cuda.Stream | None) -> Sent:
        """In a thread. A copy from pinned memory, on a stream of its own, goes on beside the training."""
        pixels = self.images[share]
        if side is None:
            return pixels, None
        with torch.cuda.stream(side):
            return pixels.pin_memory().to(self.device, non_blocking=True), side.record_event()

    def _received(self, share: Future[Sent]) -> Tensor:
        pixels, copied = share.result()
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)  # the device waits, the host goes on
            pixels.record_stream(torch.cuda.current_stream(self.device))
        return pixels

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is; Lightning stores it in the checkpoint."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.epoch, self.done = state["epoch"], state["done"]


def exceeds(size: int, device: torch.device) -> bool:
    """Whether images of so many bytes leave too little of the device's memory to the training."""
    return device.type == "cuda" and size > ROOM * torch.cuda.mem_get_info(device)[0]


class Chunk:
    """Consecutive minibatches of one epoch, each made when it is asked for.

    ``first`` is the number of the first one within the epoch. No dataclass: Lightning would copy it field by field.
    """

    def __init__(self, epoch: int, first: int, minibatches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.epoch, self.first, self.minibatches = epoch, first, minibatches


class Chunks:
    """``Batches`` by the chunk, as Lightning is given them: its hooks cost half a millisecond each time.

    That is as much as a step of a small network takes, and on a GPU of most. A chunk has at most ``VALUES_AT_ONCE``
    pixel values and ``STEPS_AT_ONCE`` minibatches, or is one minibatch.
    """

    def __init__(self, loader: Batches) -> None:
        self.loader = loader
        values = loader.batch * loader.images[0].numel()
        most = VALUES_AT_ONCE["cuda" if loader.device.type == "cuda" else "cpu"]
        self.size = max(1, min(STEPS_AT_ONCE, most // values))  # minibatches

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def behind(self, done: int) -> int:
        """How many chunks of an epoch are over where ``done`` minibatches are, and the others are still to be cut."""
        return len(self) - -(-(len(self.loader) - done) // self.size)

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
