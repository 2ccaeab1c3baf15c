"""Minibatches of a dataset on the training device: indexed, preprocessed and augmented as whole batches.

All randomness of a batch is a pure function of (seed, epoch, batch), so a trial can stop and resume at any batch, and N
workers see exactly the shards of what one worker would see. Each worker prepares only its own shard.

An epoch's order and random numbers are on the device before its first step: a GPU would wait for a step that seeds a
generator or copies from the host.

Images that exceed the device's memory stay in the file's memory map; a thread reads the next shards and sends them.
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
MOST_PREPROCESSED = 10**9  # bytes of preprocessed images that a trial on a CPU keeps; CIFAR-10's are 614 MB
AHEAD = 2  # shares sent to the device in advance
Sent = tuple[Tensor, torch.cuda.Event | None]  # images, and the end of their copy
# Of a chunk's forward passes: about 0.1 s of LeNet-5 on a core; on a GPU, where none was measured yet, some ten
# minibatches of AlexNet, whose end a signal to save waits for.
FLOPS_AT_ONCE = {"cpu": 5e8, "cuda": 2e12}
STEPS_AT_ONCE = 256  # most minibatches of a chunk: about 0.25 s of a GPU
# Images whose random numbers are drawn at once: a whole epoch's, except for ImageNet. Those of its 1.2 million images
# take 35 MB and, in ten thousand batches, a second of the host, for which a GPU would wait.
DRAWN_AT_ONCE = 2**17


class Ahead(NamedTuple):
    """Random numbers of consecutive batches, on the device: by operation, for this worker's images in order."""

    epoch: int
    batches: range
    drawn: list[Drawn]


class Batches:
    """The minibatches of one epoch per iteration; stateful, so that Lightning can resume within an epoch.

    Yields images (n, C, H, W) float32, preprocessed and augmented, and labels (n,) int64, both on ``device``. ``batch``
    counts images over all workers, who get equal shares. An epoch's last batch is the remainder, cut to a multiple of
    ``even``: the number of workers by default, the largest allowed number for an elastic trial. Where preprocessing is
    dear, a GPU does it ``once`` for each image, and so does a CPU that is told to.
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
        once: bool = False,
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
        self.epoch = 0  # of the next batch
        self.done = 0  # batches of that epoch handed out so far
        self._ahead = Ahead(0, range(0), [])
        if preprocess.dear and (moved or once):
            self._preprocess_once()

    def _preprocess_once(self) -> None:
        """Keep the images as preprocessed, where these are not too large.

        Bits may differ from those of minibatches: some processors multiply few rows in another order. So on a CPU it
        must not depend on the memory that happens to be free.
        """
        shape = (len(self.images), *output_shape(self.preprocess, self.shape))
        size = 4 * math.prod(shape)
        if (size > MOST_PREPROCESSED) if self.device.type == "cpu" else exceeds(size, self.device):
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
        """The positions in the order of ``epoch``."""
        if not self.shuffle:
            return self.positions
        generator = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        return self.positions[torch.randperm(len(self.positions), generator=generator)]

    def samples(self, count: int, epoch: int) -> tuple[Tensor, Tensor]:
        """``count`` images drawn anew for ``epoch``, or all where there are fewer; the same on every worker.

        Preprocessed and augmented like the minibatches, with random numbers of their own: a sample of the examples that
        the epoch trains on. A function of (seed, epoch) alone.
        """
        generator = torch.Generator().manual_seed(stream(self.seed, "samples", epoch))
        drawn = torch.randperm(len(self.positions), generator=generator)[:count]
        chosen = self.positions[drawn].to(self.device)
        return self.augment(self.preprocess(self.pixels(chosen)), generator), self.labels[chosen]

    def pixels(self, chosen: Tensor) -> Tensor:
        """Images (n, C, H, W) uint8 at these positions, on the device."""
        return self.images[chosen.to(self.images.device)].to(self.device)

    def _load(self, chosen: Tensor, epoch: int, number: int, share: Future[Sent] | None) -> tuple[Tensor, Tensor]:
        """This worker's part of the batch at ``chosen``; ``share`` has its images where they are streamed."""
        own = self._share(chosen)
        images = self.preprocess(self.pixels(own) if share is None else self._received(share))
        if len(self.augment):
            images = self.augment.transform(images, self._drawn(epoch, number))
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self.labels[own]

    def _drawn(self, epoch: int, number: int) -> list[Drawn]:
        """Random numbers for this worker's images of a batch; drawn together with those of the next batches."""
        if self._ahead.epoch != epoch or number not in self._ahead.batches:
            last = min(len(self), number + max(1, DRAWN_AT_ONCE // self.batch))
            self._ahead = Ahead(epoch, range(number, last), self._draw(epoch, range(number, last)))
        own = self._own(self.batch)
        size = own.stop - own.start
        first = self._ahead.batches.index(number) * size
        return [tuple(one[first : first + size] for one in part) for part in self._ahead.drawn]

    def _draw(self, epoch: int, numbers: range) -> list[Drawn]:
        """Each batch has a random stream of its own, of which a worker takes its share."""
        shape = output_shape(self.preprocess, self.shape)
        generator, found = torch.Generator(), []
        for number in numbers:
            generator.manual_seed(stream(self.seed, "augment", epoch, number))
            count = min(self.batch, len(self.positions) - number * self.batch)
            found.append(self.augment.draw(Draws(generator, count, self._own(count)), shape))
        operations = (zip(*parts, strict=True) for parts in zip(*found, strict=True))
        return [tuple(sent(torch.cat(one), self.device) for one in parts) for parts in operations]

    def _share(self, values: Tensor) -> Tensor:
        """This worker's part; the remainder of an equal division is left out."""
        return values[self._own(len(values))]

    def _own(self, count: int) -> slice:
        each = count // self.even * self.even // self.workers
        return slice(self.rank * each, (self.rank + 1) * each)

    def _sent(self, shares: Iterator[Tensor]) -> Iterator[Future[Sent]]:
        """The images at these positions, sent to the device ``AHEAD`` shares in advance."""
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        with ThreadPoolExecutor(1) as pool:
            coming = deque(pool.submit(self._send, share, side) for share in itertools.islice(shares, AHEAD))
            while coming:
                yield coming.popleft()
                coming.extend(pool.submit(self._send, share, side) for share in itertools.islice(shares, 1))

    def _send(self, share: Tensor, side: torch.cuda.Stream | None) -> Sent:
        """Runs in a thread. A copy from pinned memory, on a stream of its own, overlaps with the training."""
        pixels = self.images[share]
        if side is None:
            return pixels, None
        with torch.cuda.stream(side):
            return pixels.pin_memory().to(self.device, non_blocking=True), side.record_event()

    def _received(self, share: Future[Sent]) -> Tensor:
        pixels, copied = share.result()
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)  # the device waits, not the host
            pixels.record_stream(torch.cuda.current_stream(self.device))
        return pixels

    def state_dict(self) -> dict[str, int]:
        """The next batch's place; Lightning stores it in the checkpoint."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at the place of a ``state_dict``."""
        self.epoch, self.done = state["epoch"], state["done"]


def exceeds(size: int, device: torch.device) -> bool:
    """Whether images of ``size`` bytes would leave too little of a GPU's memory for training."""
    return device.type == "cuda" and size > ROOM * torch.cuda.mem_get_info(device)[0]


class Chunk:
    """Consecutive minibatches of one epoch, made lazily.

    ``first`` is the first one's number within the epoch. No dataclass, which Lightning would copy field by field.
    """

    def __init__(self, epoch: int, first: int, minibatches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.epoch, self.first, self.minibatches = epoch, first, minibatches


class Chunks:
    """``Batches`` by the chunk, as Lightning's hooks cost half a millisecond at each item.

    A step of a small network takes no longer, nor does a step of most networks on a GPU. A chunk has at most
    ``FLOPS_AT_ONCE`` and ``STEPS_AT_ONCE`` minibatches, or is one minibatch.
    """

    def __init__(self, loader: Batches, flops: int) -> None:
        """``flops`` of the network's forward pass over one image."""
        self.loader = loader
        most = FLOPS_AT_ONCE["cuda" if loader.device.type == "cuda" else "cpu"]
        self.size = max(1, min(STEPS_AT_ONCE, int(most / (loader.batch * max(flops, 1)))))  # minibatches

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)

    def behind(self, done: int) -> int:
        """Chunks of an epoch that count as done after ``done`` minibatches, the rest being cut from there on."""
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
    """A tensor over the memory map itself, so that trials on one machine share its pages."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(images)
