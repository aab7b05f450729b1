"""Records as an encoder-decoder takes them: a prompt for the encoder, and answers for the decoder.

    Chat        one row for each answer that is learned: what stands before it ───── answer
    Preference  prompt ──┬── chosen
                         └── rejected
    Rated       prompt ───── answer, value 1 or 0
    Prompt      prompt, open for an answer; the note holds messages, tools and answer key

The prompt is what the tokenizer's chat template writes, or without one the turns as plain text; an answer is plain
text. Both stand in the frame that the tokenizer puts around a text (T5: text ⏹), so a row without a template has the
ids that transformers' own tokenizer gives its two texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.core.records import Chat, Message, Preference, Prompt, Rated, Record
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.data.masks import NoMask
from tunesmith.data.tokenizer import Codec

Weights = Mapping[int, float]
"""The weight of each message that is told apart."""
Tools = Sequence[Mapping[str, Any]]


def sides(record: Record, codec: Codec, weights: Weights) -> list[TokenRow]:
    """The token rows of a record; weights: of the messages of a chat, above 0 where they are learned.

    Raises:
        NoMask: an answer that is no plain text, or a prompt that is to be learned.
        TemplateRefusal: the template refuses the prompt.
    """
    return _SIDES[type(record)](record, codec, weights)


def cut_sides(row: TokenRow, size: int, codec: Codec) -> TokenRow:
    """The row with each side cut to `size` tokens at its end; a prompt keeps what the tokenizer ends it with."""
    end = len(codec.parts.suffix) if not codec.template and len(row.trunk) > size else 0
    trunk = np.concatenate([row.trunk.tokens[: size - end], row.trunk.tokens[len(row.trunk) - end :]])
    branches = tuple(Piece(branch.tokens[:size], branch.weights[:size]) for branch in row.branches)
    return TokenRow(_prompt_piece(trunk), branches, values=row.values, note=row.note)


def _chat(record: Chat, codec: Codec, weights: Weights) -> list[TokenRow]:
    learned = {number: weight for number, weight in weights.items() if weight}
    if wrong := [number for number in learned if record.messages[number].role != "assistant"]:
        raise NoMask("prompt learned", f"message {wrong[0]} is no answer, and an encoder only reads")
    return [
        TokenRow(
            _prompt_side(codec, record.messages[:number], record.tools),
            (_answer_side(codec, record.messages[number : number + 1], weight),),
        )
        for number, weight in learned.items()
    ]


def _preference(record: Preference, codec: Codec, weights: Weights) -> list[TokenRow]:
    answers = [_answer_side(codec, answer) for answer in (record.chosen, record.rejected)]
    return [TokenRow(_prompt_side(codec, record.prompt, record.tools), tuple(answers))]


def _rated(record: Rated, codec: Codec, weights: Weights) -> list[TokenRow]:
    prompt, answer = _prompt_side(codec, record.prompt, record.tools), _answer_side(codec, record.answer)
    return [TokenRow(prompt, (answer,), values=(float(record.good),))]


def _prompt(record: Prompt, codec: Codec, weights: Weights) -> list[TokenRow]:
    return [TokenRow(_prompt_side(codec, record.messages, record.tools), note=prompt_note(record))]


def prompt_note(record: Prompt) -> str:
    """What rewards and engines need of a prompt, as a JSON object: its messages, tools and answer key."""
    messages = [message.plain() for message in record.messages]
    note = {"messages": messages, "tools": [dict(tool) for tool in record.tools], "answer": record.answer}
    return json.dumps(note, ensure_ascii=False)


_SIDES: dict[type[Record], Callable[[Any, Codec, Weights], list[TokenRow]]] = {
    Chat: _chat,
    Preference: _preference,
    Rated: _rated,
    Prompt: _prompt,
}


def _prompt_side(codec: Codec, messages: Sequence[Message], tools: Tools) -> Piece:
    if not messages:
        raise NoMask("no prompt", "nothing stands before the answer")
    return _prompt_piece(np.array(codec.encode_chat(messages, tools, add_generation_prompt=True), np.int32))


def _prompt_piece(tokens: np.ndarray[Any, np.dtype[np.int32]]) -> Piece:
    return Piece(tokens, np.zeros(len(tokens), np.float32))


def _answer_side(codec: Codec, answer: Sequence[Message], weight: float | None = None) -> Piece:
    """An answer in its frame; weight: of its tokens, by default what the message says."""
    if len(answer) != 1 or answer[0].role != "assistant":
        raise NoMask("no single answer", "an encoder-decoder writes one turn, and the answer has other turns")
    message = answer[0]
    if message.tool_calls or message.reasoning:
        raise NoMask("answer not text", "the answer has tool calls or reasoning, and a decoder writes plain text here")
    tokens = np.array(codec.encode_framed(message.content), np.int32)
    return Piece(tokens, np.full(len(tokens), message.weight if weight is None else weight, np.float32))
