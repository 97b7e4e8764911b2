"""Memory that a mapped file takes."""

from __future__ import annotations

import mmap


def release_pages(mapped: mmap.mmap) -> None:
    """Give back the memory of a file's pages that were read; views of it stay valid, and read it anew."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
