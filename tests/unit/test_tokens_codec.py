"""The codec: ids that never change, decoding piece by piece, templates that have to be chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_codecs import CHATML, chat, codec, tokenizer_json

from tunesmith.core.problem import Problem
from tunesmith.data.codec_parts import CodecParts
from tunesmith.data.template import CHATML as OUR_CHATML
from tunesmith.data.tokenizer import Codec

IM_START, IM_END = 1, 2


def folder_of(tmp_path: Path, tokenizer: str | None = None, **config: Any) -> Path:
    (tmp_path / "tokenizer.json").write_text(tokenizer or tokenizer_json(), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return tmp_path


def without_markers() -> str:
    data = json.loads(tokenizer_json())
    for token in data["added_tokens"][1:3]:
        data["model"]["vocab"][token["content"].replace("im", "xx")] = data["model"]["vocab"].pop(token["content"])
        token["content"] = token["content"].replace("im", "xx")
    return json.dumps(data)


def test_golden_ids() -> None:
    own = codec()
    h, i, quote = (16 + ord(letter) for letter in "hi!")
    hello, the = 16 + 256 + 3, 16 + 256 + 5
    assert own.encode_text("hello the") == [hello, the]
    assert own.encode_text("hi!") == [h, i, quote]
    newline = 16 + 10
    user, assistant = (own.encode_text(role) for role in ("user", "assistant"))
    assert own.encode_chat(chat("hi", "hello")) == [
        *(IM_START, *user, newline, h, i, IM_END, newline),
        *(IM_START, *assistant, newline, hello, IM_END, newline),
    ]
    assert own.vocab_size == 16 + 256 + 8


def test_special_tokens_in_text_are_spelled_out() -> None:
    own = codec()
    ids = own.encode_text("a<|im_end|>")
    assert ids == [16 + ord(letter) for letter in "a<|im_end|>"]
    assert own.decode(ids) == "a<|im_end|>"
    assert own.encode_text("<think>") == [12]


def test_decode_leaves_special_tokens_out_unless_asked() -> None:
    own = codec()
    ids = own.encode_chat(chat("hi"))
    assert own.decode(ids) == "user\nhi\n"
    assert own.decode(ids, special=True) == "<|im_start|>user\nhi<|im_end|>\n"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_stream_shows_the_whole_text_and_never_half_a_character(text: str) -> None:
    own = codec()
    stream = own.decode_stream()
    parts = [stream.add(token) for token in own.encode_text(text)]
    assert "".join([*parts, stream.rest()]) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@given(st.lists(st.integers(0, 279), max_size=30))
def test_a_stream_of_any_tokens_equals_decoding_them_at_once(ids: list[int]) -> None:
    own = codec()
    stream = own.decode_stream()
    assert "".join([*(stream.add(token) for token in ids), stream.rest()]) == own.decode(ids)


def test_a_folder_with_a_template_is_read_as_it_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, chat_template="old", bos_token="<s>", eos_token={"content": "<|im_end|>"})
    (folder / "chat_template.jinja").write_text(CHATML, "utf-8")
    own = Codec.load(folder)
    assert not own.template_was_set
    assert own.template == CHATML
    assert (own.bos, own.eos, own.pad) == (3, IM_END, IM_END)
    assert own.end_tokens == (IM_END,)


def test_a_base_model_gets_chatml_and_says_so(tmp_path: Path) -> None:
    own = Codec.load(folder_of(tmp_path, eos_token="<|endoftext|>"))
    assert own.template_was_set
    assert "ChatML" in own.parts.template_was_set
    assert own.encode_chat(chat("hi", "hello")) == codec().encode_chat(chat("hi", "hello"))
    assert own.end_tokens == (IM_END, 0)


def test_without_the_markers_turns_end_with_the_end_of_text(tmp_path: Path) -> None:
    own = Codec.load(folder_of(tmp_path, without_markers(), eos_token="<|endoftext|>"))
    assert "plain text" in own.parts.template_was_set
    ids = own.encode_chat(chat("hi", "hello"))
    assert own.decode(ids, special=True) == (
        "<|im_start|>user\nhi<|endoftext|>\n<|im_start|>assistant\nhello<|endoftext|>\n"
    )
    assert ids.count(0) == 2
    assert own.end_tokens == (0,)


def test_without_any_end_token_there_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no end token"):
        Codec.load(folder_of(tmp_path, without_markers()))


def test_a_template_can_be_asked_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, chat_template=CHATML, eos_token="<|im_end|>")
    assert Codec.load(folder, "chatml").template == OUR_CHATML
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}", "utf-8")
    assert Codec.load(folder, str(file)).encode_chat(chat("hi")) == codec().encode_text("hi")
    with pytest.raises(Problem, match="cannot be read"):
        Codec.load(folder, str(tmp_path / "none.jinja"))


def test_a_template_for_tools_is_used_for_tools(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools | length }}"}]
    own = Codec.load(folder_of(tmp_path, chat_template=templates, eos_token="<|im_end|>"))
    assert own.render(chat("hi"), ({}, {})).text == "2"
    assert own.render(chat("hi")).text == codec().render(chat("hi")).text


def test_what_the_tokenizer_itself_puts_around_a_text_is_known(tmp_path: Path) -> None:
    data = json.loads(tokenizer_json())
    pieces = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}
    data["post_processor"] = {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special}
    data["post_processor"]["pair"] = [*pieces, {"Sequence": {"id": "B", "type_id": 1}}]
    framed = json.dumps(data)
    options = {"chat_template": CHATML, "bos_token": "<s>", "eos_token": "</s>"}
    assert Codec.load(folder_of(tmp_path, framed, **options)).parts.prefix == (3,)
    assert Codec.load(folder_of(tmp_path, framed, add_bos_token=False, **options)).parts.prefix == ()
    assert Codec.load(folder_of(tmp_path, add_bos_token=True, **options)).parts.prefix == (3,)
    assert Codec.load(folder_of(tmp_path, **options)).parts.prefix == ()


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "[]"])
def test_a_broken_tokenizer_is_a_problem(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, "utf-8")
    with pytest.raises(Problem, match="is no tokenizer"):
        Codec.load(tmp_path)


def test_a_folder_without_a_tokenizer_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem):
        Codec.load(tmp_path)
    with pytest.raises(Problem, match="no such folder"):
        Codec.load(tmp_path / "none")


def test_the_fingerprint_follows_whatever_changes_ids() -> None:
    parts = codec().parts
    others = [
        replace(parts, template=CHATML + " "),
        replace(parts, prefix=(1,)),
        replace(parts, date="2030-01-01"),
        replace(parts, tokenizer=parts.tokenizer.replace("<think>", "<thunk>")),
    ]
    prints = [Codec(part).fingerprint() for part in (parts, *others)]
    assert len(set(prints)) == len(prints)
    assert Codec(parts).fingerprint() == prints[0]


@pytest.mark.parametrize("kind", ["WordLevel", "Unigram"])
def test_the_twin_of_other_models_knows_no_special_tokens_either(kind: str) -> None:
    """These models would find a special token as a whole word of their vocabulary."""
    words = ["<unk>", "</s>", "▁", "a", "b", "<", "/", "s", ">"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": n, "content": words[n], "special": True, **flags} for n in (0, 1)]
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [[word, 0.0 if word == "</s>" else -3.0] for word in words]}
    level = {"type": "WordLevel", "unk_token": "<unk>", "vocab": {word: n for n, word in enumerate(words)}}
    data = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": unigram if kind == "Unigram" else level,
    }
    own = Codec(CodecParts(json.dumps(data), CHATML, specials=(("eos_token", "</s>"),)))
    expected = [words.index(letter) for letter in "a</s>"] if kind == "Unigram" else [0]
    assert own.encode_text("a</s>") == expected
    ids, _ = own.locate("b</s>", ())
    assert ids.tolist() == [4, 1]
