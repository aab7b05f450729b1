"""What happens to freed memory, counted in pages that the system had to give: no clock, no estimate."""

from __future__ import annotations

import platform
import subprocess
import sys
from os import environ

import pytest

BLOCKS = """
import resource, sys
import tunesmith.core.allocator as allocator
print(getattr(allocator, sys.argv[1])() if sys.argv[1] else None)
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytes(40_000_000)
before = pages()
for _ in range(5):
    block = b"1" * 40_000_000
    del block
print(pages() - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc")


def taken(setting: str, **chosen: str) -> tuple[str, int]:
    """What a setting says, and how many pages five blocks of 40 MB took after a first one."""
    clean = {name: value for name, value in environ.items() if "MALLOC_" not in name and name != "GLIBC_TUNABLES"}
    found = subprocess.run(
        [sys.executable, "-c", BLOCKS, setting], env={**clean, **chosen}, check=True, capture_output=True, text=True
    )
    said, pages = found.stdout.split()
    return said, int(pages)


@glibc
def test_freed_memory_is_kept_for_the_next_block() -> None:
    said, kept = taken("keep_freed_memory")
    assert said == "True" and 2 * kept < min(taken("")[1], taken("give_back_at_once")[1])


@glibc
@pytest.mark.parametrize(
    "chosen", [{"MALLOC_TOP_PAD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_environment_has_chosen_stays(chosen: dict[str, str]) -> None:
    assert taken("keep_freed_memory", **chosen)[0] == "False"
