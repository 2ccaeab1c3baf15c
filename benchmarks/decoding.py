"""Decoding of photographs as ``fetch`` does it: its rate against plain Pillow, and the memory that a large set takes.

    python -m benchmarks.decoding                     the ratios, in alternating rounds
    python -m benchmarks.decoding --gigabytes 20      arrays of that size from a tar: peak memory of all processes

The contenders decode the same JPEGs of 500 x 375 pixels, made here, to 256 x 256 into a memory map:
that of ``fetch`` from a tar on Ray, and two processes that open, convert, resize, crop and store one file after the
other. Counted from when the workers are up. On a machine that others use, too, the rate a second of CPU time says more
than that of the clock: three processes get more of a busy machine than two.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from pipelines.cluster import connection
from pipelines.command.errors import guard
from pipelines.config.origins import Origin
from pipelines.data import imagefolder
from pipelines.fetch import on_ray

SIZE = 256  # pixels, as AlexNet's section 2 has it
PROCESSES = 2
TARGET = 0.9
DISTINCT = 64  # photographs that are made; a set repeats them under other names
Photographs = list[bytes]
Rates = tuple[float, float]  # images a second of the clock, and of CPU time over all processes


def photographs(width: int = 500, height: int = 375) -> Photographs:
    """JPEGs of about ILSVRC's size: edges, gradients and some noise, 100 kB at quality 90."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(DISTINCT):
        coarse = random.integers(0, 256, (height // 25, width // 25, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(pixels + random.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def names(images: int) -> Iterator[str]:
    """Of ten classes, and of a validation image each."""
    for kind in range(10):
        yield f"val/{kind}/0.jpg"
        yield from (f"train/{kind}/{number}.jpg" for number in range(images // 10))


def write_tar(path: Path, made: Photographs, images: int) -> None:
    """The set as one archive."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names(images)):
            member = tarfile.TarInfo(name)
            member.size = len(made[number % DISTINCT])
            tar.addfile(member, io.BytesIO(made[number % DISTINCT]))


class Watch:
    """Clock and CPU time, of this process and its children, since it was made."""

    def __init__(self) -> None:
        self.began, self.used = time.monotonic(), self._cpu()

    def rates(self, images: int) -> Rates:
        """Of ``images`` done since then."""
        return images / (time.monotonic() - self.began), images / (self._cpu() - self.used)

    @staticmethod
    def _cpu() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in _family())


def _family() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def ours(root: Path, images: int, cluster: connection.Cluster) -> Rates:
    """The decoding of ``fetch``, from the start."""
    shutil.rmtree(root / "datasets", ignore_errors=True)
    origin = Origin(kind="imagefolder", archive="set.tar", size=SIZE)
    with imagefolder.writing(root, "set", origin, lambda line: None) as rows:
        watch = Watch()
        rows.fill(on_ray(cluster))
        return watch.rates(images)


def plain(root: Path, made: Photographs, images: int, pool: ProcessPoolExecutor) -> Rates:
    """The obvious loop, in ``PROCESSES`` that are up."""
    place = root / "plain.npy"
    np.lib.format.open_memmap(place, mode="w+", dtype=np.uint8, shape=(images, 3, SIZE, SIZE)).flush()
    files = [root / "plain" / f"{number}.jpg" for number in range(images)]
    if not files[0].exists():
        files[0].parent.mkdir()
        for number, file in enumerate(files):
            file.write_bytes(made[number % DISTINCT])
    watch = Watch()
    list(pool.map(_plain, [(place, files, part) for part in range(PROCESSES)]))
    return watch.rates(images)


def _plain(work: tuple[Path, list[Path], int]) -> None:
    place, files, part = work
    rows = np.lib.format.open_memmap(place, mode="r+")
    for row in range(part, len(files), PROCESSES):
        with Image.open(files[row]) as file:
            image = file.convert("RGB")
        scale = SIZE / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        left, top = (width - SIZE) // 2, (height - SIZE) // 2
        square = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + SIZE, top + SIZE))
        rows[row] = np.asarray(square).transpose(2, 0, 1)


class Peak(threading.Thread):
    """The most memory that this process and its children take at once: shared pages count once, mapped ones too."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.over = 0, threading.Event()

    def run(self) -> None:
        """Look twice a second."""
        while not self.over.wait(0.5):
            held = 0
            for process in _family():
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:  # gone
                    continue
            self.bytes = max(self.bytes, held)


def main() -> None:
    """Measure the ratios, or the memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000, help="of a round")
    parser.add_argument("--gigabytes", type=float, help="of arrays: measure memory instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connection.connect() as cluster:
        root = Path(folder)
        if args.gigabytes:
            memory(root, cluster, args.gigabytes)
        else:
            ratios(root, cluster, args.images, args.rounds)


def memory(root: Path, cluster: connection.Cluster, gigabytes: float) -> None:
    """Print the peak of memory for arrays of that size."""
    images = int(gigabytes * 1e9 / (3 * SIZE**2))
    write_tar(root / "data" / "set.tar", photographs(280, 260), images)
    (peak := Peak()).start()
    rate, _ = ours(root, images, cluster)
    arrays = f"{images} images, {gigabytes:g} GB of arrays"
    print(f"{arrays}: at most {peak.bytes / 1e9:.2f} GB of memory in all processes, {rate:.0f} images/s")


def ratios(root: Path, cluster: connection.Cluster, images: int, rounds: int) -> None:
    """Print the rates of alternating rounds, and the medians of their ratios."""
    made = photographs()
    write_tar(root / "data" / "set.tar", made, images)
    ours(root, images, cluster)  # starts the workers
    found: list[tuple[float, float]] = []
    with ProcessPoolExecutor(PROCESSES) as pool:
        plain(root, made, images, pool)
        for number in range(rounds):
            here, there = ours(root, images, cluster), plain(root, made, images, pool)
            found.append((here[0] / there[0], here[1] / there[1]))
            shown = f"fetch {here[0]:.0f} images/s ({here[1]:.0f} a CPU second)"
            print(f"round {number + 1}: {shown}, plain Pillow {there[0]:.0f} ({there[1]:.0f})", flush=True)
    for name, each in zip(("clock", "CPU time"), zip(*found, strict=True), strict=True):
        median = statistics.median(each)
        print(f"fetch / plain by {name}: {median:.2f} ({min(each):.2f} to {max(each):.2f}), target {TARGET}")


if __name__ == "__main__":
    guard(main)
