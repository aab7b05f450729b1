"""The renderer and the codec against transformers' own, on templates of several families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_codecs import CALL, TEMPLATES, TOOLS, chat, codec, oracle

from tunesmith.core.records import Chat, Message
from tunesmith.data.encode import Rules, encode
from tunesmith.data.template import FROZEN_DATE, TemplateRefusal
from tunesmith.data.tokenizer import Codec

PLAIN = {
    "one turn": chat("hello", "hello there"),
    "open": chat("hello"),
    "three turns": chat("what is\nthis?", " a thing ", "the thing", "ing", "好的", "是 🙂"),
    "markup": chat("<b>&amp; \"quotes\" 'x' {{ x }} {% y %}", "a < b\tc"),
}
RICH = {
    "system": (Message("system", " be kind "), *chat("hello", "hello")),
    "thinking": chat("2+2?", "4", "3+3?", "6", reasoning="three and three"),
    "thought in content": chat("2+2?", "<think>\nwell\n</think>\n\n4"),
    "tool": (
        *chat("weather?", ""),
        Message("tool", '{"degrees": 7}', name="weather"),
        *chat("thanks", "7 degrees")[1:],
    ),
    "call": (
        Message("user", "weather?"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", "7", name="weather"),
        Message("assistant", "seven"),
    ),
}


def expected(style: str, messages: tuple[Message, ...], tools: Any, prompt: bool) -> str:
    from datetime import date

    from transformers.utils import chat_template_utils

    class Frozen:
        @staticmethod
        def now() -> date:
            return date.fromisoformat(FROZEN_DATE)

    patch = pytest.MonkeyPatch()
    patch.setattr(chat_template_utils, "datetime", Frozen)
    try:
        return oracle(style).apply_chat_template(
            [message.plain() for message in messages],
            tools=list(tools) or None,
            add_generation_prompt=prompt,
            tokenize=False,
        )
    finally:
        patch.undo()


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", [*PLAIN, *RICH])
@pytest.mark.parametrize("style", list(TEMPLATES))
def test_text_and_ids_equal_those_of_transformers(style: str, name: str, prompt: bool) -> None:
    messages = (PLAIN | RICH)[name]
    own = codec(style)
    try:
        text = own.render(messages, (), prompt).text
    except TemplateRefusal as refusal:
        unread = "no place for" in str(refusal)
        if not unread:
            with pytest.raises(Exception, match=str(refusal).rpartition(": ")[2]):
                expected(style, messages, (), prompt)
        assert unread or style in ("gemma", "llama3")
        return
    assert text == expected(style, messages, (), prompt)
    ids = oracle(style)(text, add_special_tokens=False)["input_ids"]
    assert own.encode_chat(messages, (), prompt) == ids


@pytest.mark.parametrize("style", ["llama3", "qwen3", "last_tools"])
def test_tools_are_written_as_transformers_writes_them(style: str) -> None:
    messages = chat("weather?", "sunny", "and now?", "rain")
    assert codec(style).render(messages, TOOLS).text == expected(style, messages, TOOLS, False)


def test_generation_marks_give_the_masks_of_transformers() -> None:
    messages = chat("hello", "hello there", "好", "是 the thing")
    row = encode(Chat(messages), codec("generation"), Rules(Chat))
    assert isinstance(row, list)
    told = oracle("generation").apply_chat_template(
        [message.plain() for message in messages],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert row[0].trunk.tokens.tolist() == told["input_ids"]
    assert row[0].trunk.weights.tolist() == told["assistant_masks"]


@pytest.fixture(scope="module")
def minimind(shared_data: Path) -> Path:
    return shared_data / "tokenizer" / "minimind"


def test_a_real_tokenizer_read_without_transformers_is_the_same(minimind: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(minimind)
    light, of = Codec.load(minimind), Codec.of(theirs)
    texts = ["The 3 quick brown foxes…", "一只敏捷的狐狸\n\n  跳过去", "mixed 中文 and English\t🙂", "<think>", ""]
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert light.encode_text(text) == of.encode_text(text) == ids
        assert light.decode(ids, special=True) == theirs.decode(ids)
    for name, messages in (PLAIN | RICH).items():
        plain = [message.plain() for message in messages]
        for tools in ((), TOOLS):
            ids = theirs.apply_chat_template(plain, tools=list(tools) or None, return_dict=False)
            assert light.encode_chat(messages, tools) == of.encode_chat(messages, tools) == ids, name
    assert light.end_tokens == of.end_tokens == (theirs.eos_token_id,)
    assert light.vocab_size == of.vocab_size == len(theirs)


def test_special_tokens_as_plain_text_equal_split_special_tokens(minimind: Path) -> None:
    """transformers' `split_special_tokens` is an independent way to read special tokens as text."""
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(minimind, split_special_tokens=True)
    own = Codec.load(minimind)
    for text in ["a <|im_end|> b", "<|im_start|>system\nobey<|im_end|>", "<|endoftext|>", "中<|im_end|>文"]:
        ids = plain(text, add_special_tokens=False)["input_ids"]
        assert own.encode_text(text) == ids
        assert not set(ids) & set(own.special_ids.values())
