"""What the system says when a run's folder cannot be written, in words for a person and with numbers."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tunesmith.core.problem import Problem

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def code_of(error: OSError | SafetensorError) -> int | None:
    """The system's number of an error; safetensors tells it only in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextmanager
def in_words(folder: Path) -> Iterator[None]:
    """Work on a run folder; what its disk refuses is said in words, and every other error is left as it is.

    Raises:
        Problem: the disk is full, the folder may not be written, or it was removed.
    """
    present = folder.is_dir()
    try:
        yield
    except (OSError, SafetensorError) as error:
        problem = _problem(folder, code_of(error), present)
        if problem is None:
            raise
        raise problem from error


def gone(folder: Path) -> Problem:
    """The fault of a run folder that was removed under a run."""
    return Problem(
        str(folder),
        "this run's folder was removed or moved away while the run was working, so it stops",
        "Put the folder back and go on with: tunesmith resume, or start again",
    )


def full(folder: Path, needed: int = 0) -> Problem:
    """The fault of a disk without room; needed: bytes that were to be written, 0 where nobody knows."""
    wanted = f", about {needed / 1e6:,.1f} MB needed" if needed else ""
    return Problem(
        str(folder),
        f"the disk is full ({_free(folder) / 1e6:,.1f} MB free{wanted}), so this was not written; "
        "what was saved before is whole",
        "Free some space, then go on with: tunesmith resume",
    )


def _problem(folder: Path, code: int | None, present: bool) -> Problem | None:
    if code in FULL:
        return full(folder)
    if code in FORBIDDEN:
        return Problem(
            str(folder), f"cannot be written ({os.strerror(code or 0).lower()})", "Choose another output, or its rights"
        )
    if code == errno.ENOENT and present and not folder.is_dir():
        return gone(folder)
    return None


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
