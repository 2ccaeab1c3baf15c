"""Commands that end before their time: at once, in one line, with nothing left running."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.conftest import environment
from tests.training import runs, until

PRELUDE = """
    import os, signal, subprocess, sys, threading, time
    from pipelines import ending, errors
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


@pytest.mark.parametrize("leader", ["make", "dvc"])
def test_what_make_or_dvc_started_ends_with_it(tmp_path: Path, leader: str) -> None:
    """Killed, neither tells its children; by the next run they must not be in the way."""
    code = "import time; from pipelines import ending; ending.follow(); open('up', 'w'); time.sleep(600)"
    (tmp_path / "Makefile").write_text(f'all:\n\t@{sys.executable} -c "{code}"; true\n')
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"one": {"cmd": f'{sys.executable} -c "{code}"'}}}))
    words = {"make": ["make", "-s"], "dvc": [str(Path(sys.executable).parent / "dvc"), "repro"]}[leader]
    if leader == "dvc":
        subprocess.run([words[0], "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    started = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    until(lambda: (tmp_path / "up").exists())
    family = psutil.Process(started.pid).children(recursive=True)
    started.kill()
    started.wait()
    assert family and not psutil.wait_procs(family, timeout=60)[1]
