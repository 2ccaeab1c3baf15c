"""Minibatches for boosting by filtering: a committee of three, trained one after the other.

The first member trains as any network does. The second trains on augmented images of which the first gets half wrong
and half right, the third on augmented images on which those two disagree. Drucker, Schapire and Simard, "Boosting
performance in neural networks", 1993 (summarised in NIPS 5); LeCun et al. 1998, section III.C.

A member's patterns are looked for once, when its turn comes, and are a pure function of the seed and of the weights of
the members before it, which no longer change. They are not saved: a trial that is resumed in the middle looks through
the same candidates again, finds the same patterns, and goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.command.errors import UserError
from pipelines.config.schedules import Boosting
from pipelines.data.batches import Batches, stream

MEMBERS = 3
LOOK = 256  # candidates at a time


def members(model: nn.Module) -> list[nn.Module]:
    """The networks of a committee; none where the model is a single one."""
    held = getattr(model, "members", None)
    return list(held) if isinstance(held, nn.ModuleList) else []


@dataclass(frozen=True)
class Patterns:
    """Images (n, C, H, W) float32, preprocessed and augmented, and their labels (n,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, places: Tensor) -> Patterns:
        return Patterns(self.images[places], self.labels[places])


class Pool:
    """Patterns gathered bit by bit, in the order in which they come, up to ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.parts: list[Patterns] = []

    def add(self, found: Patterns, wanted: Tensor, *, at_most: int | None = None) -> None:
        """Take those of ``found`` that ``wanted`` (n,) bool says, up to a size of ``at_most`` in all."""
        room = (self.limit if at_most is None else at_most) - self.size
        part = found[wanted.nonzero()[:room, 0]]  # a copy: a view would keep all that were found
        self.parts.append(part)
        self.size += len(part)

    def first(self, count: int) -> Patterns:
        """The first ``count``, which may be 0."""
        images, labels = [part.images for part in self.parts], [part.labels for part in self.parts]
        return Patterns(torch.cat(images)[:count], torch.cat(labels)[:count])


class BoostedBatches(Batches):
    """``Batches`` for a committee: an epoch has as many of them for every member, each of its own patterns.

    ``data`` and ``settings`` are those of ``Batches``. ``members`` are the networks as they are trained; ``stretch`` is
    how much faster than published the trial goes through ``boosting``, as through the schedule; ``where`` names
    ``boosting`` in an error. A member's patterns are at most as many as there are training images, and only those of
    the present one are kept.
    """

    def __init__(
        self, *data: Any, boosting: Boosting, members: Sequence[nn.Module], stretch: float, where: str, **settings: Any
    ) -> None:
        super().__init__(*data, **settings)
        self.boosting, self.members, self.stretch, self.where = boosting, members, stretch, where
        self._patterns: tuple[int, Patterns] | None = None  # of a member
        self._places: tuple[tuple[int, int], Tensor] | None = None  # of a member and epoch

    def member(self, epoch: int, number: int) -> int:
        """Who trains on a batch; the same words as the module's (``Classifier.prepare_step``)."""
        return self.boosting.member((epoch + number / len(self)) * self.stretch)

    def patterns(self, member: int) -> Patterns:
        """What ``member``, the second or third, trains on; UserError where there is less than one batch of it."""
        if self._patterns is None or self._patterns[0] != member:
            self._patterns = self._places = None  # the memory of the last ones first
            self._patterns = member, self._filter(member)
        return self._patterns[1]

    def _load(self, chosen: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        """For the later members, ``chosen`` only says how many."""
        member = self.member(epoch, number)
        if member == 0:
            return super()._load(chosen, epoch, number)
        first = number * self.batch
        drawn = self.patterns(member)[self._visited(member, epoch)[first : first + len(chosen)]]
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return drawn.images.contiguous(memory_format=layout), drawn.labels

    def _visited(self, member: int, epoch: int) -> Tensor:
        """Places among the patterns as ``epoch`` visits them: all of them again and again, in a new order each time."""
        if self._places is None or self._places[0] != (member, epoch):
            generator = torch.Generator().manual_seed(stream(self.seed, "order", member, epoch))
            count, needed = len(self.patterns(member)), len(self.positions)
            passes = [torch.randperm(count, generator=generator) for _ in range(-(-needed // count))]
            self._places = (member, epoch), torch.cat(passes)[:needed].to(self.labels.device)
        return self._places[1]

    @torch.no_grad()
    def _filter(self, member: int) -> Patterns:
        """Look through the candidates until all are seen, or as many are found as there are training images."""
        earlier, halves = self.members[:member], member == 1
        for net in earlier:
            net.eval()  # for good: they are not trained again
        limit = len(self.positions) // (2 if halves else 1)
        hard, easy = Pool(limit), Pool(limit)
        for seen in self.candidates(member):
            answers = [net(seen.images).argmax(1) for net in earlier]
            wanted = answers[0] != (seen.labels if halves else answers[1])
            hard.add(seen, wanted)
            if halves:
                easy.add(seen, ~wanted, at_most=hard.size)
            if (easy if halves else hard).size == limit:
                break
        found = 2 * easy.size if halves else hard.size
        if found < self.batch:
            which = "that the first member gets half wrong" if halves else "on which the first two members disagree"
            raise UserError(
                f"{self.where}.candidates is {self.boosting.candidates}; expected more: they gave {found} patterns "
                f"{which}, and a batch takes {self.batch}"
            )
        if not halves:
            return hard.first(found)
        wrong, right = hard.first(easy.size), easy.first(easy.size)
        return Patterns(torch.cat([wrong.images, right.images]), torch.cat([wrong.labels, right.labels]))

    def candidates(self, member: int) -> Iterator[Patterns]:
        """Augmented training images, pass after pass in a new order, some of which ``member`` is given."""
        left, number = max(1, round(self.boosting.candidates / self.stretch)), 0
        while left:
            generator = torch.Generator().manual_seed(stream(self.seed, "candidates", member, number))
            order = torch.randperm(len(self.positions), generator=generator)[:left]
            for chosen in self.positions[order].to(self.labels.device).split(LOOK):
                yield Patterns(self.augment(self.preprocess(self.images[chosen]), generator), self.labels[chosen])
            left, number = left - len(order), number + 1
