"""Freed memory stays in the process: what it does for a GPU, torch leaves to the C library on a CPU."""

from __future__ import annotations

import ctypes
import os
import platform

# names and numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the rest of this process; whether it does now.

    A training step frees its activations and allocates the next ones. glibc gives large blocks back to the system,
    which clears every page anew before it hands it out: on a CPU that costs up to a third of a step. The process keeps
    its peak instead. Off with CNLIB_KEEP_MEMORY=0, and where there is no glibc.
    """
    if os.environ.get("CNLIB_KEEP_MEMORY") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # no block from mmap, which munmap would return; and no trimming at the end of the heap
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
