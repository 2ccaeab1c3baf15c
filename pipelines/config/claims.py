"""What a source reports, and how and on which images it was measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pipelines.config import wording
from pipelines.config.values import Count, Percent, Rule, within, words
from pipelines.config.wording import require

TOP5 = "top-5 error"  # a metric
MOST_VIEWS = 1000  # of one test image
MOST_IMAGES = 1_000_000_000  # of a claim's test set


@dataclass(frozen=True, kw_only=True)
class ClaimedOn:
    """The images of a claim where they are not the whole test split: ``count`` images from ``first`` on.

    With ``drawn``, ``count`` images are drawn at random from that position on, the same for every seed.
    """

    split: Literal["train", "test"]
    first: Annotated[int, within(0)] = 0  # position in the file
    count: Count
    drawn: bool = False

    @property
    def end(self) -> int:
        """The position after the last image."""
        return self.first + self.count

    @property
    def words(self) -> str:
        """The images in words, counted from 1."""
        file = {"train": "training", "test": "test"}[self.split]
        if self.drawn:
            return f"{self.count:,} images drawn from the {file} file"
        return f"images {self.first + 1:,} to {self.end:,} of the {file} file"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a test image is classified: once, or by an average over ``count`` random augmentations or ten crops.

    ``crop`` is the side of a crop in pixels. ``claimed_on`` names the images of the claim where they are not the test
    split: the verdict then uses these, and the report shows the whole test split beside them.
    """

    views: Literal["single", "random", "ten_crop"] = "single"
    count: Annotated[int, within(1, MOST_VIEWS)] = 6  # as in ConvNetJS's CIFAR-10 demo (demo/js/images-demo.js)
    crop: Count | None = None
    claimed_on: ClaimedOn | None = None

    def __post_init__(self) -> None:
        cropped = self.views == "ten_crop"
        require(not cropped or self.crop is not None, "crop is missing; expected the pixels of the ten crops")
        require(cropped or self.crop is None, f"crop is {self.crop}; expected it beside views: ten_crop alone")
        beside = f"count is {self.count}; expected it beside views: random alone"
        require(self.views == "random" or self.count == Evaluation.count, beside)

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        averaged = {"random": f"{self.count} random views averaged", "ten_crop": "10-crop averaged"}
        return averaged.get(self.views, "single view")


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The cost of removing a part of a net: ``points`` more error than the whole net, the benchmark ``of``."""

    of: str
    points: Annotated[float, Rule("a number above 0, at most 100", lambda value: 0 < value <= 100)]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the source reports, in per cent; ``test_images`` is the size of the set it was measured on.

    Without a ``value``, no source has measured this net on these images in this way: ``protocol`` names the nearest
    figure. A verdict is then given on an ``ablation`` alone, of which the source prints only the difference.

    ``certainty`` is that of ``source``, whose text must not repeat it, as "a table (place recalled)" would.
    ``difference`` explains in one sentence the effect of ``evaluation.claimed_on``.
    """

    metric: Literal["error", "accuracy", "top-5 error"]
    value: Percent | None = None
    source: Annotated[str, words("where the figure stands")]
    protocol: Annotated[str, words("how it was measured")]
    certainty: Literal["read", "recalled", "computed"]
    test_images: Annotated[int, within(1, MOST_IMAGES)]
    difference: Annotated[str, words("one sentence, or nothing")] | None = None
    ablation: Ablation | None = None

    def __post_init__(self) -> None:
        both = f"ablation stands beside value: {self.value}; expected one of them"
        require(self.value is None or self.ablation is None, both)
        word = re.search(r"\b(recalled|computed|read|uncertain)\b", self.source)
        elsewhere = f"source has {wording.show(word and word[0])}; expected that in certainty, or in protocol, alone"
        require(word is None, elsewhere)
