"""LLaMA-Factory's dataset_info.json, as it is: `FOLDER/dataset_info.json:NAME` is a source like any other.

Every key is honoured or refused with the way out. One rule of LLaMA-Factory is a trap: as soon as `columns` names one
column, every other counts as absent, so that rows lose parts in silence. Here such a registry is refused if its rows
really hold the parts it does not name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tunesmith.core.problem import Problem, nearest, raise_all
from tunesmith.core.run import DataSpec
from tunesmith.data.files import kind_of
from tunesmith.data.turns import ChatFormat

FILE = "dataset_info.json"
MAX_BYTES = 16 * 2**20
KEYS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
"""Where rows come from, in the order in which LLaMA-Factory looks."""
MEDIA = ("images", "videos", "audios")
CHAT_COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "tools")
COLUMNS = (*CHAT_COLUMNS, "chosen", "rejected", "kto_tag", *MEDIA)
TAGS = tuple(ChatFormat.model_fields)
REFUSED = {
    "script_url": ("names a script, and code that comes with data is never run", "Convert the data to JSONL once"),
    "om_hub_url": ("is on OpenMind's hub, which tunesmith does not read", "Fetch it and name the files in `file_name`"),
    "cloud_file_name": ("is in a cloud bucket, which tunesmith does not read", "Copy it and name it in `file_name`"),
}
"""Sources that are not read: {key: (why, what to do)}."""
PARTS: Mapping[str, Mapping[str, str]] = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
    "text": {"prompt": "text"},
    "preference_alpaca": {"prompt": "instruction", "query": "input"},
    "preference_messages": {"messages": "conversations"},
    "rated": {"prompt": "instruction", "query": "input", "response": "output", "messages": "messages"},
}
"""Their names of columns in our formats, where they differ: {format: {their name: our part}}."""
DEFAULTS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
"""The columns that their names stand for when `columns` is absent."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set of a registry as a source; `named_only`: parts that `columns` does not name count as absent."""

    spec: DataSpec
    root: Path | None = None
    named_only: bool = False


def split_address(path: str) -> tuple[str, list[str]] | None:
    """The registry file and the names of `FOLDER/dataset_info.json:NAME,NAME`, or None for any other path."""
    file, mark, given = path.rpartition(f"{FILE}:")
    if mark and (not file or file[-1] in "/\\"):
        return file + FILE, [name.strip() for name in given.split(",") if name.strip()]
    return (path, []) if Path(path).name == FILE else None


def read_registry(spec: DataSpec, file: Path, chosen: list[str]) -> list[Entry]:
    """The sources that names of a registry stand for; what the spec itself says goes before what the registry says.

    Raises:
        Problem: no registry, an unknown name, or an entry that cannot be honoured; `Problems` for several.
    """
    registry = _load(file)
    if not chosen:
        known = ", ".join(sorted(registry)[:20])
        raise Problem(str(file), "is a registry of data sets and no data", f"Name one: `{file}:NAME`. It holds {known}")
    found: list[Problem] = []
    entries: list[Entry] = []
    for name in chosen:
        try:
            entries.append(_entry(spec, file, name, registry))
        except Problem as problem:
            found.append(problem)
    raise_all(str(file), found)
    return entries


def names_in(file: Path) -> list[str]:
    """The names that a registry holds.

    Raises:
        Problem: no registry.
    """
    return sorted(_load(file))


def _load(file: Path) -> dict[str, Any]:
    from tunesmith.data.files.json_rows import parse
    from tunesmith.data.files.opening import regular
    from tunesmith.data.formats import RowFault

    regular(file)
    if file.stat().st_size > MAX_BYTES:
        raise Problem(str(file), f"has more than {MAX_BYTES:,} bytes; a registry is a short list")
    try:
        value = parse(file.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, RowFault) as error:
        raise Problem(str(file), f"is no sound JSON ({error})", "Mend the registry") from error
    if not isinstance(value, dict):
        raise Problem(str(file), "is no registry: it must be an object of data sets by name")
    return cast("dict[str, Any]", value)


def _entry(spec: DataSpec, file: Path, name: str, registry: dict[str, Any]) -> Entry:
    where = f"{file}:{name}"
    if name not in registry:
        raise Problem(where, "the registry has no such data set", nearest(name, registry))
    value = registry[name]
    if not isinstance(value, dict):
        raise Problem(where, f"an entry is an object; the value seen is {json.dumps(value)[:80]}")
    entry = cast("dict[str, Any]", value)
    raise_all(where, _faults(entry, where))
    path, root = _path(entry, file, where)
    own_format = _format(entry)
    columns = _columns(entry, own_format)
    update: dict[str, Any] = {
        "path": path,
        "format": spec.format or own_format,
        "columns": spec.columns or columns,
        "tags": spec.tags or _tags(entry, own_format),
        "split": spec.split or (None if root else entry.get("split")),
        "subset": spec.subset or entry.get("subset"),
        "limit": spec.limit or entry.get("num_samples"),
    }
    return Entry(spec.model_copy(update=update), root, bool(entry.get("columns")) and not spec.columns)


def _faults(entry: dict[str, Any], where: str) -> Iterator[Problem]:
    for key in entry.keys() - {*KEYS, *SOURCES}:
        yield Problem(f"{where}.{key}", "there is no such key", nearest(key, KEYS + SOURCES))
    yield from _wrong_types(entry, where)
    for group, known in (("columns", COLUMNS), ("tags", TAGS)):
        for key in _names(entry, group).keys() - set(known):
            yield Problem(f"{where}.{group}.{key}", "there is no such key", nearest(key, known))
    for key in MEDIA:
        if key in _names(entry, "columns"):
            yield Problem(f"{where}.columns.{key}", "tunesmith learns from text only", "Take another data set")
    if entry.get("formatting", "alpaca") not in ("alpaca", "sharegpt"):
        yield Problem(f"{where}.formatting", f"is {entry['formatting']!r}", "Known: alpaca, sharegpt")
    source = _source(entry)
    if source is None:
        yield Problem(where, "names no source", "Give it a `file_name` or an `hf_hub_url`")
    elif source in REFUSED:
        yield Problem(f"{where}.{source}", *REFUSED[source])
    elif source == "file_name":
        yield from _hub_only(entry, where)


def _hub_only(entry: dict[str, Any], where: str) -> Iterator[Problem]:
    for key in ("subset", "folder", "split"):
        if entry.get(key) and (key, entry[key]) != ("split", "train"):
            yield Problem(f"{where}.{key}", "is for data sets on a hub, and this one is a file", "Take it out")


def _names(entry: dict[str, Any], group: str) -> dict[str, Any]:
    """`columns` or `tags` of an entry; empty where it has none."""
    value = entry.get(group)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _wrong_types(entry: dict[str, Any], where: str) -> Iterator[Problem]:
    for key, value in entry.items():
        if key in ("columns", "tags"):
            sound = isinstance(value, dict) and all(isinstance(v, str) for v in cast("dict[str, Any]", value).values())
            wanted = "an object of names"
        elif key == "ranking":
            sound, wanted = isinstance(value, bool), "true or false"
        elif key == "num_samples":
            sound, wanted = isinstance(value, int) and not isinstance(value, bool) and value > 0, "a number above 0"
        else:
            sound, wanted = isinstance(value, str), "a string"
        if key in KEYS + SOURCES and not sound and value is not None:
            yield Problem(f"{where}.{key}", f"must be {wanted}; the value seen is {json.dumps(value)[:80]}")


def _source(entry: dict[str, Any]) -> str | None:
    """The key of the source that is used: the first one that is there."""
    return next((key for key in SOURCES if entry.get(key)), None)


def _path(entry: dict[str, Any], file: Path, where: str) -> tuple[str, Path | None]:
    source = _source(entry) or "file_name"
    name = str(entry[source])
    folder = entry.get("folder")
    if source == "file_name":
        return str(contained(file.parent, name, where)), file.parent
    if source == "ms_hub_url":
        if folder:
            raise Problem(f"{where}.folder", "is not read for a ModelScope data set", "Name the files in `file_name`")
        return f"modelscope:{name}", None
    return f"{name}:{folder}" if folder else name, None


def contained(folder: Path, name: str, where: str) -> Path:
    """A path inside a folder.

    Raises:
        Problem: it is absolute, goes up, or leads outside through a symlink.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or "\0" in name:
        raise Problem(
            f"{where}.file_name", f"{name!r} leads outside of the registry's folder", "Put the file beside it"
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Problem(
            f"{where}.file_name",
            f"{name!r} is a link that leads outside of the registry's folder",
            "Copy the file there",
        )
    return path


def _format(entry: dict[str, Any]) -> str:
    chat = entry.get("formatting") == "sharegpt"
    columns = _names(entry, "columns")
    if entry.get("ranking"):
        return "preference_messages" if chat else "preference_alpaca"
    if "kto_tag" in columns:
        return "rated"
    if chat:
        return "sharegpt"
    named_text = "prompt" in columns and not columns.keys() & {"response", "query"}
    name = str(entry.get("file_name") or "")
    is_text = (kind_of(Path(name).name) or ("", ""))[0] == "text"
    return "text" if named_text or is_text else "alpaca"


def _columns(entry: dict[str, Any], format_name: str) -> dict[str, str]:
    return {PARTS[format_name].get(key, key): column for key, column in _names(entry, "columns").items()}


def _tags(entry: dict[str, Any], format_name: str) -> dict[str, str]:
    chat = format_name in ("sharegpt", "preference_messages", "rated")
    return _names(entry, "tags") if chat else {}


def refuse_dropped(entry: Entry, rows: list[Mapping[str, Any]], format_name: str, where: str) -> None:
    """Refuse a registry entry whose `columns` leaves out parts that the rows hold.

    Raises:
        Problem: naming what would be lost.
    """
    ours = {**PARTS["alpaca" if format_name == "text" else format_name], **PARTS[format_name]}
    named = set(entry.spec.columns.values())
    lost = {
        key: column
        for key in _keys_read(format_name)
        if ours.get(key, key) not in entry.spec.columns
        and (column := DEFAULTS.get(key, key)) not in named
        and any(row.get(column) for row in rows)
    }
    if lost:
        missing = ", ".join(f'"{key}": "{column}"' for key, column in lost.items())
        raise Problem(
            f"{where}.columns",
            "names some columns, so LLaMA-Factory takes every other as absent, "
            f"but the rows hold {', '.join(lost.values())}",
            f"Name them too: {missing}; or rename the column if it is not meant",
        )


def _keys_read(format_name: str) -> list[str]:
    """The keys of `columns` that a format reads; plain text is what an alpaca row without an answer becomes."""
    from tunesmith.core.plugins import find
    from tunesmith.data.formats import Format

    like = "alpaca" if format_name == "text" else format_name
    parts = cast("type[Format]", find("format", like)).columns
    return [key for key in COLUMNS if PARTS[like].get(key, key) in parts]
