"""Names in tagged words: the spans that tags mean, and how many of them were found.

    B-PER I-PER O B-LOC   ─▶  (PER, 0, 2)  (LOC, 3, 4)

Tags are read as the CoNLL tasks read them, in any of their schemes: IOB, BIO, and with E- for the last word of a span
and S- for one alone. A span goes on while its tags have its kind; one that begins without B- begins all the same. A
found span counts if kind, first and last word are all right. (Tjong Kim Sang and De Meulder 2003)

    precision = right / found      recall = right / there      F1 = 2 right / (found + there)
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[str, int, int]
"""Its kind, its first word, and the word after its last."""

OUTSIDE = "O"


def has_spans(tags: Sequence[str]) -> bool:
    """Whether tags mean spans: all but `O` begin with B-, I-, E- or S-, and some with B- or I-."""
    begins = {tag[:2] for tag in tags if tag != OUTSIDE}
    return bool(begins & {"B-", "I-"}) and begins <= {"B-", "I-", "E-", "S-"}


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans that the tags of a text mean."""
    found: set[Span] = set()
    kind, start, over = "", 0, True
    for place, tag in enumerate((*tags, OUTSIDE)):
        mark, _, name = tag.partition("-")
        begins = mark in ("B", "S") or over or name != kind
        if kind and (begins or tag == OUTSIDE):
            found.add((kind, start, place))
        if tag == OUTSIDE:
            kind, over = "", True
            continue
        if begins:
            kind, start = name, place
        over = mark in ("E", "S")
    return found


def counted(found: Sequence[str], right: Sequence[str]) -> tuple[int, int, int]:
    """How many spans are found rightly, how many are found, and how many there are."""
    ours, theirs = spans(found), spans(right)
    return len(ours & theirs), len(ours), len(theirs)
