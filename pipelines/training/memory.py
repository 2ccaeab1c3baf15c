"""The C library's treatment of freed memory."""

from __future__ import annotations

import ctypes
import functools
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


@functools.cache
def keep() -> None:
    """Have this process keep the memory of freed tensors for the next ones.

    glibc returns large blocks to the system at once and requests them again in the next step. The system then clears
    every page anew, which took a third of AlexNet's time on a CPU. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)
