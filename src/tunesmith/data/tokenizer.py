"""Codec: a model's tokenizer and chat template in one frozen value, without transformers.

    messages ─▶ escape ─▶ render ─▶ text ─▶ ids
               (special tokens in what people wrote become marks, so that only the template's own are special)

Two tokenizers stand behind it. The first is the model's own. The second is its twin, in which every special token is
spelled with characters that no text holds; texts that spell a special token go through the twin, where that spelling
is ordinary text, and everything else about the tokenizer stays as it is.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tunesmith.core.problem import Problem
from tunesmith.core.records import Message
from tunesmith.data.codec_parts import CodecParts, pair_frame, parts_of, parts_of_folder, read_tokenizer, second_type
from tunesmith.data.refusals import refuse_reserved, refuse_unread
from tunesmith.data.template import Rendered, Template, TemplateRefusal
from tunesmith.data.words import Words

THINKING = ("<think>", "</think>")
"""Markers that answers write themselves; in the model's turns they stay what the tokenizer makes of them."""

_ESCAPE, _STAND_IN, PROBE = "\ufdd2", "\ufdd3", "\ufdd4"
_FIRST_MARK = 0x100000
_ESCAPED = re.compile(f"{_ESCAPE}(.)", re.DOTALL)


class Codec:
    """Text and chats to token ids, and back."""

    def __init__(self, parts: CodecParts) -> None:
        """Raises: Problem: the tokenizer or the template in `parts` is none."""
        self.parts = parts
        self._json = _stripped(parts.tokenizer)
        self._own = read_tokenizer(json.dumps(self._json), "tokenizer")
        named = dict(parts.specials)
        self.special_ids = {
            token["content"]: int(token["id"]) for token in self._json["added_tokens"] if token["special"]
        }
        self.bos = self._id(named.get("bos_token"))
        self.eos = self._id(named.get("eos_token"))
        self.pad = next((i for i in (self._id(named.get("pad_token")), self.eos, self.bos) if i is not None), 0)
        self._marks = {text: chr(_FIRST_MARK + number) for number, text in enumerate(self.special_ids)}
        self._specials = _any_of(self._marks)
        self._answer_specials = _any_of(text for text in self._marks if text not in THINKING)
        self._openings = "".join({text[:1] for text in self._marks})
        self._template = Template(parts.template, named, parts.date)
        tools = parts.tool_template
        self._tool_template = Template(tools, named, parts.date) if tools else self._template

    @classmethod
    def load(
        cls, folder: Path, template: str | None = None, encoder_decoder: bool = False, *, chats: bool = True
    ) -> Codec:
        """The codec of a local model folder.

        template: a Jinja file or `chatml` to set in place of the folder's own; None keeps that; encoder_decoder:
        whether the model is one, so that prompts and answers are texts of their own; chats: whether it takes chats,
        which an encoder alone does not, so that it has no template.

        Raises:
            Problem: the folder holds no tokenizer, or one that cannot be read.
        """
        return cls(parts_of_folder(folder, template, encoder_decoder, chats=chats))

    @classmethod
    def of(cls, tokenizer: Any, template: str | None = None, encoder_decoder: bool = False) -> Codec:
        """The codec of a tokenizer of transformers.

        Raises:
            Problem: it has no fast tokenizer behind it.
        """
        return cls(parts_of(tokenizer, template, encoder_decoder))

    @property
    def template(self) -> str:
        """The source of the chat template in use; it is saved with the model. Empty: prompts are plain text."""
        return self.parts.template

    @property
    def encoder_decoder(self) -> bool:
        """Whether prompts are read by an encoder, apart from answers."""
        return self.parts.encoder_decoder

    @property
    def template_was_set(self) -> bool:
        """Whether the template is not the tokenizer's own."""
        return bool(self.template and self.parts.template_was_set)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token."""
        return self._own.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id: the rows an embedding needs."""
        return 1 + max(self.vocabulary.values())

    @cached_property
    def header(self) -> str:
        """The text that opens an answer, such as `<|im_start|>assistant` and a line break; empty where unknown."""
        ask = [{"role": "user", "content": PROBE}]
        try:
            before = self._template.render(ask).text
            after = self._template.render(ask, add_generation_prompt=True).text
        except (Problem, TemplateRefusal):
            return ""
        return after.removeprefix(before) if after.startswith(before) else ""

    @cached_property
    def openings(self) -> tuple[str, ...]:
        """What may be looked for where an answer begins: the header, or its first line, if it holds a special token."""
        first_line = self.header[: self.header.find("\n") + 1]
        return tuple(filter(self.has_special, dict.fromkeys((self.header, first_line))))

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """The special tokens that end an answer: those the template writes after one, and the end of text."""
        call = {"type": "function", "function": {"name": PROBE, "arguments": {PROBE: PROBE}}}
        if self.encoder_decoder:
            return tuple(text for text, number in self.special_ids.items() if number == self.eos)
        answers: list[dict[str, Any]] = [{"content": PROBE}, {"content": "", "tool_calls": [call]}]
        eos = [text for text, number in self.special_ids.items() if number == self.eos]
        found = [self._end_of({"role": "assistant", **answer}) for answer in answers]
        return tuple(dict.fromkeys([text for text in found if text] + eos))

    @cached_property
    def end_pattern(self) -> re.Pattern[str]:
        """Finds the next end of an answer in a rendered text."""
        return _any_of(self.end_texts)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids at which an answer is over."""
        return tuple(self.special_ids[text] for text in self.end_texts)

    def fingerprint(self) -> str:
        """A hash of everything that decides which ids a row becomes."""
        return hashlib.sha256(json.dumps(asdict(self.parts), sort_keys=True).encode()).hexdigest()

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text; special tokens spelled in it are plain text."""
        if self._specials.search(text) is None:
            found = self._words.locate(text, ()) if self._words is not None else None
            return self._own.encode(text, add_special_tokens=False).ids if found is None else found[0].tolist()
        refuse_reserved(text)
        return self._twin.encode(text, add_special_tokens=False).ids

    def encode_framed(self, text: str) -> list[int]:
        """The ids of a text with what the tokenizer puts around one, as an encoder-decoder reads and writes texts."""
        return [*self.parts.prefix, *self.encode_text(text), *self.parts.suffix]

    def encode_words(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """The ids of words with a space between them, framed as a text, and for each word where its last token stands.

        A word that has no token of its own is read at the one that spans it or, where there is none, comes next.
        """
        text = " ".join(words)
        tokenizer = self._own
        if self._specials.search(text) is not None:
            refuse_reserved(text)
            tokenizer = self._twin
        encoding = tokenizer.encode(text, add_special_tokens=False)
        stops = np.cumsum([len(word) + 1 for word in words]) - 1
        ends = np.maximum.accumulate(np.fromiter((stop for _, stop in encoding.offsets), np.int64, len(encoding)))
        reach = np.searchsorted(ends, stops, side="left")
        last = np.maximum(reach, np.searchsorted(ends, stops, side="right") - 1).clip(max=len(encoding) - 1)
        prefix = self.parts.prefix
        return [*prefix, *encoding.ids, *self.parts.suffix], [len(prefix) + int(at) for at in last if len(encoding)]

    @cached_property
    def pair_frame(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer puts before, between and after the two texts of a pair."""
        return pair_frame(self.parts)

    @cached_property
    def second_type(self) -> int:
        """The type of the tokens of a pair's second text, for encoders."""
        return second_type(self.parts)

    def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), add_generation_prompt: bool = False
    ) -> list[int]:
        """The ids of a chat as the template writes it; without one the turns as one text, a line each, in its frame.

        Raises:
            TemplateRefusal: the template refuses the chat, or there is none and the chat is more than text.
        """
        if self.encoder_decoder and not self.template:
            return self.encode_framed(self._as_text(messages, tools))
        return self.locate(self.render(messages, tools, add_generation_prompt).text, ())[0].tolist()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
        trusted: bool = False,
    ) -> Rendered:
        """The chat as text, in which special tokens are the template's own; those of people are marks.

        trusted: whether the text may hold `PROBE`, since we put it there.

        Raises:
            TemplateRefusal: the template refuses the chat, or has no place for a part of it.
            Problem: the template breaks its limits.
        """
        template, source = self._template, self.parts.template
        if tools and self.parts.tool_template:
            template, source = self._tool_template, self.parts.tool_template
        plain = [message.plain() for message in messages]
        if not tools and {*map(len, plain)} <= {2}:  # roles and texts alone, as most chats are
            whole = "".join([message["content"] for message in plain])
            if not trusted:
                refuse_reserved(whole)
            if self._is_bare(whole):
                return template.render(plain, (), add_generation_prompt)
        else:
            refuse_unread(plain, tools, source)
            if not trusted:
                refuse_reserved(plain, tools)
        escaped = [self._escape(message, message["role"] == "assistant") for message in plain]
        return template.render(escaped, [self._escape(tool) for tool in tools], add_generation_prompt)

    def _as_text(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        refuse_unread([message.plain() for message in messages], tools, "")
        return "\n".join(message.content for message in messages)

    def locate(self, text: str, cuts: Sequence[int]) -> tuple[NDArray[np.int32], list[int]]:
        """The ids of a rendered text, and for each cut between characters the first token that reaches past it."""
        escaped = _ESCAPE in text
        if not escaped and self._words is not None and (found := self._words.locate(text, cuts)) is not None:
            return found
        tokenizer = self._own
        if escaped:
            text, cuts = self._for_twin(text, cuts)
            tokenizer = self._twin
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        if not cuts:
            return ids, []
        ends = np.maximum.accumulate(np.fromiter((stop for _, stop in encoding.offsets), np.int64, len(encoding)))
        return ids, np.searchsorted(ends, np.asarray(cuts, np.int64), side="right").tolist()

    def has_special(self, text: str) -> bool:
        """Whether a text spells a special token."""
        return self._specials.search(text) is not None

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ids; special: whether special tokens are written out."""
        return self._own.decode(list(ids), skip_special_tokens=not special)

    def decode_stream(self, special: bool = False) -> TextStream:
        """A decoder that takes ids one at a time and never shows half a character."""
        return TextStream(self, special)

    def show(self, token: int) -> str:
        """One token as the vocabulary spells it."""
        return self._own.id_to_token(token) or f"<{token}>"

    @cached_property
    def _words(self) -> Words | None:
        return Words.of(self._json, self._own)

    @cached_property
    def _twin(self) -> Tokenizer:
        data = json.loads(json.dumps(self._json))
        names = {text: _STAND_IN + mark for text, mark in self._marks.items()}
        _rename(data, names)
        twin = read_tokenizer(json.dumps(data), "tokenizer")
        wrong = [text for text, name in names.items() if twin.token_to_id(name) != self.special_ids[text]]
        if wrong:
            raise RuntimeError(f"the twin tokenizer lost the ids of {wrong[:5]}")
        return twin

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._own.token_to_id(text)

    def _end_of(self, answer: dict[str, Any]) -> str | None:
        chat = [{"role": "user", "content": "a"}, answer]
        try:
            text = self._template.render(chat).text
        except (Problem, TemplateRefusal):
            return None
        found = self._specials.search(text, text.rindex(PROBE)) if PROBE in text else None
        return found.group() if found else None

    def _is_bare(self, text: str) -> bool:
        """Whether a text holds no character that a special token begins with."""
        return not any(map(text.__contains__, self._openings))

    def _escape(self, value: Any, answer: bool = False) -> Any:
        if isinstance(value, str):
            if self._is_bare(value):
                return value
            specials = self._answer_specials if answer else self._specials
            return specials.sub(lambda found: _ESCAPE + self._marks[found.group()], value)
        if isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value).items()
            return {self._escape(key, answer): self._escape(part, answer) for key, part in items}
        if isinstance(value, (list, tuple)):
            return [self._escape(part, answer) for part in cast("Sequence[Any]", value)]
        return value

    def _for_twin(self, text: str, cuts: Sequence[int]) -> tuple[str, list[int]]:
        """A rendered text as the twin reads it, and its cuts moved along."""
        texts = {mark: special for special, mark in self._marks.items()}
        out: list[str] = []
        old, new = [0], [0]
        at = 0
        for found in re.finditer(f"{_ESCAPED.pattern}|{self._specials.pattern}", text, re.DOTALL):
            mark = found.group(1)
            replaced = _STAND_IN + self._marks[found.group()] if mark is None else texts[mark]
            out += (text[at : found.start()], replaced)
            new.append(new[-1] + found.start() - at + len(replaced))
            at = found.end()
            old.append(at)
        out.append(text[at:])
        return "".join(out), [_moved(cut, old, new) for cut in cuts]


class TextStream:
    """Ids in, text out, a character only when all its bytes are there."""

    _HELD = 16

    def __init__(self, codec: Codec, special: bool) -> None:
        self._codec = codec
        self._special = special
        self._ids: list[int] = []
        self._shown = 0

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._ids.append(token)
        text = self._text()
        if text.endswith("\ufffd") and len(self._ids) < self._HELD:
            return ""
        return self._take(text)

    def rest(self) -> str:
        """What is left at the end, an unfinished character included."""
        return self._take(self._text())

    def _take(self, text: str) -> str:
        fresh = text[self._shown :]
        self._ids = self._ids[-1:] if not fresh.endswith("\ufffd") else []
        self._shown = len(self._text())
        return fresh

    def _text(self) -> str:
        return self._codec.decode(self._ids, self._special)


def _moved(cut: int, old: list[int], new: list[int]) -> int:
    last = int(np.searchsorted(old, cut, side="right")) - 1
    return new[last] + cut - old[last]


def _any_of(texts: Any) -> re.Pattern[str]:
    words = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words)) if words else r"(?!)")


def _rename(data: dict[str, Any], names: Mapping[str, str]) -> None:
    """Spell the special tokens of a tokenizer's JSON anew, in place."""
    for token in data["added_tokens"]:
        if token["content"] in names and token["special"]:
            token.update(content=names[token["content"]], normalized=False)
    model = data["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): number for text, number in cast("dict[str, int]", vocab).items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _stripped(text: str) -> dict[str, Any]:
    """A tokenizer's JSON without what it would add, cut or fill by itself."""
    data = json.loads(text)
    data.update(post_processor=None, truncation=None, padding=None)
    return data
