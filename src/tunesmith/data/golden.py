"""Golden ids: a fixed chat as tokens, kept with a run, so that what is served is what was trained."""

from __future__ import annotations

from typing import Any

from tunesmith.core.problem import Problem
from tunesmith.core.records import Message
from tunesmith.data.template import TemplateRefusal
from tunesmith.data.tokenizer import Codec

CHAT = (
    Message("user", "What is 12 + 30? 请用中文回答。"),
    Message("assistant", "42。"),
    Message("user", "Thanks!"),
)


def golden_ids(codec: Codec) -> list[int]:
    """The ids of the fixed chat up to where the next answer begins; of its plain text where the template refuses."""
    try:
        return codec.encode_chat(CHAT, add_generation_prompt=True)
    except TemplateRefusal:
        return codec.encode_text(" ".join(message.content for message in CHAT))


def check_golden(codec: Codec, record: dict[str, Any], where: str) -> None:
    """Compare with the ids kept in a run's record.

    Raises:
        Problem: the tokenizer or template gives other ids than in training.
    """
    kept = record.get("golden_ids")
    if kept is not None and golden_ids(codec) != kept:
        raise Problem(
            where,
            "its tokenizer or chat template gives other tokens than it did in training",
            "Put the saved tokenizer files back as they were, or use the library versions in record.json",
        )
