"""Guards fetch of photographs: archives from data/, mirrors and hosts by their pins; each layout, up to a trial."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipelines import fetch
from pipelines.command.errors import UserError
from pipelines.command.files import read_lines
from pipelines.config.benchmarks import Budget
from pipelines.config.origins import Origin
from pipelines.config.params import load_params
from pipelines.config.recipes import Optimiser
from pipelines.data import sources
from pipelines.data.datasets import open_dataset
from pipelines.data.sources import Source
from pipelines.training import spec, trainer
from tests.conftest import ROOT
from tests.data import layouts
from tests.data.hosts import QUICK, Server, line_about, md5, write_pins  # serve is a fixture
from tests.data.test_data_dvc import dvc
from tests.processes import soon

NAME = "pets.zip"
PETS = Origin(kind="imagefolder", archive=NAME, labels="val/val_annotations.txt", urls=("https://host/x",), size=8)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("archive") / NAME
    layouts.write_zip(path, layouts.tiny_imagenet())
    return path.read_bytes()


@pytest.fixture
def root(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "project").mkdir()
    write_pins(tmp_path / "project", {NAME: content})
    return tmp_path / "project"


def run(root: Path, sources: Sequence[Source] = (), source: Origin = PETS) -> list[str]:
    log: list[str] = []
    fetch.fetch_from(sources, root, "pets", source, QUICK, log.append)
    return log


def refused(root: Path, sources: Sequence[Source] = (), source: Origin = PETS) -> str:
    with soon(), pytest.raises(UserError) as caught:
        run(root, sources, source)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


def at(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(content)
    return folder


def expect_whole(root: Path, content: bytes) -> None:
    dataset = open_dataset(root / "datasets", "pets")
    dataset.verify()
    assert (dataset.train, dataset.test) == (12, 6)
    assert f'"{NAME}": "{md5(content)}"' in (dataset.path / "meta.json").read_text()
    assert (root / "data" / NAME).read_bytes() == content
    assert not (root / "data" / "pets").exists()  # of unfinished downloads


def test_an_archive_in_data_is_checked_and_taken(root: Path, content: bytes) -> None:
    at(root / "data", content)
    assert "1 file in data, md5 ok" in run(root)
    expect_whole(root, content)


def test_an_archive_comes_from_a_mirror_laid_out_like_data(root: Path, tmp_path: Path, content: bytes) -> None:
    mirror = at(tmp_path / "mirror", content)
    assert f"{NAME}: from $DATA_MIRROR {mirror}, md5 ok" in run(root, [sources.mirror(str(mirror))])
    expect_whole(root, content)


def test_an_archive_comes_from_the_first_address_that_has_it(
    root: Path,
    content: bytes,
    serve: Callable[[Server], Server],
) -> None:
    server = serve(Server(files={"x/a.zip": b"foreign", "x/b.zip": content}, ends_after={"x/b.zip": [1000]}))
    log = run(root, [sources.address(f"{server.url}/x/{file}.zip") for file in ("none", "a", "b")])
    line_about(log, "none.zip: HTTP 404")
    line_about(log, f"a.zip: expected md5 {md5(content)}", md5(b"foreign"))
    assert f"{NAME}: from {server.url}/x/b.zip, md5 ok" in log
    assert server.asked[-2:] == [("x/b.zip", None), ("x/b.zip", "bytes=1000-")]  # continued where it broke off
    expect_whole(root, content)


def test_the_entry_names_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_MIRROR", "/mirror")
    origins = load_params(ROOT / "params.yaml").datasets
    assert [source.label for source in fetch.sources_for(origins["tiny-imagenet"])] == [
        "$DATA_MIRROR /mirror",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "https://image-net.org/data/tiny-imagenet-200.zip",
    ]
    assert [source.label for source in fetch.sources_for(origins["ilsvrc2012"])] == ["$DATA_MIRROR /mirror"]


def test_a_foreign_archive_is_replaced_or_named(root: Path, tmp_path: Path, content: bytes) -> None:
    at(root / "data", b"foreign")
    line = refused(root, [sources.address("http://127.0.0.1:9/pets.zip")])
    assert line.startswith("no source has data/pets.zip; tried http://127.0.0.1:9/pets.zip; DATA_MIRROR=<directory")
    assert line.endswith(f"or put the file there yourself: {len(content)} bytes, md5 {md5(content)}")
    line_about(run(root, [sources.mirror(str(at(tmp_path / "mirror", content)))]), md5(b"foreign"), "to be replaced")
    expect_whole(root, content)


def test_archives_that_a_person_has_to_place_say_from_where(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_ilsvrc(root / "ilsvrc")
    files = {path.name: path.read_bytes() for path in sorted((root / "ilsvrc").iterdir())}
    write_pins(root, files, cache=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: pytest.fail("no space is needed for what nobody brings"))
    origin = load_params(ROOT / "params.yaml").datasets["ilsvrc2012"]
    at(root / "data", b"")
    shutil.copy(root / "ilsvrc" / "ILSVRC2012_img_val.tar", root / "data")
    line = refused(root, source=origin)
    absent = [name for name in files if "val" not in name]
    for name in absent:
        assert f"data/{name} (md5 {md5(files[name])})" in line
    assert "ILSVRC2012_img_val.tar" not in line
    assert line.endswith("expected them to be put there by hand, from https://image-net.org/download-images.php, "
                         "with an account that accepts their terms")  # fmt: skip
    for name in absent:
        (root / "data" / name).symlink_to(root / "ilsvrc" / name)  # they are large, and may lie elsewhere
    assert "3 files in data, md5 ok" in run(root, source=origin)
    assert (root / "data" / absent[0]).is_symlink()


def test_an_archive_of_ones_own_needs_no_pin(root: Path, content: bytes) -> None:
    (root / "data.dvc").unlink()
    mine = dataclasses.replace(PETS, urls=())
    line = refused(root, source=mine)
    assert line == "data/pets.zip: no such file; expected the archive that params.yaml: datasets.pets names"
    at(root / "data", content)
    assert line_about(run(root, source=mine), "data.dvc has no md5 of it", "`dvc repro -f fetch@pets` takes them in")
    assert open_dataset(root / "datasets", "pets").train == 12


def test_what_is_downloaded_needs_a_pin(root: Path) -> None:
    write_pins(root, {})
    assert refused(root).endswith("data.dvc: data/pets.zip is missing; expected an out with its md5 and size")


@pytest.mark.parametrize("kind", ["folder", "FIFO"])
def test_no_file_where_the_archive_should_be(root: Path, kind: str) -> None:
    (root / "data").mkdir()
    (root / "data" / NAME).mkdir() if kind == "folder" else os.mkfifo(root / "data" / NAME)
    assert refused(root).endswith(f"data/pets.zip: a {kind} stands where a file belongs; move it away")


def test_dvc_keeps_a_copy_of_what_may_be_passed_on_alone(root: Path, content: bytes) -> None:
    pytest.importorskip("dvc")
    dvc(root, "init", "-q", "--no-scm")
    at(root / "data", content)
    cached = root / ".dvc" / "cache" / "files" / "md5" / md5(content)[:2] / md5(content)[2:]
    write_pins(root, {NAME: content}, cache=False)
    pins = (root / "data.dvc").read_bytes()
    run(root)
    assert not cached.exists() and (root / "data.dvc").read_bytes() == pins
    write_pins(root, {NAME: content})
    run(root)
    assert cached.read_bytes() == content
    (root / "data" / NAME).unlink()
    assert f"{NAME}: from DVC's cache, md5 ok" in run(root)


@pytest.mark.parametrize("place", ["datasets/pets", "datasets", "datasets/pets/train", "link", "photographs"])
def test_pictures_that_lie_where_their_arrays_belong_are_not_replaced(root: Path, place: str) -> None:
    """Wherever links lead: of ``datasets/pets``, which fetch would replace, to the photographs, or the other way."""
    folder = root / "datasets/pets"
    if place == "photographs":
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(root / "photographs")
    layouts.as_folder((root / "photographs" if place == "photographs" else folder) / "train", layouts.train_files())
    (root / "link").symlink_to(folder)
    line = refused(root, source=Origin(kind="imagefolder", folder=place))
    assert line == f"{place}: expected images apart from datasets/pets, which fetch replaces"
    assert len([path for path in folder.resolve().rglob("*.JPEG")]) == len(layouts.train_files())


def test_what_is_no_data_set_is_not_replaced(root: Path) -> None:
    folder = layouts.as_folder(root / "datasets/pets/train", layouts.train_files()).parent
    at(root / "data", b"an archive")
    line = refused(root)
    assert line == f"{folder}: holds train, which is no part of a dataset and would be lost; move it away"


# Each layout the whole way: fetch, arrays, a trial of a few steps


def as_tiny_imagenet(data: Path) -> Origin:
    layouts.write_zip(data / NAME, layouts.tiny_imagenet())
    return PETS


def as_ilsvrc(data: Path) -> Origin:
    layouts.write_ilsvrc(data)
    return load_params(ROOT / "params.yaml").datasets["ilsvrc2012"]


def as_imagenette(data: Path) -> Origin:
    val, order = layouts.val_files("val_")
    files = {f"imagenette2-320/train/{name}": content for name, content in layouts.train_files().items()}
    for (name, content), kind in zip(val.items(), order, strict=True):
        files[f"imagenette2-320/val/{layouts.CLASSES[kind]}/{name}"] = content
    data.mkdir(parents=True)
    (data / "imagenette2-320.tgz").write_bytes(layouts.tar({**files, "imagenette2-320/noisy.csv": b"x"}, "w:gz"))
    origin = load_params(ROOT / "params.yaml").datasets["imagenette"]
    return dataclasses.replace(origin, names={name: origin.names[name] for name in layouts.CLASSES})


def as_folder(data: Path) -> Origin:
    archive = as_imagenette(data)
    shutil.unpack_archive(data / str(archive.archive), data.parent / "mine")
    return Origin(kind="imagefolder", folder="mine")


@pytest.mark.parametrize("layout", [as_tiny_imagenet, as_ilsvrc, as_imagenette, as_folder])
def test_a_layout_goes_from_fetch_to_a_trial(root: Path, layout: Callable[[Path], Origin]) -> None:
    origin = dataclasses.replace(layout(root / "data"), size=16)
    write_pins(root, {path.name: path.read_bytes() for path in (root / "data").iterdir()})
    run(root, source=origin)
    linear = load_params(ROOT / "params.yaml").benchmark("linear-mnist")
    benchmark = dataclasses.replace(
        linear,
        dataset="pets",
        parameters=3 * (1 + 3 * 16 * 16),
        recipe=dataclasses.replace(linear.recipe, batch=4, optimiser=Optimiser(name="sgd", lr=0.003)),
        budgets={"paper": Budget(epochs=3, seeds=(0,))},
    )
    files = trainer.run(spec.plan(benchmark, "paper", 0, data=root / "datasets", root=root / "store", threads=1))
    losses = [float(point["loss"]) for point in read_lines(files.curve)]
    assert len(losses) == 3 and losses[-1] < losses[0]
