"""Which characters of a rendered chat are learned, found from the template itself.

    <|im_start|>user⏎What?<|im_end|>⏎<|im_start|>assistant⏎Forty-two.<|im_end|>⏎
                                                          └── learned ───────┘

An answer begins where the template's prompt for it ends, and ends with the special token that closes the turn; what
the template writes after that is nobody's answer. The beginning is looked for in this order:

1. `{% generation %}` marks, if the template has them and there is one for each answer;
2. the header that opens every answer, if it holds a special token (people cannot write one) and occurs once an answer;
3. the chat up to the answer with the prompt for one, if it begins the whole text (or parts from it within the header,
   as where the prompt of a thinking model already closes an empty thought);
4. a mark put into the answer, where a template rewrites earlier turns; what it writes before that is not learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.core.records import Message
from tunesmith.data.template import Rendered, TemplateRefusal
from tunesmith.data.tokenizer import PROBE, Codec


@dataclass(frozen=True, slots=True)
class Span:
    """The characters [start, stop) of one message, as far as they can be learned."""

    message: int
    start: int
    stop: int


class NoMask(ValueError):
    """What is to be learned cannot be found in the rendered text; `reason` is a short name to count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def spans(
    codec: Codec, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], wanted: Sequence[int]
) -> tuple[str, list[Span]]:
    """The rendered chat, and the span of each wanted message.

    Raises:
        NoMask: a wanted message cannot be found, or its end is not marked.
        TemplateRefusal: the template refuses the chat.
    """
    rendered = codec.render(messages, tools)
    chat = _Chat(codec, tuple(messages), tools, rendered)
    return rendered.text, [chat.span(number) for number in wanted]


class _Chat:
    """A rendered chat in which messages are looked for."""

    def __init__(
        self, codec: Codec, messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]], rendered: Rendered
    ) -> None:
        self.codec = codec
        self.messages = messages
        self.tools = tools
        self.text = rendered.text
        self.answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
        marked = rendered.spans if len(rendered.spans) == len(self.answers) else ()
        self.marked = dict(zip(self.answers, marked, strict=False))
        self.starts = {} if marked else dict(zip(self.answers, self._headers(), strict=False))

    def span(self, number: int) -> Span:
        if self.messages[number].role != "assistant":
            return self._other(number)
        if number in self.marked:
            start, stop = self.marked[number]
            return Span(number, start, self._with_end(stop))
        start = self._start(number)
        return Span(number, start, self._end(number, start))

    def _headers(self) -> list[int]:
        """Where each answer begins, by the header before it; empty if headers and answers do not pair up."""
        header = self.codec.header
        for opening in self.codec.openings:
            found = _places(self.text, opening)
            if len(found) == len(self.answers):
                return [at + self._shared(at, header) for at in found]
        return []

    def _shared(self, at: int, header: str) -> int:
        """How much of the header stands at a place."""
        whole = self.text.startswith(header, at)
        return len(header) if whole else _common(self.text[at : at + len(header)], header)

    def _start(self, number: int) -> int:
        if number not in self.starts:
            found = self._by_prompt(number)
            self.starts[number] = self._by_mark(number) if found is None else found
        return self.starts[number]

    def _by_prompt(self, number: int) -> int | None:
        """The answer begins where its prompt ends."""
        before = self.messages[:number]
        try:
            prompt = self.codec.render(before, self.tools, add_generation_prompt=True).text
            if self.text.startswith(prompt):
                return len(prompt)
            bare = self.codec.render(before, self.tools).text
        except TemplateRefusal:
            return None
        shared = _common(self.text, prompt)
        return shared if shared > len(bare) and prompt.startswith(bare) else None

    def _by_mark(self, number: int) -> int:
        """The answer begins where a mark in its first part comes out."""
        message = self.messages[number]
        part = "reasoning" if message.reasoning else "content"
        value = getattr(message, part)
        lead = len(value) - len(value.lstrip())
        marked = replace(message, **{part: value[:lead] + PROBE + value[lead:]})
        chat = (*self.messages[:number], marked, *self.messages[number + 1 :])
        text = self.codec.render(chat, self.tools, trusted=True).text
        if text.count(PROBE) != 1 or text.replace(PROBE, "") != self.text:
            raise NoMask("answer not found", f"message {number} cannot be found in what the chat template writes")
        return text.index(PROBE)

    def _end(self, number: int, start: int) -> int:
        """After the first end token; nobody but the template can have written one."""
        later = [self.starts[other] for other in self.answers if other > number and other in self.starts]
        found = self.codec.end_pattern.search(self.text, start)
        if found is None or (later and found.end() > min(later)):
            raise NoMask("answer without end", f"the chat template closes message {number} with no end token")
        return found.end()

    def _with_end(self, stop: int) -> int:
        found = self.codec.end_pattern.match(self.text, stop)
        return found.end() if found else stop

    def _other(self, number: int) -> Span:
        """A message that is no answer: what it adds to the text."""
        before = self.codec.render(self.messages[:number], self.tools).text if number else ""
        after = self.codec.render(self.messages[: number + 1], self.tools).text
        if not (self.text.startswith(after) and after.startswith(before)):
            raise NoMask("message not found", f"message {number} cannot be told apart in what the chat template writes")
        return Span(number, len(before), len(after))


def _places(text: str, part: str) -> list[int]:
    """Where a part of a text begins, each after the end of the one before."""
    found: list[int] = []
    at = text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + len(part))
    return found


def _common(left: str, right: str) -> int:
    """How many characters two texts share at their beginning."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))
