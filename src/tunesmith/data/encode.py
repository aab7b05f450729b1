"""From a Record to TokenRows: which ids, which of them are learned, and what happens to rows that are too long.

    Text        bos text eos                         all learned
    Chat        the template's rendering             its answers learned, each with its closing token
    Preference  prompt ──┬── chosen                  answers learned
                         └── rejected
    Rated       prompt ───── answer, value 1 or 0    answer learned
    Prompt      prompt, open for an answer           nothing learned; the note holds messages, tools and answer key
    Labelled, Tagged, Related                        texts that are judged (`framed.py`)

Every row is tokenised as a whole, so its ids are those that serving gives; a preference's trunk is what both
renderings share before either's first learned token. For encoder-decoders the trunk is the prompt and every answer a
branch (`sides.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Preference, Prompt, Rated, Record, Text
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.data.framed import FRAMED, Grades, cut_framed, framed
from tunesmith.data.masks import NoMask, Span, spans
from tunesmith.data.oddities import record_texts
from tunesmith.data.report import Rejected
from tunesmith.data.sides import cut_sides, prompt_note, sides
from tunesmith.data.template import TemplateRefusal
from tunesmith.data.tokenizer import Codec

TRUNCATED = "truncated to max_tokens"
SPLIT = "split at max_tokens"

Count = Callable[[str], None]
"""Told of something that happened to a row, by a short name."""

_EXCERPT = 120


@dataclass(frozen=True, slots=True)
class Rules:
    """The choices of a run that decide which tokens a record becomes.

    over_long: what happens to longer rows; `auto` becomes `split` for plain text and `drop` for all else; labels: those
    that are learned, in the order of their numbers; several: whether a text may have any number of them;
    number: whether the label is itself a number to be learned; apart: whether the texts of a Related record are read
    one by one, not after the query; grades: which grades such a record must have (`framed.py`); room: tokens of
    `max_tokens` that a prompt leaves for its answer; asked: whether a chat's last question goes with its row as a
    note, for objectives that have it answered anew.
    """

    kind: type[Record]
    max_tokens: int = 1024
    over_long: Literal["auto", "refuse", "drop", "truncate", "split"] = "drop"
    learn: Literal["answers", "last", "all"] = "answers"
    labels: tuple[str, ...] = ()
    several: bool = False
    number: bool = False
    apart: bool = False
    grades: Grades = "any"
    room: int = 0
    asked: bool = False

    def __post_init__(self) -> None:
        """Raises: Problem: `split` for anything but plain text."""
        if self.over_long == "auto":
            object.__setattr__(self, "over_long", "split" if self.kind is Text else "drop")
        if self.over_long == "split" and self.kind is not Text:
            raise Problem(
                "train.over_long",
                f"'split' is for plain text, and this objective takes {self.kind.__name__} rows",
                "Choose drop, truncate or refuse",
            )

    def plain(self) -> dict[str, Any]:
        """The rules as plain data, for a fingerprint."""
        return {
            "kind": self.kind.__name__,
            "max_tokens": self.max_tokens,
            "over_long": self.over_long,
            "learn": self.learn,
            "labels": list(self.labels),
            "several": self.several,
            "number": self.number,
            "apart": self.apart,
            "grades": self.grades,
            "room": self.room,
            "asked": self.asked,
        }


@dataclass(frozen=True, slots=True)
class Written:
    """A chat as its template writes it; weights: of each message that is told apart; everything: that of the rest is 1.

    spans: of the messages that are told apart, but for those whose weight is that of the rest.
    """

    text: str
    spans: Sequence[Span]
    weights: Mapping[int, float]
    everything: bool


def write(record: Record, codec: Codec, rules: Rules) -> Written | Exception | None:
    """The text of a chat ahead of `encode`, or what is wrong with it; None for all other records.

    To write many chats and then to tokenise them is cheaper than to go to and fro: the processor keeps at hand what
    either takes.
    """
    if not isinstance(record, Chat) or codec.encoder_decoder:
        return None
    try:
        return _written_chat(record, codec, rules)
    except (Problem, TemplateRefusal, NoMask) as error:
        return error


def encode(
    record: Record,
    codec: Codec,
    rules: Rules,
    count: Count = lambda name: None,
    written: Written | Exception | None = None,
) -> list[TokenRow] | Rejected:
    """The token rows of a record: one, or several where long text is split; written: what `write` made of it, if asked.

    Raises:
        Problem: a row is longer than `max_tokens` and the rules refuse that, or the template breaks its limits.
    """
    check(codec, rules)
    try:
        if codec.encoder_decoder:
            weights = _learned_answers(record.messages, rules) if isinstance(record, Chat) else {}
            rows = [_fitting(row, record, codec, rules, count) for row in sides(record, codec, weights)]
            if rules.asked and isinstance(record, Chat):
                numbers = (number for number, weight in weights.items() if weight)
                rows = [replace(row, note=_question(record, at)) for row, at in zip(rows, numbers, strict=True)]
        else:
            row = _row(record, codec, rules, written)
            rows = [row] if row.depth + rules.room <= rules.max_tokens else _shorten(row, record, codec, rules, count)
        if type(record) in _LEARNED:
            rows = [row for row in rows if row.learned]
    except TemplateRefusal as error:
        return _rejected(record, "refused by the template", str(error))
    except NoMask as error:
        return _rejected(record, error.reason, str(error))
    return rows or _rejected(record, "nothing to learn", "no token of the row would be learned")


def check(codec: Codec, rules: Rules) -> None:
    """Refuse rules that a model cannot keep.

    Raises:
        Problem: an encoder-decoder is to learn plain text, or its prompts, or is to judge texts.
    """
    if codec.encoder_decoder and rules.kind in FRAMED:
        raise Problem(
            f"rows of kind {rules.kind.__name__}",
            "are for models that read with one stack, and this one has an encoder and a decoder",
            "Take a model without a decoder, or one without an encoder",
        )
    if codec.encoder_decoder and rules.kind is Text:
        raise Problem(
            "rows of plain text",
            "are for models that go on with a text, and this one has an encoder for it, which predicts nothing",
            "Give rows with prompts and answers (objective seq2seq), or take a model without an encoder",
        )
    if codec.encoder_decoder and rules.learn == "all":
        raise Problem(
            "train.learn",
            "is all, and the model reads prompts with an encoder, which predicts nothing",
            "Set it to answers or last",
        )


def _row(record: Record, codec: Codec, rules: Rules, written: Written | Exception | None) -> TokenRow:
    if isinstance(written, Exception):
        raise written
    if written is not None and isinstance(record, Chat):
        return _chat_row(record, codec, rules, written)
    return _ENCODERS[type(record)](record, codec, rules)


def _text(record: Text, codec: Codec, rules: Rules) -> TokenRow:
    end = codec.parts.suffix or (() if codec.eos is None else (codec.eos,))
    ids = [*codec.parts.prefix, *codec.encode_text(record.text), *end]
    if len(ids) == len(codec.parts.prefix) + len(end):
        raise NoMask("empty", "the text is empty")
    weights = np.ones(len(ids), np.float32)
    weights[0] = 0.0
    return TokenRow(Piece(np.array(ids, np.int32), weights))


def _chat(record: Chat, codec: Codec, rules: Rules) -> TokenRow:
    return _chat_row(record, codec, rules, _written_chat(record, codec, rules))


def _written_chat(record: Chat, codec: Codec, rules: Rules) -> Written:
    answers = _learned_answers(record.messages, rules)
    return _written(codec, record.messages, record.tools, answers, rules.learn == "all")


def _chat_row(record: Chat, codec: Codec, rules: Rules, written: Written) -> TokenRow:
    piece = _piece(codec, written)
    if not rules.asked:
        return TokenRow(piece)
    last = max((number for number, message in enumerate(record.messages) if message.role == "assistant"), default=0)
    return TokenRow(piece, note=_question(record, last) if last else "")


def _question(record: Chat, answer: int) -> str:
    """The note of what stands before an answer of a chat, as that of a prompt."""
    return prompt_note(Prompt(record.messages[:answer], tools=record.tools))


def _preference(record: Preference, codec: Codec, rules: Rules) -> TokenRow:
    chosen, rejected = (
        _answer(codec, record.prompt, answer, record.tools) for answer in (record.chosen, record.rejected)
    )
    fork = _fork(chosen, rejected)
    return TokenRow(_between(chosen, 0, fork), (_branch(chosen, fork), _branch(rejected, fork)))


def _rated(record: Rated, codec: Codec, rules: Rules) -> TokenRow:
    whole = _answer(codec, record.prompt, record.answer, record.tools)
    fork = _first_learned(whole)
    return TokenRow(_between(whole, 0, fork), (_branch(whole, fork),), values=(float(record.good),))


def _prompt(record: Prompt, codec: Codec, rules: Rules) -> TokenRow:
    ids = codec.encode_chat(record.messages, record.tools, add_generation_prompt=True)
    return TokenRow(Piece(np.array(ids, np.int32), np.zeros(len(ids), np.float32)), note=prompt_note(record))


_ENCODERS: dict[type[Record], Callable[[Any, Codec, Rules], TokenRow]] = {
    Text: _text,
    Chat: _chat,
    Preference: _preference,
    Rated: _rated,
    Prompt: _prompt,
    **dict.fromkeys(FRAMED, framed),
}
_LEARNED = (Text, Chat, Preference, Rated)
"""The kinds of record whose tokens are learned, so that a row without learned tokens teaches nothing."""


def _learned_answers(messages: Sequence[Message], rules: Rules) -> dict[int, float]:
    """The weight of every message whose tokens are told apart, by the run or by the message itself."""
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    chosen = {"answers": answers, "last": answers[-1:], "all": range(len(messages))}[rules.learn]
    out: dict[int, float] = {}
    for number, message in enumerate(messages):
        learned = number in chosen if message.learn is None else message.learn
        told = message.learn is not None or message.weight != 1.0
        if told or (learned and rules.learn != "all"):
            out[number] = message.weight if learned else 0.0
    return out


def _answer(
    codec: Codec, prompt: Sequence[Message], answer: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> Piece:
    """Prompt and answer as one piece; only the answer's assistant turns are learned."""
    turns = enumerate(answer, len(prompt))
    wanted = {number: turn.weight for number, turn in turns if turn.role == "assistant" and turn.learn is not False}
    if not wanted:
        raise NoMask("no answer", "the answer has no assistant turn")
    piece = _piece(codec, _written(codec, (*prompt, *answer), tools, wanted, False))
    if not 0 < _first_learned(piece) < len(piece):
        raise NoMask("no prompt", "nothing stands before the answer")
    return piece


def _written(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    wanted: Mapping[int, float],
    everything: bool,
) -> Written:
    text, found = spans(codec, messages, tools, [number for number in wanted if not everything or wanted[number] != 1])
    return Written(text, found, wanted, everything)


def _piece(codec: Codec, written: Written) -> Piece:
    """A chat as one piece."""
    found, everything = written.spans, written.everything
    ids, cuts = codec.locate(written.text, [cut for span in found for cut in (span.start, span.stop)])
    if not len(ids):
        raise NoMask("empty", "the chat template writes nothing for this chat")
    weights = np.ones(len(ids), np.float32) if everything else np.zeros(len(ids), np.float32)
    for span, start, stop in zip(found, cuts[::2], cuts[1::2], strict=True):
        weights[start:stop] = written.weights[span.message]
    weights[0] = 0.0
    return Piece(ids, weights)


def _fork(left: Piece, right: Piece) -> int:
    """How many first tokens two pieces share before anything is learned."""
    stop = min(_first_learned(left), _first_learned(right))
    differ = np.flatnonzero(left.tokens[:stop] != right.tokens[:stop])
    fork = int(differ[0]) if len(differ) else stop
    if fork == 0:
        raise NoMask("no common prompt", "the renderings of the two answers share no beginning")
    return fork


def _first_learned(piece: Piece) -> int:
    learned = np.flatnonzero(piece.weights)
    return int(learned[0]) if len(learned) else len(piece)


def _branch(piece: Piece, start: int) -> Piece:
    """An answer up to its closing token; what the template writes after that is no part of it."""
    return _between(piece, start, int(np.flatnonzero(piece.weights)[-1]) + 1)


def _between(piece: Piece, start: int, stop: int) -> Piece:
    return Piece(piece.tokens[start:stop], piece.weights[start:stop])


def _shorten(row: TokenRow, record: Record, codec: Codec, rules: Rules, count: Count) -> list[TokenRow]:
    """What the rules make of a row that is too long."""
    what = f"has {row.depth:,} tokens, and train.max_tokens is {rules.max_tokens:,}"
    what += f", of which an answer may take {rules.room:,}" if rules.room else ""
    _refuse_long(what, record, rules)
    if isinstance(record, Prompt):
        raise NoMask("too long", f"{what}; a prompt is never cut")
    if type(record) in FRAMED:
        short = cut_framed(row, rules.max_tokens, codec, what)
        count(TRUNCATED)
        return [short]
    if rules.over_long == "split":
        count(SPLIT)
        return _windows(row.trunk, rules.max_tokens)
    count(TRUNCATED)
    return [_truncated(row, rules.max_tokens, what)]


def _fitting(row: TokenRow, record: Record, codec: Codec, rules: Rules, count: Count) -> TokenRow:
    """What the rules make of a row whose sides are read apart: each may have `max_tokens`."""
    longest = max(len(piece) for piece in (row.trunk, *row.branches))
    if longest <= rules.max_tokens:
        return row
    side = "prompt" if longest == len(row.trunk) else "answer"
    what = f"has {longest:,} tokens in its {side}, and train.max_tokens is {rules.max_tokens:,}"
    _refuse_long(what, record, rules)
    if isinstance(record, Prompt):
        raise NoMask("too long", f"{what}; a prompt is never cut")
    count(TRUNCATED)
    return cut_sides(row, rules.max_tokens, codec)


def _refuse_long(what: str, record: Record, rules: Rules) -> None:
    if rules.over_long == "refuse":
        raise Problem(str(record.place), what, "Raise max_tokens, or set train.over_long to drop or truncate")
    if rules.over_long == "drop":
        raise NoMask("too long", what)


def _windows(piece: Piece, size: int) -> list[TokenRow]:
    """Windows of a text; each begins with the token that the one before ended with, so that every token is learned."""
    size = max(2, size)
    windows: list[TokenRow] = []
    for start in range(0, max(1, len(piece) - 1), size - 1):
        weights = piece.weights[start : start + size].copy()
        weights[0] = 0.0
        windows.append(TokenRow(Piece(piece.tokens[start : start + size], weights)))
    return windows


def _truncated(row: TokenRow, size: int, what: str) -> TokenRow:
    """A row cut at its end; rows of which a path would lose all that is learned are not used."""
    room = size - len(row.trunk)
    if row.branches and room <= 0:
        raise NoMask("too long", f"{what}; the prompt alone has {len(row.trunk):,}")
    trunk = _between(row.trunk, 0, size)
    branches = tuple(_between(branch, 0, room) for branch in row.branches)
    if any(not branch.weights.any() for branch in branches) or not (branches or trunk.weights.any()):
        raise NoMask("too long", f"{what}; what is left holds nothing to learn")
    return replace(row, trunk=trunk, branches=branches)


def _rejected(record: Record, reason: str, message: str) -> Rejected:
    return Rejected(record.place, reason, message, excerpt_of(record))


def excerpt_of(record: Record) -> str:
    """How a record begins, for a person."""
    messages = getattr(record, "messages", None) or getattr(record, "prompt", ())
    text = " / ".join([message.content for message in messages] or record_texts(record))
    text = " ".join(text[: 4 * _EXCERPT].split())
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + " …"
