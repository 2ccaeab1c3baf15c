"""Commands that end before their time: at once, in one line, with nothing left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from pipelines.command import errors
from tests import processes
from tests.processes import environment, runs, started_by, until

pytestmark = pytest.mark.usefixtures("ends_all")
PRELUDE = """
    import os, signal, subprocess, sys, threading, time
    from pipelines.command import ending, errors
"""


def ended(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` as a command's main."""
    whole = f"{textwrap.dedent(PRELUDE)}{textwrap.dedent(code)}\nerrors.guard(main)\n"
    return subprocess.run([sys.executable, "-c", whole], env=environment(), capture_output=True, text=True, timeout=180)


def is_interrupted(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 130 and done.stderr == (
        "error: interrupted; the same command continues where this one stopped\n"
    )


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_is_one_line_whatever_else_is_at_work(number: str) -> None:
    """A usual exit would wait for the thread."""
    done = ended(f"""
        def main():
            ending.follow()
            threading.Thread(target=time.sleep, args=(600,)).start()
            print("said", end="")
            os.kill(os.getpid(), signal.{number})
            time.sleep(600)
    """)
    assert is_interrupted(done) and done.stdout == "said"


def test_a_machine_that_is_taken_away_ends_a_command_with_a_status_of_its_own() -> None:
    """A batch system takes 75 for "run it again"."""
    done = ended("""
        def main():
            ending.follow()
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)  # the first one decides
            time.sleep(600)
    """)
    line = "error: ended by SIGUSR1; the same command goes on at its last checkpoint\n"
    assert (done.returncode, done.stderr) == (75, line)


def test_an_interrupt_that_is_swallowed_ends_the_command_all_the_same() -> None:
    """With what it has started: imports and destructors swallow what is thrown into them."""
    done = ended("""
        def main():
            ending.GRACE_S = 1.0
            ending.follow()
            away = subprocess.DEVNULL
            print(subprocess.Popen(["sleep", "600"], stdout=away, stderr=away).pid, flush=True)
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(600)
            except KeyboardInterrupt:
                time.sleep(600)
    """)
    assert is_interrupted(done)
    until(lambda: not runs(int(done.stdout)), 10)


@pytest.mark.parametrize("stuck", ["handled elsewhere", "in C"])
def test_an_interrupt_that_reaches_no_handler_of_ours_ends_the_command_all_the_same(stuck: str) -> None:
    """Ray has a handler of its own in place while it starts; none is called while C code does not return."""
    done = ended(f"""
        import ctypes

        def main():
            ending.GRACE_S = 1.0
            ending.follow()
            if {stuck == "in C"}:
                libc = ctypes.CDLL(None)
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                lock = ctypes.create_string_buffer(256)
                libc.pthread_mutex_lock(lock)
                libc.pthread_mutex_lock(lock)
            signal.signal(signal.SIGTERM, lambda *_: None)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
    """)
    assert is_interrupted(done)


def test_a_command_that_goes_on_is_not_ended() -> None:
    """A lost cluster interrupts what waits for it; what is complete is collected then."""
    done = ended("""
        def main():
            ending.GRACE_S = 4.0
            ending.follow()
            for _ in range(2):
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(600)
                except KeyboardInterrupt:
                    ending.dealt_with()
            time.sleep(6)
            print("collected")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "collected\n", "")


def test_a_second_interrupt_leaves_alone_what_the_first_set_going() -> None:
    """The terminal sends Ctrl-C to make and to the command, and make then ends the command too."""
    done = ended("""
        def main():
            ending.follow()
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(600)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
                print("in order")
    """)
    assert is_interrupted(done) and done.stdout == "in order\n"


def piped(code: str, **extra: str) -> tuple[int, bytes]:
    """Status and error output of a command whose output nobody reads any more."""
    whole = f"{textwrap.dedent(PRELUDE)}{textwrap.dedent(code)}\nerrors.guard(main)\n"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", whole], env=environment(**extra), stdout=write, stderr=subprocess.PIPE, timeout=180
    )
    os.close(write)
    return done.returncode, done.stderr


@pytest.mark.parametrize("body", ["print('line', flush=True)", "print('line')", "raise errors.UserError('wrong')"])
def test_a_reader_that_has_gone_ends_a_command_without_a_word_of_its_own(body: str) -> None:
    """Python would add to it when it flushes at its very end."""
    status, told = piped(f"def main(): {body}")
    assert (status, told) == ((2, b"error: wrong\n") if "raise" in body else (141, b""))


def test_another_pipe_that_breaks_is_a_bug() -> None:
    done = ended("def main(): raise BrokenPipeError")
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        "raise MemoryError",
        "raise OSError(12, 'Cannot allocate memory')",
        "import torch; torch.empty(2**60, dtype=torch.int8)",
    ],
)
def test_a_want_of_memory_is_one_line(body: str) -> None:
    done = ended(f"def main(): {body}")
    line = "error: not enough memory; expected more of it free, or allowed (ulimit -v)\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_output_never_fails_for_what_an_encoding_lacks(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = ended("""
        def main():
            print("88.1 \\u2190 \\u5be6")
            raise errors.UserError("class \\u5be6\\x1b[2J\\nnext \\udcff")
    """)
    shown = "\u5be6" if encoding == "utf-8" else "\\u5be6"
    assert done.stdout.endswith(f" {shown}\n")
    assert (done.returncode, done.stderr) == (2, f"error: class {shown}\\x1b[2J\\nnext \\udcff\n")


def test_what_moves_the_cursor_is_escaped() -> None:
    assert errors.printable("a b\t\x1b]0;x\x07\r\n\x00\x7f\x9b\u202e\u2028\udcff") == (
        r"a b\t\x1b]0;x\x07\r\n\x00\x7f\x9b\u202e\u2028\udcff"
    )
    assert errors.printable("Größe 實 🐟 C:\\") == "Größe 實 🐟 C:\\"


@pytest.mark.parametrize("leader", ["make", "dvc"])
def test_what_make_or_dvc_started_ends_with_it(tmp_path: Path, leader: str) -> None:
    """Killed, neither tells its children; by the next run they must not be in the way."""
    code = "import time; from pipelines.command import ending; ending.follow(); open('up', 'w'); time.sleep(600)"
    (tmp_path / "Makefile").write_text(f'all:\n\t@{sys.executable} -c "{code}"; true\n')
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"one": {"cmd": f'{sys.executable} -c "{code}"'}}}))
    words = {"make": ["make", "-s"], "dvc": [str(Path(sys.executable).parent / "dvc"), "repro"]}[leader]
    if leader == "dvc":
        subprocess.run([words[0], "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    started = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    until(lambda: (tmp_path / "up").exists())
    family = started_by(started.pid)
    started.kill()
    started.wait()
    assert family and not psutil.wait_procs(family, timeout=60)[1]


def test_a_test_leaves_nothing_even_of_what_has_lost_its_parent() -> None:
    with pytest.raises(ZeroDivisionError), processes.nothing_left():
        shell = subprocess.run(["sh", "-c", "sleep 600 > /dev/null & echo $!"], stdout=subprocess.PIPE, check=True)
        assert runs(int(shell.stdout))
        running = subprocess.Popen(["sleep", "600"])
        raise ZeroDivisionError
    assert not runs(int(shell.stdout)) and running.returncode is not None


def test_a_process_that_has_ended_by_itself_has_no_name_and_no_children() -> None:
    ended = psutil.Popen([sys.executable, "-c", ""])
    before = psutil.Process(ended.pid)
    ended.wait()
    assert processes.name_of(before) == "" and processes.started_by(ended.pid) == [] and not runs(ended.pid)
    processes.end([before])
