"""Finding the format of rows: every format says whether a row looks like its own, and one must win.

first rows ─▶ columns renamed ─▶ each format's matches ─▶ the one that most rows match, with its reason
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from tunesmith.core.plugins import build, find, names
from tunesmith.core.problem import Problem, nearest
from tunesmith.data.formats import Format, Row
from tunesmith.data.parts import kind_of
from tunesmith.data.turns import ChatFormat

ALIASES: Mapping[str, tuple[str, ...]] = {
    "instruction": ("question", "prompt", "query", "problem", "input", "user", "human", "task", "title"),
    "output": ("answer", "response", "completion", "target", "solution", "reply", "assistant", "summary"),
    "chosen": ("better", "accepted", "preferred", "winner", "positive"),
    "rejected": ("worse", "refused", "loser", "negative"),
    "text": ("content", "body", "document", "story", "article", "raw_content", "review", "sentence"),
    "label": ("sentiment", "category", "class", "intent", "target"),
    "sentence1": ("sentence_a", "text1", "text_a", "question1", "premise"),
    "sentence2": ("sentence_b", "text2", "text_b", "question2", "hypothesis"),
    "score": ("similarity", "relatedness_score", "similarity_score", "relatedness", "is_duplicate"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
}
"""Columns that other data sets use for our parts; they are only suggested, never taken by themselves."""


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the columns that play parts under the names of those parts; {part: column}."""
    if not columns:
        return row
    taken = set(columns.values())
    rest = {name: value for name, value in row.items() if name not in taken}
    return {**rest, **{part: row[column] for part, column in columns.items() if column in row}}


def choose(
    rows: Sequence[Row], where: str, format_name: str | None, columns: Mapping[str, str], tags: Mapping[str, str]
) -> tuple[Format, str]:
    """The format of rows (already the first few of a source) and why it is that one.

    Raises:
        Problem: no format fits, two fit equally well, or columns and tags do not go with the format.
    """
    _refuse_absent(rows, where, columns)
    renamed = [rename(row, columns) for row in rows]
    if format_name is not None:
        chosen, reason = _named(format_name, tags, where), "as given by `format`"
    else:
        chosen, reason = _found(renamed, where, tags)
    unknown = [part for part in columns if part not in chosen.columns]
    if unknown:
        raise Problem(
            f"{where}: columns.{unknown[0]}",
            f"the format {chosen.name()} has no such part",
            nearest(unknown[0], chosen.columns),
        )
    return chosen, reason


def make_format(name: str, tags: Mapping[str, str]) -> Format:
    """A format by its name, with tags where it takes them.

    Raises:
        Problem: no such format, or tags that it does not take.
    """
    if tags and not issubclass(find("format", name), ChatFormat):
        raise Problem("tags", f"the format {name} has no turns, so tags mean nothing to it", "Take them out")
    return cast(Format, build("format", {name: dict(tags)}))


@dataclass(frozen=True, slots=True)
class _Match:
    format: Format
    count: int
    reason: str


def _named(name: str, tags: Mapping[str, str], where: str) -> Format:
    try:
        return make_format(name, tags)
    except Problem as problem:
        raise Problem(f"{where}: {problem.where or 'format'}", problem.what, problem.hint) from problem


def _found(rows: Sequence[Row], where: str, tags: Mapping[str, str]) -> tuple[Format, str]:
    matches = [match for name in names("format") if (match := _match(name, rows, tags))]
    matches.sort(key=lambda match: -match.count)
    if not matches or 2 * matches[0].count < len(rows):
        raise _no_format(rows, where)
    best = matches[0]
    if len(matches) > 1 and matches[1].count == best.count:
        equal = [match.format.name() for match in matches if match.count == best.count]
        raise Problem(
            where,
            f"the rows could be {' or '.join(equal)}: {best.count} of {len(rows)} fit each ({_columns_seen(rows)})",
            f"Say which with `format: {equal[0]}`",
        )
    share = (
        f"all of the first {len(rows)} rows" if best.count == len(rows) else f"{best.count} of the first {len(rows)}"
    )
    return best.format, f"{best.reason} in {share if len(rows) > 1 else 'the one row'}"


def _match(name: str, rows: Sequence[Row], tags: Mapping[str, str]) -> _Match | None:
    if tags and not issubclass(find("format", name), ChatFormat):
        return None
    candidate = make_format(name, tags)
    reasons = [reason for row in rows if (reason := candidate.matches(row))]
    return _Match(candidate, len(reasons), reasons[0]) if reasons else None


def _refuse_absent(rows: Sequence[Row], where: str, columns: Mapping[str, str]) -> None:
    seen = {name for row in rows for name in row}
    for part, column in columns.items():
        if seen and column not in seen:
            raise Problem(f"{where}: columns.{part}", f"no row has a column {column!r}", nearest(column, seen))


def _no_format(rows: Sequence[Row], where: str) -> Problem:
    mapping = suggest(rows[0]) if rows else {}
    written = ", ".join(f"{part}: {column}" for part, column in mapping.items())
    first = (
        f"If this is what they mean, map them: `columns: {{{written}}}`"
        if written
        else ("Map columns to the parts of a format, as in `columns: {instruction: ..., output: ...}`")
    )
    return Problem(
        where, f"no format fits these rows; {_columns_seen(rows)}", f"{first}. Formats: {', '.join(names('format'))}"
    )


def _columns_seen(rows: Sequence[Row]) -> str:
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, "number" if isinstance(value, (int, float)) else kind_of(value).removeprefix("a "))
    shown = [f"{name} ({kind})" for name, kind in list(kinds.items())[:20]]
    return f"their columns are {', '.join(shown)}" if shown else "they have no columns"


def suggest(row: Row) -> dict[str, str]:
    """A mapping {part: column} that may make sense of a row, to be shown to a person; empty where none is near."""
    strings = [name for name, value in row.items() if isinstance(value, str)]
    turns = next((name for name in ALIASES["messages"] if isinstance(row.get(name), list)), None)
    if turns:
        return {"messages": turns}
    scored = {part: column for part in ("sentence1", "sentence2", "score") if (column := _alias(part, list(row)))}
    if len(scored) == 3:
        return scored
    pair = _pair(row, strings, "chosen", "rejected")
    if pair:
        asked = _alias("instruction", strings)
        return ({"instruction": asked} if asked else {}) | pair
    return _pair(row, strings, "instruction", "output") or _labelled(row, strings) or _only(strings)


def _alias(part: str, columns: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in (part, *ALIASES[part]) if name in lower), None)


def _pair(row: Row, strings: Sequence[str], first: str, second: str) -> dict[str, str]:
    """Both parts by their aliases; or one by its alias and the other as the only string that is left."""
    found = {part: column for part in (first, second) if (column := _alias(part, strings))}
    left = [name for name in strings if name not in found.values()]
    if len(found) == 1 and len(left) == 1 and first == "instruction" and second in found:
        found = {first: left[0], **found}
    return found if len(found) == 2 and len(set(found.values())) == 2 else {}


def _labelled(row: Row, strings: Sequence[str]) -> dict[str, str]:
    if list(row) == ["column1", "column2"]:
        return {"text": "column1", "label": "column2"}
    text, label = _alias("text", strings), _alias("label", list(row))
    return {"text": text, "label": label} if text and label and text != label else {}


def _only(strings: Sequence[str]) -> dict[str, str]:
    text = strings[0] if len(strings) == 1 else _alias("text", strings)
    return {"text": text} if text else {}
