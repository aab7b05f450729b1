"""Memory that tensors leave is given back at once, where it is short: a run then holds what it uses and no more.

glibc raises by itself the size from which a block is a mapping of its own, up to 32 MiB. Tensors of a step then lie in
one heap, and those that pass leave holes beside those that are kept: a tenth to a third more memory. With the size set
once it stays, larger tensors are mappings, and the peak is what is alive; taking them anew costs a seventh more time.
"""

from __future__ import annotations

import ctypes
import os
import platform

OWN_MAPPING_BYTES = 1 << 20
"""Blocks from this size are mappings of their own."""
_MMAP_THRESHOLD = -3


def give_back_at_once() -> bool:
    """Fix from which size a block is a mapping of its own; whether that was done.

    It is not where the C library is another one, or where the environment sets the size (MALLOC_MMAP_THRESHOLD_).
    """
    chosen = "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, OWN_MAPPING_BYTES))
