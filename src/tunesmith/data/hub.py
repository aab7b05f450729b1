"""Data sets on a hub: Hugging Face through `datasets`, ModelScope as a folder; code from a hub never runs."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.problem import Problem, missing_extra
from tunesmith.core.records import Place
from tunesmith.data.files.base import MAX_ROW, Found, RawRow, too_long

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(:(?P<folder>[\w./-]+))?")
"""NAME or ORG/NAME, perhaps with `:FOLDER` for one folder of it."""
MODELSCOPE = "modelscope:"


@dataclass(frozen=True, slots=True)
class HubTable:
    """A data set as `datasets` holds it: on disk, row by row."""

    name: str
    rows: Any

    def read(self) -> Iterator[Found]:
        """The rows; `line` of a place is the row's number, from 1."""
        for number, values in enumerate(self.rows, start=1):
            place = Place(self.name, number)
            size = sum(len(value) for value in values.values() if isinstance(value, str))
            yield too_long(place, "") if size > MAX_ROW else RawRow(values, place)

    def fingerprint(self) -> str:
        """What `datasets` knows the content by."""
        return str(self.rows._fingerprint)


def is_hub_id(path: str) -> bool:
    """Whether a path that is not on disk may be the id of a data set."""
    return HUB_ID.fullmatch(path) is not None and ".." not in path


def load_hub(path: str, subset: str | None, split: str | None, revision: str | None) -> HubTable:
    """A data set by its id (ORG/NAME or ORG/NAME:FOLDER), or a local folder laid out like one.

    Raises:
        Problem: not found, not reachable, code of its own, or no such subset or split.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    found = HUB_ID.fullmatch(path)
    local = Path(path).is_dir()
    name, folder = (path, None) if local or not found else (found["id"], found["folder"])
    try:
        rows: Any = datasets.load_dataset(
            name, subset, data_dir=folder, split=split or "train", revision=None if local else revision, streaming=False
        )
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise _not_loaded(path, error) from error
    return HubTable(path, rows)


def fetch_modelscope(name: str, revision: str | None) -> Path:
    """The local folder of a ModelScope data set, fetched if need be.

    Raises:
        Problem: the package is missing, or the data set cannot be fetched.
    """
    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_extra("modelscope", "modelscope") from error
    try:
        return Path(dataset_snapshot_download(name, revision=revision))
    # The package raises its own errors and those of two network libraries, which have no common base.
    except Exception as error:
        raise _not_loaded(MODELSCOPE + name, error) from error


def _not_loaded(path: str, error: Exception) -> Problem:
    first = str(error).strip().partition("\n")[0][:300]
    offline = os.environ.get("HF_HUB_OFFLINE", "")
    hint = "HF_HUB_OFFLINE is set" if offline not in ("", "0") else "Check the name, the split and the network"
    return Problem(path, f"this data set cannot be loaded ({type(error).__name__}: {first})", hint)
