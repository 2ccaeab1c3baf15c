"""Guards that a training process keeps the memory of freed tensors, where the C library is glibc."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FREED = 200 * 2**20  # bytes
HELD = """
import sys
import psutil, torch
from pipelines.training import memory
if sys.argv[1] == "keep":
    memory.keep()
before = psutil.Process().memory_info().rss
torch.ones({size} // 4)
print(psutil.Process().memory_info().rss - before)
"""


def held(how: str) -> int:
    """Bytes that a process holds once its only tensor is freed."""
    words = [sys.executable, "-c", HELD.format(size=FREED), how]
    return int(subprocess.run(words, capture_output=True, encoding="utf-8", check=True).stdout)


@pytest.mark.slow  # two processes with torch
def test_memory_of_freed_tensors_is_kept() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc")
    assert held("keep") > FREED / 2 > held("leave")
