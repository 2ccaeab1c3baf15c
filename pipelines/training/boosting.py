"""Minibatches for boosting by filtering: an ensemble of three, trained one after the other.

The first member trains as any network does. The second trains on augmented images of which the first classifies half
correctly, the third on augmented images on which those two disagree. Drucker, Schapire and Simard, "Boosting
performance in neural networks", 1993 (summarised in NIPS 5); LeCun et al. 1998, section III.C.

A member's examples are selected once, when its turn comes. They are a pure function of the seed and of the weights of
the earlier members, which no longer change, and are not saved: a trial that resumes in the middle selects the same
examples again, and goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipelines.command.errors import UserError
from pipelines.data.batches import Batches, Sent
from pipelines.data.streams import stream
from pipelines.data.transforms import sent
from pipelines.training import schedules

if TYPE_CHECKING:
    from pipelines.config.recipes import Boosting

MEMBERS = 3
AT_A_TIME = 256  # candidates


def members(model: nn.Module) -> list[nn.Module]:
    """The networks of an ensemble; none where the model is a single one."""
    held = getattr(model, "members", None)
    return list(held) if isinstance(held, nn.ModuleList) else []


@dataclass(frozen=True)
class Examples:
    """Images (n, C, H, W) float32, preprocessed and augmented, and their labels (n,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, places: Tensor) -> Examples:
        return Examples(self.images[places], self.labels[places])


class Pool:
    """Examples collected in the order in which they come, up to ``limit`` of them."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.parts: list[Examples] = []

    def add(self, examples: Examples, wanted: Tensor, *, at_most: int | None = None) -> None:
        """Add those of ``examples`` where ``wanted`` (n,) is true, up to a size of ``at_most`` in all."""
        room = (self.limit if at_most is None else at_most) - self.size
        part = examples[wanted.nonzero()[:room, 0]]  # a copy: a view would keep all candidates in memory
        self.parts.append(part)
        self.size += len(part)

    def first(self, count: int) -> Examples:
        """The first ``count``, which may be 0."""
        images, labels = [part.images for part in self.parts], [part.labels for part in self.parts]
        return Examples(torch.cat(images)[:count], torch.cat(labels)[:count])


class BoostedBatches(Batches):
    """``Batches`` for an ensemble: an epoch has equally many for every member, each of the member's own examples.

    ``data`` and ``settings`` are those of ``Batches``. ``members`` are the networks in training; ``stretch`` is how
    much faster than published the trial runs through ``boosting``, as through the schedule; ``where`` names
    ``boosting`` in an error. A member has at most as many examples as there are training images, and only the present
    member's are in memory.
    """

    def __init__(
        self, *data: Any, boosting: Boosting, members: Sequence[nn.Module], stretch: float, where: str, **settings: Any
    ) -> None:
        super().__init__(*data, **settings)
        self.boosting, self.members, self.stretch, self.where = boosting, members, stretch, where
        self._examples: tuple[int, Examples] | None = None  # of a member
        self._places: tuple[tuple[int, int], Tensor] | None = None  # of a member and epoch

    def member(self, epoch: int, number: int) -> int:
        """The member that trains on a batch, by the formula of ``Classifier.prepare_step``."""
        return schedules.member(self.boosting, (epoch + number / len(self)) * self.stretch)

    def examples(self, member: int) -> Examples:
        """The examples of ``member``, the second or third; UserError where there is less than one batch of them."""
        if self._examples is None or self._examples[0] != member:
            self._examples = self._places = None  # free the memory of the last member's first
            self._examples = member, self._filter(member)
        return self._examples[1]

    def _load(self, chosen: Tensor, epoch: int, number: int, share: Future[Sent] | None) -> tuple[Tensor, Tensor]:
        """For the later members, ``chosen`` only sets the size."""
        member = self.member(epoch, number)
        if member == 0:
            return super()._load(chosen, epoch, number, share)
        first = number * self.batch
        drawn = self.examples(member)[self._visited(member, epoch)[first : first + len(chosen)]]
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return drawn.images.contiguous(memory_format=layout), drawn.labels

    def _visited(self, member: int, epoch: int) -> Tensor:
        """Places among the examples as ``epoch`` visits them: all of them again and again, reshuffled each time."""
        if self._places is None or self._places[0] != (member, epoch):
            generator = torch.Generator().manual_seed(stream(self.seed, "order", member, epoch))
            count, needed = len(self.examples(member)), len(self.positions)
            rounds = [torch.randperm(count, generator=generator) for _ in range(-(-needed // count))]
            self._places = (member, epoch), sent(torch.cat(rounds)[:needed], self.device)
        return self._places[1]

    @torch.no_grad()
    def _filter(self, member: int) -> Examples:
        """Select from the candidates, until none is left or there are as many examples as training images."""
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
        self._require_a_batch(2 * easy.size if halves else hard.size, halves)
        if not halves:
            return hard.first(hard.size)
        wrong, right = hard.first(easy.size), easy.first(easy.size)
        return Examples(torch.cat([wrong.images, right.images]), torch.cat([wrong.labels, right.labels]))

    def _require_a_batch(self, count: int, halves: bool) -> None:
        if count < self.batch:
            raise UserError(
                f"{self.where}.candidates is {self.boosting.candidates}; expected more: they gave {count} examples "
                + ("that the first member classifies half correctly" if halves else "on which the first two disagree")
                + f", and a batch takes {self.batch}"
            )

    def candidates(self, member: int) -> Iterator[Examples]:
        """Augmented training images, one shuffled round after another, from which ``member``'s are selected."""
        left, number = max(1, round(self.boosting.candidates / self.stretch)), 0
        while left:
            generator = torch.Generator().manual_seed(stream(self.seed, "candidates", member, number))
            order = torch.randperm(len(self.positions), generator=generator)[:left]
            for chosen in self.positions[order].to(self.labels.device).split(AT_A_TIME):
                yield Examples(self.augment(self.preprocess(self.pixels(chosen)), generator), self.labels[chosen])
            left, number = left - len(order), number + 1
