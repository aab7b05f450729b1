"""Run files as the command line reads them: a file of yours, or that of a run folder, whose paths start elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.rundir import RunDir

if TYPE_CHECKING:
    from tunesmith.core.run import Run


def read(path: Path, changes: list[str] | None = None) -> tuple[Run, Path]:
    """The run in a file or a run folder, and the folder that its paths of data start from.

    Raises:
        Problem: it cannot be read, or with every fault of it.
    """
    from tunesmith.core.run import read_run

    file = RunDir(path).run_file if path.is_dir() else path
    return read_run(file, tuple(changes or ())), _home(file)


def _home(file: Path) -> Path:
    """Where a run folder says that its run was started; for all other run files, here."""
    from tunesmith.train.record import read_record

    if file.name != "run.yaml":
        return Path()
    return Path(read_record(RunDir(file.parent)).get("base", "."))
