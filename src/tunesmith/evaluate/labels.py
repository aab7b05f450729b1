"""Labels: which of a few answers a model finds likeliest, without generating anything.

    prompt ──┬── label 1 ⏹      one forest a row: the prompt is computed once,
             ├── label 2 ⏹      every label with its end token is a branch
             └── label 3 ⏹      answer = argmax Σ log p(token)

A label's score is the log-probability of its tokens and of the end token after them. With the end token the labels
are whole answers, which exclude each other, so the sums can be compared as they are: the scores are what the model
would answer, and dividing by the length would favour long labels whose last pieces follow from their first.
`per_token` divides all the same, for bases that have never learned to end an answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.data.encode import Rules, encode
from tunesmith.data.report import Rejected
from tunesmith.data.tokenizer import Codec
from tunesmith.evaluate.figures import Figure, bootstrap, share
from tunesmith.evaluate.outcome import Confusion, Measure, Outcome
from tunesmith.evaluate.scoring import Scorer

MAX_LABELS = 64
By = Literal["probability", "per_token"]


@dataclass(frozen=True)
class LabelRows:
    """Rows whose answer is one of `labels`: tokens, and the number of the right label [rows]."""

    rows: tuple[TokenRow, ...]
    truth: NDArray[np.int64]
    labels: tuple[str, ...]


def label_set(training: Sequence[str], measured: Sequence[str]) -> tuple[str, ...]:
    """The labels to choose among: those of the training rows (of the measured ones where no training is known).

    Raises:
        Problem: more than 64, or a measured row has a label that training does not know.
    """
    known = Counter(training or measured)
    if len(known) > MAX_LABELS:
        raise Problem(
            "labels",
            f"there are {len(known):,}, and at most {MAX_LABELS} can be told apart here",
            "Set labels to none; perplexity and generated answers can still be measured",
        )
    unknown = Counter(label for label in measured if label not in known)
    if unknown:
        shown = ", ".join(f"{label!r} ({count} rows)" for label, count in unknown.most_common(5))
        raise Problem(
            "labels",
            f"the measured rows have labels that the training rows do not have: {shown}. "
            f"The labels of training: {', '.join(map(repr, sorted(known)))}",
            "Mend the labels, or set labels to none",
        )
    return tuple(sorted(known))


def label_row(chat: Chat, labels: Sequence[str], codec: Codec, max_tokens: int) -> TokenRow | Rejected:
    """A chat whose last answer is replaced by each label in turn: the shared prompt, and a branch a label."""
    rules = Rules(Chat, max_tokens=max_tokens, over_long="drop", learn="last")
    rows: list[TokenRow] = []
    for label in labels:
        last = replace(chat.messages[-1], content=label, learn=True, weight=1.0)
        before = tuple(replace(message, learn=False) for message in chat.messages[:-1])
        found = encode(replace(chat, messages=(*before, last)), codec, rules)
        if isinstance(found, Rejected):
            return found
        rows.append(found[0])
    if codec.encoder_decoder:
        return replace(rows[0], branches=tuple(row.branches[0] for row in rows))
    return _forked([row.trunk for row in rows])


def choose(scorer: Scorer, rows: LabelRows, by: By = "probability", seed: int = 0) -> Outcome:
    """Choose a label for every row, and measure the choices."""
    scores = np.stack(scorer.logprobs(rows.rows, "labels"))
    if by == "per_token":
        scores = scores / np.array([[len(branch) for branch in row.branches] for row in rows.rows])
    shares = _softmax(scores)
    outcome = judge(scores.argmax(axis=1), rows.truth, rows.labels, seed)
    return replace(outcome, scores=shares[np.arange(len(rows.rows)), rows.truth])


def judge(chosen: NDArray[np.int64], truth: NDArray[np.int64], labels: tuple[str, ...], seed: int = 0) -> Outcome:
    """Accuracy, macro-F1 and the confusion table of labels chosen [rows] against the right ones [rows]."""
    right = (chosen == truth).astype(np.float64)
    measures = (
        Measure("accuracy", share(int(right.sum()), len(right)), "percent", gains=right),
        Measure("macro-F1", macro_f1(chosen, truth, len(labels), seed), "percent"),
    )
    counts = _counts(chosen, truth, len(labels))
    confusion = Confusion(labels, tuple(tuple(int(n) for n in row) for row in counts))
    return Outcome(measures, right, tuple(labels[number] for number in chosen), confusion)


def macro_f1(chosen: NDArray[np.int64], truth: NDArray[np.int64], classes: int, seed: int = 0) -> Figure:
    """The mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur, right or chosen."""

    def statistic(rows: NDArray[np.int64]) -> float:
        counts = _counts(chosen[rows], truth[rows], classes)
        both = counts.sum(axis=0) + counts.sum(axis=1)
        occurs = both > 0
        return float((2 * counts.diagonal()[occurs] / both[occurs]).mean())

    return bootstrap(len(truth), statistic, seed)


def prompt_text(messages: Sequence[Message]) -> str:
    """What stands before an answer, as one text for a classifier or a person."""
    return "\n".join(message.content for message in messages if message.content)


def _forked(pieces: Sequence[Piece]) -> TokenRow:
    fork = min(int(np.flatnonzero(piece.weights)[0]) for piece in pieces)
    trunk = pieces[0]
    for piece in pieces[1:]:
        differ = np.flatnonzero(piece.tokens[:fork] != trunk.tokens[:fork])
        fork = int(differ[0]) if len(differ) else fork
    branches = [_between(piece, fork, int(np.flatnonzero(piece.weights)[-1]) + 1) for piece in pieces]
    return TokenRow(_between(trunk, 0, fork), tuple(branches))


def _between(piece: Piece, start: int, stop: int) -> Piece:
    return Piece(piece.tokens[start:stop], piece.weights[start:stop])


def _counts(chosen: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return np.bincount(truth * classes + chosen, minlength=classes * classes).reshape(classes, classes)


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
