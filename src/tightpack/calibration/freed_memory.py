"""Memory that was freed, and is wanted again at once."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The most that glibc takes for blocks of the heap; beyond, each block is mapped and unmapped.
_LARGEST_BLOCK = 32 << 20
_KEPT = 256 << 20


def keep_freed_memory() -> None:
    """Have this process keep up to 256 MiB of freed memory, where its C library is glibc.

    A layer's arithmetic frees and takes megabytes thousands of times; glibc gives them back to the system in
    between, and pages that come back zeroed, one fault each, took up to a tenth of GPTQ's time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    mallopt(_TRIM_THRESHOLD, _KEPT)
