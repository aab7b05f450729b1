"""What the C library does with memory that was freed: keep it for the next block, or give it back to the system.

By itself glibc makes large blocks mappings of their own and gives the end of its heap back, so that each step of a
training takes the same memory anew, page by page; on a virtual machine that is up to a sixth of a step's CPU time.
Where memory is short the opposite is wanted: blocks that pass leave holes beside those that are kept, a tenth to a
third more memory, unless each is a mapping of its own. What is set here holds for the process.
"""

from __future__ import annotations

import ctypes
import os
import platform

OWN_MAPPING_BYTES = 1 << 20
"""Blocks from this size are mappings of their own, where memory is given back at once."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Their numbers in glibc's malloc.h."""
_NEVER = -1
"""The threshold at which nothing is given back."""


def keep_freed_memory(spare: int = _NEVER) -> bool:
    """Take all blocks from one heap, whose end is given back from `spare` free bytes on; whether it was set."""
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, spare))


def give_back_at_once() -> bool:
    """Fix the size from which a block is its own mapping, which glibc raises by itself; whether it was set."""
    return _set((_MMAP_THRESHOLD, OWN_MAPPING_BYTES))


def _set(*choices: tuple[int, int]) -> bool:
    """Nothing is set where the C library is another one, or where the environment has chosen already."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [bool(mallopt(name, value)) for name, value in choices]
    return all(done)
