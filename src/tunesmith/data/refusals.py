"""What no chat template is given: characters that mark places, and parts that it would leave out in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from tunesmith.data.template import RESERVED, TemplateRefusal


def refuse_reserved(*values: Any) -> None:
    """Refuse text that no text may be, wherever it stands in some values.

    Raises:
        TemplateRefusal: a noncharacter, which the renderer and the encoder mark places with.
    """
    found = next(filter(None, (RESERVED.search(text) for text in _texts(values) if not text.isascii())), None)
    if found:
        raise TemplateRefusal(f"holds the Unicode noncharacter U+{ord(found.group()):04X}, which no text may hold")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            yield from _texts(key)
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in cast("Sequence[Any]", value):
            yield from _texts(part)


def refuse_unread(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], source: str) -> None:
    """Refuse what the template would leave out in silence.

    Raises:
        TemplateRefusal: a part that the template's source does not name.
    """
    parts = {"tools": bool(tools)}
    for name in ("tool_calls", "reasoning_content"):
        parts[name] = any(message.get(name) for message in messages)
    for name, used in parts.items():
        if used and name not in source:
            word = name.replace("_", " ").replace("reasoning content", "reasoning")
            what = "the chat template has no place for them" if source else "there is no chat template to write them"
            raise TemplateRefusal(f"has {word}, and {what}")
