"""One row as the exact tokens that training sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli import screen

if TYPE_CHECKING:
    from rich.text import Text

    from tunesmith.core.records import Record
    from tunesmith.core.rows import Piece, TokenRow
    from tunesmith.core.run import DataSpec
    from tunesmith.data.encode import Rules
    from tunesmith.data.report import Rejected
    from tunesmith.data.tokenizer import Codec

EPILOG = """\
Examples:

  tunesmith data view rows.jsonl --row 3
  tunesmith data view rows.jsonl --row 3 --model Qwen/Qwen3-0.6B --ids
  tunesmith data view --run run.yaml --row 3

With --run the row is read, templated, masked and cut exactly as that run
will do it."""

STYLES = {"learned": "green", "masked": "dim", "cut": "red strike"}
SPECIAL = "magenta"
MEANINGS = {
    "learned": "the model is taught to predict these tokens",
    "masked": "context: read, but not learned",
    "cut": "beyond train.max_tokens, so not in the run",
}
WITHOUT_LIMIT = 1 << 30
DEFAULT_MAX_TOKENS = 1024


def view(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="A file, folder or id on a hub; with --run, the run's first source."),
    ] = None,
    row: Annotated[int, typer.Option("--row", min=1, help="Which row, counted from 1.")] = 1,
    model: Annotated[
        str, typer.Option("--model", help="The model whose tokenizer and chat template are used.")
    ] = "builtin:seedling",
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN.yaml", help="See the row as this run (or run folder) does.")
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="List one token a line, with its number.")] = False,
) -> None:
    """Show the exact tokens of a row: which are learned, masked, cut off or special."""
    from tunesmith.data.report import Rejected

    spec, base, rules, codec = _choices(file, run, model)
    record = _record(spec, base, row)
    screen.say(f"Row {row} of {spec.path} ({_place(record)})", "bold")
    if isinstance(record, Rejected):
        screen.say(f"Rejected as {record.reason}: {record.message}", "red")
        screen.say(record.excerpt)
        raise typer.Exit(1)
    _show(record, spec, rules, codec, ids)


def _choices(file: str | None, run: Path | None, model: str) -> tuple[DataSpec, Path, Rules | None, Codec]:
    """The source, where its path starts, the run's rules (None without a run), and the codec."""
    from tunesmith.cli import runs
    from tunesmith.core.problem import Problem
    from tunesmith.core.run import DataSpec

    if run is None:
        if file is None:
            raise Problem("data view", "no file is given", "Give a file, or --run RUN.yaml")
        return DataSpec(path=file), Path(), None, _codec(model, None)
    read, base = runs.read(run)
    sources = [*read.data, *read.validation.data]
    spec = next((source for source in sources if file in (None, source.path)), None)
    if spec is None:
        known = ", ".join(source.path for source in sources)
        raise Problem(f"{file}", f"is no source of {run}", f"Its sources: {known}")
    from tunesmith.data.encode import Rules

    train, objective = read.train, read.objective
    limit = train.max_tokens or DEFAULT_MAX_TOKENS
    rules = Rules(objective.takes, limit, train.over_long, train.learn)  # type: ignore[attr-defined]
    return spec, base, rules, _codec(read.model.path, read.model.chat_template)


def _codec(model: str, template: str | None) -> Codec:
    """The codec alone; no weights are read."""
    from tunesmith import builtin
    from tunesmith.data.tokenizer import Codec

    if model.startswith(builtin.PREFIX):
        return Codec.load(builtin.path(model), template)
    from tunesmith.models.source import find, is_encoder_decoder

    found = find(model)
    return Codec.load(found.tokenizer, template, is_encoder_decoder(found))


def _record(spec: DataSpec, base: Path, row: int) -> Record | Rejected:
    from tunesmith.core.problem import Problem
    from tunesmith.data.sources import open_source

    records = (record for source in open_source(spec, base) for record in source.records())
    found = next(islice(records, row - 1, None), None)
    if found is None:
        count = sum(1 for source in open_source(spec, base) for _ in source.records())
        raise Problem(
            f"{spec.path}: row {row}", f"there is no such row; the last is {count:,}", "Give a smaller number"
        )
    return found


def _show(record: Record, spec: DataSpec, rules: Rules | None, codec: Codec, ids: bool) -> None:
    """Print what the record becomes, without a limit, and which of it the run keeps."""
    from tunesmith.core.records import Chat, Labelled
    from tunesmith.data.encode import Rules

    kind = rules.kind if rules else (Chat if isinstance(record, Labelled) else type(record))
    rules = rules or Rules(kind, DEFAULT_MAX_TOKENS)
    for made in _converted(record, kind, spec):
        _show_one(made, rules, codec, ids)


def _converted(record: Record, kind: type[Record], spec: DataSpec) -> tuple[Record, ...]:
    """What the row becomes for the run's objective."""
    from tunesmith.data.convert import conversions
    from tunesmith.data.formats import RowFault

    try:
        return conversions(record, kind, spec)
    except RowFault as fault:
        screen.say(f"Rejected as {fault.reason}: {fault}", "red")
        raise typer.Exit(1) from fault


def _show_one(record: Record, rules: Rules, codec: Codec, ids: bool) -> None:
    from tunesmith.data.encode import encode
    from tunesmith.data.report import Rejected

    whole = encode(record, codec, replace(rules, max_tokens=WITHOUT_LIMIT))
    kept = encode(record, codec, replace(rules, over_long="drop") if rules.over_long == "refuse" else rules)
    if isinstance(whole, Rejected):
        screen.say(f"Rejected as {whole.reason}: {whole.message}", "red")
        raise typer.Exit(1)
    for found in whole:
        _pieces(found, kept, rules, codec, ids)
    if beside := _beside(record):
        screen.heading("beside it, never shown to the model")
        screen.say(beside)
    _legend(whole, codec)
    if isinstance(kept, Rejected):
        screen.say(f"This row is not used: {kept.message} (train.over_long is {rules.over_long}).", "red")


def _beside(record: Record) -> str:
    """What goes with a row that is judged or answered: its labels, tags or key."""
    from tunesmith.core.records import Labelled, Prompt, Tagged

    if isinstance(record, Tagged):
        return " ".join(f"{word}/{tag}" for word, tag in zip(record.words, record.tags, strict=True))
    return record.label if isinstance(record, Labelled) else record.answer if isinstance(record, Prompt) else ""


def _pieces(whole: TokenRow, kept: list[TokenRow] | Rejected, rules: Rules, codec: Codec, ids: bool) -> None:
    """Print every piece of a row; what stands behind the run's limit is shown as cut."""
    split = rules.over_long == "split" or not isinstance(kept, list)
    room = WITHOUT_LIMIT if split else rules.max_tokens
    names = _names(whole, rules.kind, codec)
    if len(whole.trunk):
        _piece(names[0], whole.trunk, room, codec, ids)
    before = 0 if codec.encoder_decoder else len(whole.trunk)
    for name, branch in zip(names[1:], whole.branches, strict=True):
        _piece(name, branch, max(0, room - before), codec, ids)
    if isinstance(kept, list) and len(kept) > 1 and not codec.encoder_decoder:
        screen.say(f"Split into {len(kept)} windows of at most {rules.max_tokens:,} tokens.")


def _names(row: TokenRow, kind: type[Record], codec: Codec) -> tuple[str, ...]:
    from tunesmith.core.records import Preference, Rated, Related

    prompt = "prompt, read by the encoder" if codec.encoder_decoder else "prompt"
    if kind is Related:
        return ("text", *(f"text of grade {grade:g}" for grade in row.values))
    if kind is Preference:
        return (prompt, "chosen", "rejected")
    if kind is Rated:
        return (prompt, f"answer, found {'good' if row.values[0] else 'bad'}")
    return (prompt, "answer, written by the decoder") if row.branches else ("tokens",)


def _piece(name: str, piece: Piece, room: int, codec: Codec, ids: bool) -> None:
    screen.heading(f"{name} ({len(piece):,})")
    states = [_state(piece, place, room) for place in range(len(piece))]
    show = _listed if ids else _running
    for line in show(piece, states, codec):
        screen.console().print(line, soft_wrap=True)


def _state(piece: Piece, place: int, room: int) -> str:
    if place >= room:
        return "cut"
    weight = float(piece.weights[place])
    return "masked" if weight == 0 else "learned" if weight == 1 else f"learned x {weight:g}"


def _running(piece: Piece, states: list[str], codec: Codec) -> Iterator[Text]:
    """Tokens of one state side by side, divided by bars."""
    from rich.text import Text

    for state, group in groupby(range(len(piece)), key=states.__getitem__):
        places = list(group)
        line = Text(f"{places[0]:>5}  {state:<8} ")
        tokens = [int(piece.tokens[place]) for place in places]
        for text, special in _spelled(tokens, codec):
            line.append("│", "dim")
            line.append(text, SPECIAL if special else _style(state))
        yield line


def _listed(piece: Piece, states: list[str], codec: Codec) -> Iterator[Text]:
    """One token a line: its place, number, state, and how the vocabulary spells it."""
    from rich.text import Text

    special = set(codec.special_ids.values())
    for place, state in enumerate(states):
        token = int(piece.tokens[place])
        mark = "special " if token in special else ""
        text = _visible(codec.decode([token], special=True))
        yield Text(f"{place:>5}  {token:>7}  {state:<8} {mark}{text}", SPECIAL if mark else _style(state))


def _spelled(tokens: list[int], codec: Codec) -> Iterator[tuple[str, bool]]:
    """The texts of tokens; those that only together make a character stand together."""
    special = set(codec.special_ids.values())
    held: list[int] = []
    for token in tokens:
        held.append(token)
        text = codec.decode(held, special=True)
        if not text.endswith("\ufffd") or len(held) > 4:
            yield _visible(text), token in special
            held = []
    if held:
        yield _visible(codec.decode(held, special=True)), False


def _visible(text: str) -> str:
    return screen.clean(text.replace("\n", "⏎").replace("\t", "⇥"))


def _style(state: str) -> str:
    return STYLES[state.partition(" ")[0]]


def _legend(rows: list[TokenRow], codec: Codec) -> None:
    from rich.text import Text

    screen.heading("legend")
    out = screen.console()
    for state, meaning in MEANINGS.items():
        out.print(Text(f"  {state:<8} ", _style(state)).append(meaning, "default"), soft_wrap=True)
    names = " ".join(sorted(codec.special_ids, key=codec.special_ids.__getitem__)[:8])
    out.print(
        Text("  special  ", SPECIAL).append(f"tokens with a meaning of their own: {names}", "default"), soft_wrap=True
    )
    tokens, learned = sum(map(len, rows)), sum(row.learned for row in rows)
    screen.say(f"{tokens:,} tokens, {learned:,} learned; │ stands between tokens, ⏎ is a line break.")


def _place(record: Record | Rejected) -> str:
    return f"line {record.place.line}" if record.place.line else record.place.file
