"""Rows for encoder-decoders: which ids each side has, what is learned, what is cut and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_codecs import CHATML, TOOLS, chat, oracle, sides_codec, sides_oracle
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Place, Preference, Prompt, Rated, Record, Text
from tunesmith.core.rows import TokenRow
from tunesmith.data.encode import Rules, encode
from tunesmith.data.golden import golden_ids
from tunesmith.data.report import Rejected
from tunesmith.data.tokenizer import Codec

ASK, ANSWER = "what is the thing? 你好", "hello the thing"
CHAT = Chat(chat(ASK, ANSWER))


def rows(record: Record, codec: Codec, **rules: Any) -> list[TokenRow]:
    found = encode(record, codec, Rules(type(record), **rules))
    assert isinstance(found, list)
    return found


def rejected(record: Record, codec: Codec, **rules: Any) -> Rejected:
    found = encode(record, codec, Rules(type(record), **rules))
    assert isinstance(found, Rejected)
    return found


def sides(row: TokenRow) -> list[list[int]]:
    return [piece.tokens.tolist() for piece in (row.trunk, *row.branches)]


def pieces() -> Any:
    """A tokenizer of the kind that T5 has: a unigram model over words that begin with a mark."""
    words = ["</s>", "<unk>", "<pad>", "▁", "▁what", "▁is", "▁the", "▁thing", "?", "▁hello", "t", "h", "e", "s"]
    tokenizer = Tokenizer(models.Unigram([(word, -float(n)) for n, word in enumerate(words)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


@pytest.mark.parametrize("tokenizer", [sides_oracle("t5"), sides_oracle("bart"), pieces()], ids=["t5", "bart", "words"])
def test_ids_are_those_of_transformers_tokenizer(tokenizer: Any) -> None:
    codec = Codec.of(tokenizer, encoder_decoder=True)
    (row,) = rows(CHAT, codec)
    assert sides(row) == [tokenizer(ASK)["input_ids"], tokenizer(ANSWER)["input_ids"]]
    assert not row.trunk.weights.any()
    assert (row.branches[0].weights == 1).all()
    assert codec.end_tokens == (tokenizer.eos_token_id,)
    assert codec.decode(sides(row)[1]) == ANSWER


def test_each_answer_is_a_row_and_reads_what_stands_before_it() -> None:
    record = Chat((Message("system", "Be kind."), *chat("one", "first", "two", "second")))
    tokenizer = sides_oracle()
    found = [sides(row) for row in rows(record, sides_codec())]
    prompts = ["Be kind.\none", "Be kind.\none\nfirst\ntwo"]
    expected = zip(prompts, ("first", "second"), strict=True)
    assert found == [[tokenizer(text)["input_ids"] for text in pair] for pair in expected]
    (last,) = rows(record, sides_codec(), learn="last")
    assert sides(last) == found[1]


def test_messages_say_what_is_learned_and_how_much() -> None:
    first, second = Message("assistant", "a", learn=False), Message("assistant", "b", weight=0.5)
    (row,) = rows(Chat((Message("user", "x"), first, Message("user", "y"), second)), sides_codec())
    assert np.array_equal(row.branches[0].weights, [0.5, 0.5])
    learned = Chat((Message("user", "x", learn=True), Message("assistant", "a")))
    assert rejected(learned, sides_codec()).reason == "prompt learned"


def test_preferences_ratings_and_prompts() -> None:
    codec, tokenizer = sides_codec("bart"), sides_oracle("bart")
    ids = [tokenizer(text)["input_ids"] for text in (ASK, "good", "bad")]
    prompt, good, bad = (Message("user", ASK),), (Message("assistant", "good"),), (Message("assistant", "bad"),)
    assert sides(rows(Preference(prompt, good, bad), codec)[0]) == ids
    (rated,) = rows(Rated(prompt, bad, good=False), codec)
    assert sides(rated) == [ids[0], ids[2]]
    assert rated.values == (0.0,)
    assert sides(rows(Prompt(prompt), codec)[0]) == ids[:1]
    several = Preference(prompt, (*good, *prompt, *good), bad)
    assert rejected(several, codec).reason == "no single answer"
    assert rejected(Preference((), good, bad), codec).reason == "no prompt"


def test_what_people_write_is_never_special() -> None:
    (row,) = rows(Chat(chat("a</s>b", "c<s>d")), sides_codec())
    assert [side.count(4) for side in sides(row)] == [1, 1]
    assert 3 not in sides(row)[1]


def test_a_chat_template_is_for_the_prompt_only(tmp_path: Path) -> None:
    tokenizer = oracle()
    tokenizer.save_pretrained(tmp_path)
    codec = Codec.load(tmp_path, encoder_decoder=True)
    (row,) = rows(CHAT, codec)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASK}], add_generation_prompt=True, tokenize=False
    )
    assert sides(row)[0] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert sides(row)[1] == [*tokenizer(ANSWER)["input_ids"], tokenizer.eos_token_id]
    assert codec.template == CHATML


def test_a_folder_without_a_template_keeps_to_plain_text(tmp_path: Path) -> None:
    sides_oracle("bart").save_pretrained(tmp_path)
    codec = Codec.load(tmp_path, encoder_decoder=True)
    assert codec.parts == replace(sides_codec("bart").parts, tokenizer=codec.parts.tokenizer)
    assert codec.template == ""
    assert not codec.template_was_set
    assert "plain text" in codec.parts.template_was_set
    assert Codec.load(tmp_path).template


def test_golden_ids_and_fingerprints_tell_the_kinds_apart() -> None:
    plain, framed = Codec.of(sides_oracle()), sides_codec()
    assert golden_ids(plain) != golden_ids(framed)
    assert golden_ids(framed)[-1] == 4
    assert plain.fingerprint() != framed.fingerprint()


@pytest.mark.parametrize("style", ["t5", "bart"])
def test_each_side_may_be_as_long_as_the_limit(style: str) -> None:
    codec = sides_codec(style)
    whole = rows(CHAT, codec)[0]
    longest = max(map(len, sides(whole)))
    assert sides(rows(CHAT, codec, max_tokens=longest)[0]) == sides(whole)
    assert rejected(CHAT, codec, max_tokens=longest - 1).reason == "too long"
    place = replace(CHAT, place=Place("rows.jsonl", 7))
    with pytest.raises(Problem, match=rf"rows.jsonl:7: has {longest} tokens in its prompt"):
        encode(place, codec, Rules(Chat, max_tokens=longest - 1, over_long="refuse"))


def test_cut_sides_keep_how_a_prompt_ends() -> None:
    told: list[str] = []
    whole = rows(CHAT, sides_codec())[0]
    found = encode(CHAT, sides_codec(), Rules(Chat, max_tokens=9, over_long="truncate"), told.append)
    assert isinstance(found, list)
    prompt, answer = sides(whole)
    assert sides(found[0]) == [[*prompt[:8], 4], answer[:9]]
    assert told == ["truncated to max_tokens"]


def test_what_plain_text_cannot_say_is_rejected() -> None:
    codec = sides_codec()
    told = rejected(replace(CHAT, tools=TOOLS), codec)
    assert told.reason == "refused by the template"
    assert "no chat template" in told.message
    thought = Chat(chat(ASK, ANSWER, reasoning="hm"))
    assert rejected(thought, codec).reason == "answer not text"


def test_what_an_encoder_cannot_learn_is_refused() -> None:
    with pytest.raises(Problem, match="rows of plain text"):
        encode(Text("hello"), sides_codec(), Rules(Text))
    with pytest.raises(Problem, match=r"train\.learn"):
        encode(CHAT, sides_codec(), Rules(Chat, learn="all"))


def test_tokenizers_that_do_not_say_how_an_answer_ends_or_begins_are_refused() -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(Problem, match="names no end token"):
        Codec.of(endless, encoder_decoder=True)
    coded = sides_oracle()
    coded.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A </s>", special_tokens=[("<|im_start|>", 1), ("</s>", 4)]
    )
    with pytest.raises(Problem, match=r"puts <\|im_start\|> around every text"):
        Codec.of(coded, encoder_decoder=True)
