"""Minibatches: every image once an epoch, resumable at any batch, the same whatever the number of workers."""

from __future__ import annotations

import contextlib
import json
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.config.recipes import Subset
from pipelines.data import subsets, transforms
from pipelines.data.batches import FLOPS_AT_ONCE, STEPS_AT_ONCE, Batches, Chunks
from pipelines.data.streams import stream
from pipelines.training import core, spec
from pipelines.training.inputs import Inputs
from tests.conftest import edit_params

COUNT = 53  # prime: no batch size divides it
FLOPS = 1_000  # of a forward pass over an image
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 9, 7), dtype=np.uint8)
LABELS = np.arange(COUNT, dtype=np.int64)  # the position itself, so that a batch tells what is in it
SCALE: list[dict[str, dict[str, Any]]] = [{"scale": {"low": 0.0, "high": 255.0}}]
AUGMENT: list[dict[str, dict[str, Any]]] = [{"shift": {"pixels": 2}}, {"flip": {}}]


def batches(augment: list[dict[str, dict[str, Any]]] | None = None, **changes: Any) -> Batches:
    preprocess, fitted = transforms.build_preprocess(SCALE), transforms.build_augment(augment or [])
    transforms.fit(preprocess, IMAGES, np.arange(len(IMAGES)), fitted)
    settings: dict[str, Any] = {"batch": 8, "seed": 0} | changes
    positions = settings.pop("positions", torch.arange(COUNT))
    return Batches(IMAGES, LABELS, positions, preprocess=preprocess, augment=fitted, **settings)


def visited(loader: Batches) -> list[int]:
    """The positions that one epoch visits, in order."""
    return torch.cat([labels for _, labels in loader]).tolist()


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


# --- one epoch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 8, 52, 53])
def test_an_epoch_visits_every_image_exactly_once(batch: int) -> None:
    loader = batches(batch=batch)
    for _ in range(3):
        sizes = [len(labels) for _, labels in loader]
        assert sizes == [batch] * (COUNT // batch) + [COUNT % batch] * (COUNT % batch > 0)
        assert len(sizes) == len(loader)
    assert sorted(visited(loader)) == list(range(COUNT))


def test_a_label_stays_with_its_image() -> None:
    for images, labels in batches():
        assert images.dtype == torch.float32 and labels.dtype == torch.int64
        assert torch.equal(images, torch.from_numpy(IMAGES)[labels].float())


def test_only_the_chosen_positions_are_visited() -> None:
    chosen = torch.from_numpy(subsets.positions(COUNT, Subset(skip_every=10)))
    assert sorted(visited(batches(positions=chosen))) == chosen.tolist()


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else() -> None:
    loader = batches()
    epochs = [visited(loader) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert visited(batches(seed=1)) != epochs[0] != list(range(COUNT))
    torch.manual_seed(99)
    again = batches(AUGMENT, batch=5, channels_last=True)
    assert [visited(again) for _ in range(3)] == epochs


def test_without_shuffling_the_order_is_the_files() -> None:
    loader = batches(shuffle=False)
    assert visited(loader) == visited(loader) == list(range(COUNT))


def test_augmentation_is_drawn_anew_in_every_epoch_and_batch() -> None:
    loader = batches(AUGMENT, shuffle=False, batch=COUNT)
    first, second = next(iter(loader))[0], next(iter(loader))[0]
    assert not torch.equal(first, second)
    alike = batches(AUGMENT, shuffle=False, batch=1, positions=torch.zeros(40, dtype=torch.int64))
    assert len({images.numpy().tobytes() for images, _ in alike}) > 10  # of 25 shifts x 2 mirrors


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(batches(AUGMENT))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert all(same(one, other) for one, other in zip(first, batches(AUGMENT), strict=True))


def test_channels_last_is_a_layout_and_not_a_change() -> None:
    plain, turned = next(iter(batches(AUGMENT))), next(iter(batches(AUGMENT, channels_last=True)))
    assert turned[0].is_contiguous(memory_format=torch.channels_last) and not turned[0].is_contiguous()
    assert same(plain, turned)


def test_trials_on_one_machine_share_the_pages_of_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    none: dict[str, Any] = {"preprocess": transforms.Preprocess(), "augment": transforms.Augment()}
    loader = Batches(mapped, LABELS, torch.arange(COUNT), batch=8, seed=0, **none)
    assert loader.images.data_ptr() == mapped.ctypes.data


# --- resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [0, 1, 3, 6, 7, 8, 13])
def test_a_resumed_loader_goes_on_with_the_very_same_batches(seen: int) -> None:
    """7 batches an epoch: in the middle, before the last batch, between epochs, and in the second one."""
    straight = batches(AUGMENT)
    expected = [batch for _ in range(3) for batch in straight]

    def all_of(loader: Batches) -> Any:
        while True:
            yield from loader

    first = batches(AUGMENT)
    list(islice(all_of(first), seen))
    state = json.loads(json.dumps(first.state_dict()))
    second = batches(AUGMENT)
    second.load_state_dict(state)
    rest = list(islice(all_of(second), len(expected) - seen))
    assert len(rest) == len(expected) - seen
    assert all(same(one, other) for one, other in zip(expected[seen:], rest, strict=True))


def test_the_state_counts_a_batch_as_done_once_it_is_handed_out() -> None:
    loader, states = batches(), []
    for _ in range(2):
        for _ in loader:
            states.append(loader.state_dict())
    assert states[:2] == [{"epoch": 0, "done": 1}, {"epoch": 0, "done": 2}]
    assert states[5:8] == [{"epoch": 0, "done": 6}, {"epoch": 1, "done": 0}, {"epoch": 1, "done": 1}]
    assert all(one != other for one, other in pairwise(states))


# --- random numbers, drawn ahead -------------------------------------------------------------------------------------


def drawn_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches for which augmentation draws from now on."""
    sizes, draw = list[int](), transforms.Augment.draw

    def noted(self: transforms.Augment, draws: transforms.Draws, shape: Any) -> Any:
        sizes.append(draws.count)
        return draw(self, draws, shape)

    monkeypatch.setattr(transforms.Augment, "draw", noted)
    return sizes


def test_an_epochs_random_numbers_are_there_before_its_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, loader = drawn_for(monkeypatch), batches(AUGMENT)
    next(iter(loader))
    assert sizes == [8, 8, 8, 8, 8, 8, 5]
    list(loader)  # the rest of that epoch
    assert len(sizes) == 7
    next(iter(loader))
    assert len(sizes) == 14


def test_a_resumed_epoch_draws_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, loader = drawn_for(monkeypatch), batches(AUGMENT)
    loader.load_state_dict({"epoch": 3, "done": 5})
    list(loader)
    assert sizes == [8, 5]


@pytest.mark.parametrize("most", [1, 17, 24])
@pytest.mark.parametrize("workers", [1, 2])
def test_where_an_epoch_has_too_many_they_are_drawn_for_some_batches_at_a_time(
    monkeypatch: pytest.MonkeyPatch, most: int, workers: int
) -> None:
    everything: list[dict[str, dict[str, Any]]] = [{"crop": {"size": 6}}, *AUGMENT]
    everything += [{"affine": {"fill": 0, "originals": 0.2}}, {"pca_colour": {}}]
    expected = list(batches(everything, rank=workers - 1, workers=workers))
    monkeypatch.setattr("pipelines.data.batches.DRAWN_AT_ONCE", most)
    sizes, loader = drawn_for(monkeypatch), batches(everything, rank=workers - 1, workers=workers)
    found = []
    for number, batch in enumerate(loader):
        found.append(batch)
        each = max(1, most // 8)
        assert len(sizes) == min(7, (number // each + 1) * each)
    assert all(same(*pair) for pair in zip(found, expected, strict=True))


def test_the_numbers_are_those_of_one_batch_after_another() -> None:
    """As ``augment`` itself draws them, from the batch's own stream."""
    loader = batches(AUGMENT, shuffle=False)
    pixels = torch.from_numpy(IMAGES).float()
    for number, (images, _) in enumerate(loader):
        generator = torch.Generator().manual_seed(stream(0, "augment", 0, number))
        assert torch.equal(images, loader.augment(pixels[8 * number : 8 * number + 8], generator))


# --- chunks, as Lightning is given them ---


@pytest.mark.parametrize("seen", [0, 2, 6])
def test_chunks_are_the_same_minibatches_and_know_their_numbers(monkeypatch: pytest.MonkeyPatch, seen: int) -> None:
    monkeypatch.setitem(FLOPS_AT_ONCE, "cpu", 2 * 8 * FLOPS)  # two minibatches
    expected, loader = list(batches(AUGMENT)), batches(AUGMENT)
    loader.load_state_dict({"epoch": 0, "done": seen})
    found = []
    chunks = Chunks(loader, FLOPS)
    assert len(chunks) == 4 and chunks.behind(seen) == seen // 2  # of an epoch of 7
    for chunk in chunks:
        assert (chunk.epoch, chunk.first) == (0, loader.done)  # nothing is made before it is asked for
        found.append(list(chunk.minibatches))
    assert [len(part) for part in found] == [2, 2, 2, 1][seen // 2 :]
    handed_out = [batch for part in found for batch in part]
    assert all(same(one, other) for one, other in zip(handed_out, expected[seen:], strict=True))
    assert chunks.state_dict() == {"epoch": 1, "done": 0}


def test_a_chunk_of_large_minibatches_is_one() -> None:
    assert Chunks(batches(batch=8), 1 + int(FLOPS_AT_ONCE["cpu"]) // 8).size == 1


def test_a_chunk_of_small_minibatches_is_soon_over() -> None:
    """A signal to save waits for its end, and an epoch of one image at a time has 60,000."""
    assert Chunks(batches(batch=1), FLOPS).size == STEPS_AT_ONCE


@pytest.mark.parametrize("done", range(1, 7))
def test_the_chunks_behind_leave_as_many_as_are_to_come(monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    for size in (1, 2, 3, 6, 7, 8):
        monkeypatch.setitem(FLOPS_AT_ONCE, "cpu", size * 8 * FLOPS)
        loader = batches()
        loader.load_state_dict({"epoch": 0, "done": done})
        chunks = Chunks(loader, FLOPS)
        assert 0 <= chunks.behind(done) == len(chunks) - sum(1 for chunk in chunks if list(chunk.minibatches))


def test_a_gpu_is_given_longer_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minibatch of CIFAR-10 takes it about as long as Lightning's hooks take the host."""
    loader, flops = batches(batch=8), int(FLOPS_AT_ONCE["cpu"]) // (4 * 8)
    assert (here := Chunks(loader, flops).size) == 4
    monkeypatch.setattr(loader, "device", torch.device("cuda"))
    assert Chunks(loader, flops).size >= 32 * here


# --- several workers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [[], AUGMENT])
@pytest.mark.parametrize(
    ("workers", "batch", "count"), [(2, 12, 52), (3, 12, 51), (4, 12, 52), (12, 12, 48), (2, 2, 53), (5, 10, 53)]
)
def test_the_shards_of_all_workers_are_the_batch_of_one(augment: Any, workers: int, batch: int, count: int) -> None:
    """The last batch is of 4, 3, 4, 12, 1 and 3 images; where there is not one for each worker, it is left out."""
    settings: dict[str, Any] = {"batch": batch, "positions": torch.arange(count)}
    alone = batches(augment, **settings)
    shards = [batches(augment, rank=rank, workers=workers, **settings) for rank in range(workers)]
    length = len(alone) - (0 < count % batch < workers)
    assert {len(loader) for loader in shards} == {length}
    for _ in range(2):
        parts = [list(loader) for loader in shards]
        for number, whole in enumerate(list(alone)[:length]):
            assert {len(part[number][1]) for part in parts} == {len(whole[1]) // workers}
            images, labels = (torch.cat([part[number][i] for part in parts]) for i in (0, 1))
            assert same((images, labels), whole)
    # the next epoch begins for all together
    assert all(loader.state_dict() == alone.state_dict() == {"epoch": 2, "done": 0} for loader in shards)


def test_a_worker_prepares_its_own_share_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    prepare = transforms.Augment.transform

    def counted(self: Any, images: Tensor, drawn: Any) -> Tensor:
        sizes.append(len(images))
        return prepare(self, images, drawn)

    monkeypatch.setattr(transforms.Augment, "transform", counted)
    list(batches(AUGMENT, batch=12, rank=1, workers=3))
    assert sizes == [4, 4, 4, 4, 1]  # of 12, and of 5 that are left


@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_exceed_a_device_are_streamed_and_the_same(
    monkeypatch: pytest.MonkeyPatch, workers: int, tmp_path: Path
) -> None:
    """What CUDA adds is where the copy goes; also resumed, and given up in the middle of an epoch."""
    expected = list(batches(AUGMENT, rank=workers - 1, workers=workers))
    monkeypatch.setattr("pipelines.data.batches.exceeds", lambda size, device: True)
    streamed = batches(AUGMENT, rank=workers - 1, workers=workers)
    assert streamed.streamed and all(same(*pair) for pair in zip(streamed, expected, strict=True))
    resumed = batches(AUGMENT, rank=workers - 1, workers=workers)
    list(islice(resumed, 2))
    assert resumed.state_dict() == {"epoch": 0, "done": 2}
    assert all(same(*pair) for pair in zip(resumed, expected[2:], strict=True))


def test_positions_of_streamed_images_stay_where_the_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the labels go to the device. On meta none could be looked up."""
    expected = [images for images, _ in batches()]
    monkeypatch.setattr("pipelines.data.batches.exceeds", lambda size, device: True)
    found = list(batches(device="meta"))
    assert {labels.device.type for _, labels in found} == {"meta"}
    assert all(torch.equal(images, kept) for (images, _), kept in zip(found, expected, strict=True))


def test_a_device_preprocesses_its_images_once_where_that_is_dear_and_it_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU, where it is told to; on another device always, here on one without values."""
    scale = {"scale": {"low": 0.0, "high": 1.0}}  # of 0 to 255, products round by more than the comparison allows
    whiten, none = transforms.build_preprocess([scale, {"zca": {}}]), transforms.build_augment(AUGMENT)
    transforms.fit(whiten, IMAGES, np.arange(len(IMAGES)))

    def made(device: str = "cpu", *, once: bool = False) -> Batches:
        known: dict[str, Any] = {"seed": 0, "preprocess": whiten.to(device), "augment": none}
        return Batches(IMAGES, LABELS, torch.arange(COUNT), batch=8, device=device, once=once, **known)

    once, each = made(once=True), made()
    assert each.images.dtype == torch.uint8
    assert once.images.dtype == torch.float32 and len(once.preprocess) == 0
    for (images, labels), (expected, same_labels) in zip(once, each, strict=True):
        torch.testing.assert_close(images, expected)
        assert torch.equal(labels, same_labels)
    torch.testing.assert_close(once.samples(10, 0)[0], each.samples(10, 0)[0])
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.data.batches.MOST_PREPROCESSED", IMAGES.nbytes)
        assert made(once=True).images.dtype == torch.uint8
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which meta has none of
    assert made("meta").images.dtype == torch.float32
    monkeypatch.setattr("pipelines.data.batches.exceeds", lambda size, device: size > IMAGES.nbytes)
    assert made("meta").images.dtype == torch.uint8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_images_are_streamed_to_a_gpu_as_they_are_kept_there(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list(batches(AUGMENT, device="cuda"))
    monkeypatch.setattr("pipelines.data.batches.exceeds", lambda size, device: True)
    assert all(same(*pair) for pair in zip(batches(AUGMENT, device="cuda"), kept, strict=True))


def test_an_elastic_trial_has_the_same_batches_on_any_number_of_workers() -> None:
    settings: dict[str, Any] = {"batch": 12, "even": 4}  # 53 = 4 x 12 + 5, of which it leaves 4
    alone = list(batches(AUGMENT, **settings))
    assert [len(labels) for _, labels in alone] == [12, 12, 12, 12, 4]
    for workers in (2, 4):
        parts = [list(batches(AUGMENT, rank=rank, workers=workers, **settings)) for rank in range(workers)]
        for number, whole in enumerate(alone):
            images, labels = (torch.cat([part[number][i] for part in parts]) for i in (0, 1))
            assert same((images, labels), whole)


def test_a_last_batch_is_cut_to_what_the_workers_can_share() -> None:
    shards = [batches(batch=12, rank=rank, workers=2) for rank in range(2)]  # 53 = 4 x 12 + 5
    last = [list(loader)[-1][1] for loader in shards]
    assert [len(labels) for labels in last] == [2, 2]
    assert torch.cat(last).tolist() == visited(batches(batch=12))[48:52]


# --- what is trained on ------------------------------------------------------------------------------------------


def test_subsets() -> None:
    def chosen(count: int, **which: int) -> list[int]:
        return [int(place) for place in subsets.positions(count, Subset(**which))]

    assert chosen(7) == [0, 1, 2, 3, 4, 5, 6]
    assert chosen(7, skip_every=3) == [1, 2, 4, 5]
    assert chosen(7, first=3) == [0, 1, 2]
    assert chosen(7, skip_every=2, first=4) == [1, 3]
    assert chosen(7, first=70) == [0, 1, 2, 3, 4, 5, 6]
    convnetjs = chosen(50_000, skip_every=10)  # its validation images are those with n % 10 == 0
    assert len(convnetjs) == 45_000 and not any(place % 10 == 0 for place in convnetjs)


def test_a_validation_slice_is_fixed_and_is_never_trained_on() -> None:
    slice_ = subsets.validation(1000, 100)
    assert len(set(slice_.tolist())) == 100 and slice_.max() < 1000
    assert slice_[:4].tolist() == [7, 13, 14, 26]  # the same in every process and version
    for which in ({}, {"first": 600}, {"skip_every": 3}, {"sample": 500}):
        kept = subsets.positions(1000, Subset(**which, hold_out=100))
        assert len(kept) and not set(kept) & set(slice_)
    assert len(subsets.positions(1000, Subset(hold_out=100))) == 900


def test_a_budget_cuts_at_random_since_a_file_may_be_sorted_by_class() -> None:
    kept = subsets.positions(1000, Subset(first=900))
    some = subsets.cut(kept, 100)
    assert len(set(some.tolist())) == 100 and some.max() > 800 and (np.diff(some) > 0).all()
    assert some.tolist() == subsets.cut(kept, 100).tolist()
    assert subsets.cut(kept, None).tolist() == kept.tolist() == subsets.cut(kept, 5000).tolist()


def test_a_sample_is_of_what_is_left() -> None:
    kept = subsets.positions(1000, Subset(skip_every=2, sample=100))
    assert len(set(kept.tolist())) == 100 and (kept % 2 == 1).all()
    assert (np.diff(kept) > 0).all()
    assert kept.tolist() == subsets.positions(1000, Subset(skip_every=2, sample=100)).tolist()


@pytest.mark.parametrize("cut", [None, 100])
@pytest.mark.parametrize("chosen", [{}, {"skip_every": 7}, {"first": 333}, {"first": 333, "skip_every": 7}])
def test_the_estimate_counts_the_images_that_are_trained_on(
    project: Path, chosen: dict[str, int], cut: int | None
) -> None:
    budget = {"epochs": 1, "seeds": [0]} | ({"train_images": cut} if cut else {})
    changes: dict[str, object] = {"recipe.subset": chosen, "recipe.batch": 50, "budgets.laptop": budget}
    params = edit_params(project / "params.yaml", linear_mnist=changes)
    one = spec.plan(params.benchmark("linear-mnist"), "laptop", 0, data=Path("datasets"), root=Path("store"))
    loader, _ = core.assemble(one, Inputs.of(one))
    visited = torch.cat([labels for _, labels in loader])
    expected = {"": 2000, "skip_every": 1714, "first": 333, "first skip_every": 285}[" ".join(chosen)]
    assert one.images() == len(visited) == min(expected, cut or expected)


# --- random streams ----------------------------------------------------------------------------------------------


def test_a_stream_is_named_by_its_parts_in_every_process() -> None:
    assert stream(0, "order", 0) == 3991725939186754870  # from sha256; Python's own hash is another in each process
    names: list[tuple[int | str, ...]] = [(0, "order", 0), (0, "order", 1), (1, "order", 0), (0, "augment", 0), (0, 0)]
    seeds = [stream(*name) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)  # what torch's manual_seed takes
