"""Texts that are judged: their ids are those of transformers, their labels and tags stand where they belong."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_codecs import TOOLS, chat, encoder_oracle, oracle, sides_codec, sides_oracle
from tokenizers.processors import TemplateProcessing

from tunesmith.core.problem import Problem
from tunesmith.core.records import KINDS, Labelled, Message, Place, Prompt, Record, Related, Tagged
from tunesmith.core.rows import TokenRow
from tunesmith.data.encode import TRUNCATED, Rules, encode
from tunesmith.data.report import Rejected
from tunesmith.data.store import content_key
from tunesmith.data.tokenizer import Codec

TEXT, OTHER = "the thing is hello, naïve 你好!", "a king <|im_end|> [SEP] is the thing?"


def llama() -> Any:
    """A tokenizer that begins both texts of a pair with the beginning of text."""
    made = oracle()
    special = ("<s>", made.convert_tokens_to_ids("<s>"))
    pair = "<s> $A <s>:1 $B:1"
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair=pair, special_tokens=[special])
    return made


TOKENIZERS = {"plain": oracle, "bert": encoder_oracle, "bytes": lambda: encoder_oracle("bytes"), "llama": llama}


@cache
def codec_of(name: str) -> tuple[Any, Codec]:
    """A tokenizer of transformers and the codec of the folder that it saves; encoders take no chats."""
    made = TOKENIZERS[name]()
    with TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        return made, Codec.load(Path(folder), chats=name not in ("bert", "bytes"))


def one(record: Record, codec: Codec, **rules: Any) -> TokenRow:
    found = encode(record, codec, Rules(type(record), **rules))
    assert isinstance(found, list), found
    (row,) = found
    assert not any(piece.weights.any() for piece in (row.trunk, *row.branches))
    return row


def lost(record: Record, codec: Codec, **rules: Any) -> Rejected:
    found = encode(record, codec, Rules(type(record), **rules))
    assert isinstance(found, Rejected), found
    return found


def ids(row: TokenRow) -> list[list[int]]:
    return [piece.tokens.tolist() for piece in (row.trunk, *row.branches)]


def paths(row: TokenRow) -> list[list[int]]:
    trunk, *branches = ids(row)
    return [trunk + branch for branch in branches]


def own(made: Any, *texts: str) -> list[int]:
    """The ids of transformers, whose special tokens are left alone as people's text is."""
    return made(*texts, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
class TestFrames:
    def test_a_text_is_framed_as_transformers_does(self, name: str) -> None:
        made, codec = codec_of(name)
        assert ids(one(Labelled("the thing is hello", ("x",)), codec, labels=("x", "y"))) == [
            own(made, "the thing is hello")
        ]

    def test_a_pair_is_framed_as_transformers_does(self, name: str) -> None:
        made, codec = codec_of(name)
        record = Related("the thing", ("is hello", "a king"), (1.0, 0.0))
        row = one(record, codec)
        assert paths(row) == [own(made, "the thing", text) for text in record.others]
        assert row.values == (1.0, 0.0)

    def test_texts_apart_are_each_framed(self, name: str) -> None:
        made, codec = codec_of(name)
        row = one(Related("the thing", ("is hello", "a king"), (1.0, 0.5)), codec, apart=True)
        assert ids(row) == [[], own(made, "the thing"), own(made, "is hello"), own(made, "a king")]
        assert row.values == (0.0, 1.0, 0.5)

    def test_words_are_the_text_with_spaces_and_each_is_read_at_its_last_token(self, name: str) -> None:
        made, codec = codec_of(name)
        words = ("the", "thing", "naïve", "is", "hello", "你好", "!")
        row = one(Tagged(words, ("A", "B", "A", "A", "B", "B", "A")), codec, labels=("A", "B"))
        told = made(" ".join(words), return_offsets_mapping=True)
        assert ids(row) == [told["input_ids"]]
        assert row.values == (0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0)
        ends = [len(" ".join(words[: n + 1])) for n in range(len(words))]
        specials = set(made.all_special_ids)
        real = [n for n, token in enumerate(told["input_ids"]) if token not in specials - {made.unk_token_id}]
        assert list(row.marks) == [max(n for n in real if told["offset_mapping"][n][1] <= end) for end in ends]

    def test_special_tokens_that_people_write_are_plain_text(self, name: str) -> None:
        _, codec = codec_of(name)
        for record in (Labelled(OTHER, ("x",)), Related(OTHER, (OTHER,), (1.0,)), Tagged((OTHER,), ("A",))):
            row = one(record, codec)
            written = [token for piece in ids(row) for token in piece if token in codec.special_ids.values()]
            parts = codec.pair_frame if isinstance(record, Related) else (codec.parts.prefix, codec.parts.suffix)
            unknown = codec.special_ids.get("[UNK]")
            assert [token for token in written if token != unknown] == [token for part in parts for token in part]

    def test_what_is_too_long_is_cut_inside_of_its_frame(self, name: str) -> None:
        _, codec = codec_of(name)
        single, paired = list(codec.parts.suffix), list(codec.pair_frame[2])
        words = tuple(["thing", "is", "the", "hello"] * 5)
        kinds: list[tuple[Record, dict[str, Any]]] = [
            (Labelled(" ".join(words), ("x",)), {"labels": ("x", "y")}),
            (Tagged(words, tuple("ab" * 10)), {"labels": ("a", "b")}),
            (Related("the", (" ".join(words), "is"), (1.0, 0.0)), {}),
            (Related("the", (" ".join(words), "is"), (1.0, 0.0)), {"apart": True}),
        ]
        for record, rules in kinds:
            suffix = paired if isinstance(record, Related) and not rules else single
            whole, row = one(record, codec, **rules), one(record, codec, max_tokens=15, over_long="truncate", **rules)
            assert whole.depth > 15 == row.depth
            last = [path[len(path) - len(suffix) :] for path in (paths(row) or ids(row))]
            assert last == [suffix] * row.answers
            marks = [mark for mark in whole.marks if mark < 15 - len(suffix)]
            assert list(row.marks) == marks
            assert row.values == (whole.values[: len(marks)] if marks else whole.values)
            assert lost(record, codec, max_tokens=15, **rules).reason == "too long"
            with pytest.raises(Problem, match="max_tokens"):
                encode(record, codec, Rules(type(record), max_tokens=15, over_long="refuse", **rules))

    def test_what_has_no_room_at_all_is_listed(self, name: str) -> None:
        _, codec = codec_of(name)
        long = "thing " * 9
        for record in (Related(long, (long,), (1.0,)), Tagged((long,), ("A",))):
            found = lost(record, codec, max_tokens=7, over_long="truncate")
            assert found.reason == "too long"
            assert "has " in found.message


def test_a_cut_is_counted() -> None:
    counted: list[str] = []
    record = Labelled("thing " * 30, ("x",))
    encode(record, codec_of("bert")[1], Rules(Labelled, 12, "truncate", labels=("x",)), counted.append)
    assert counted == [TRUNCATED]


WORDS = st.text(st.sampled_from("theingĠ\u200b\u00adéa你😀."), min_size=1, max_size=5) | st.just("<|im_end|>")


@given(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from(list(TOKENIZERS)))
def test_every_word_has_one_mark_in_order(words: list[str], name: str) -> None:
    """Whatever the tokenizer makes of odd words, even nothing."""
    _, codec = codec_of(name)
    found = encode(Tagged(tuple(words), ("A",) * len(words)), codec, Rules(Tagged, labels=("A",)))
    if isinstance(found, Rejected):
        assert found.reason == "empty"
        return
    assert len(found[0].marks) == len(words)
    assert list(found[0].marks) == sorted(found[0].marks)
    inside = range(len(codec.parts.prefix), len(found[0].trunk) - len(codec.parts.suffix))
    assert all(mark in inside for mark in found[0].marks)


@pytest.mark.parametrize(
    ("record", "rules", "reason"),
    [
        (Labelled("t", ("c",)), {"labels": ("a", "b")}, "unknown label"),
        (Labelled("t", ()), {"labels": ("a", "b")}, "missing label"),
        (Labelled("t", ("a", "b")), {"labels": ("a", "b")}, "several labels"),
        (Labelled("t", ("a", "c")), {"labels": ("a", "b"), "several": True}, "unknown label"),
        (Labelled("t", ("a",)), {"number": True}, "label is no number"),
        (Labelled("t", ("nan",)), {"number": True}, "label is no number"),
        (Labelled("t", ()), {"number": True}, "missing label"),
        (Labelled("", ("a",)), {"labels": ("a", "b")}, "empty"),
        (Tagged(("t",), ("X",)), {"labels": ("O", "B")}, "unknown label"),
        (Tagged((), ()), {"labels": ("O", "B")}, "empty"),
        (Related("", ("b",), (1.0,)), {}, "empty"),
        (Related("a", ("",), (1.0,)), {"apart": True}, "empty"),
    ],
)
def test_rows_that_cannot_be_used_are_listed(record: Record, rules: dict[str, Any], reason: str) -> None:
    found = lost(record, codec_of("plain")[1], **rules)
    assert found.reason == reason
    assert len(found.message) > 10


def test_values_of_labels() -> None:
    _, codec = codec_of("plain")
    assert one(Labelled("t", ("b",)), codec, labels=("a", "b")).values == (1.0,)
    assert one(Labelled("t", ("c", "a")), codec, labels=("a", "b", "c"), several=True).values == (1.0, 0.0, 1.0)
    assert one(Labelled("t", ()), codec, labels=("a", "b"), several=True).values == (0.0, 0.0)
    assert one(Labelled("t", (" -2.5e1 ",)), codec, number=True).values == (-25.0,)
    for record in (Labelled("t", ("b",)), Tagged(("t",), ("X",))):
        assert one(record, codec).values == ()


@pytest.mark.parametrize("record", [Labelled("t", ("a",)), Tagged(("t",), ("O",)), Related("a", ("b",), (1.0,))])
def test_encoder_decoders_judge_no_texts(record: Record) -> None:
    with pytest.raises(Problem, match="an encoder and a decoder"):
        encode(record, sides_codec(), Rules(type(record)))


ASKED = Prompt(chat("hello", "the", "thing?"), "42", TOOLS, place=Place("f", 2))


def test_a_prompt_goes_with_what_rewards_need() -> None:
    codec = Codec.of(oracle("qwen3"))
    row = one(ASKED, codec)
    assert row.trunk.tokens.tolist() == codec.encode_chat(ASKED.messages, TOOLS, add_generation_prompt=True)
    told = json.loads(row.note)
    assert told == {
        "messages": [message.plain() for message in ASKED.messages],
        "tools": [dict(tool) for tool in TOOLS],
        "answer": "42",
    }


def test_a_prompt_of_an_encoder_decoder_has_its_note_too() -> None:
    record = Prompt((Message("user", "what is 你好?"),), "hello")
    (row,) = encode(record, sides_codec(), Rules(Prompt))  # type: ignore[misc]
    assert row.trunk.tokens.tolist() == sides_oracle()("what is 你好?")["input_ids"]
    messages = [{"role": "user", "content": "what is 你好?"}]
    assert json.loads(row.note) == {"messages": messages, "tools": [], "answer": "hello"}


def test_prompts_with_other_keys_are_other_rows() -> None:
    _, codec = codec_of("plain")
    keys = [content_key([one(Prompt(chat("q"), answer), codec)]) for answer in ("1", "2", "1")]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("codec", [Codec.of(oracle()), sides_codec()], ids=["decoder", "sides"])
@pytest.mark.parametrize("over_long", ["drop", "truncate"])
def test_prompts_are_never_cut(codec: Codec, over_long: str) -> None:
    found = lost(Prompt(chat("thing " * 30)), codec, max_tokens=20, over_long=over_long)
    assert found.reason == "too long"
    assert "train.max_tokens is 20" in found.message


def test_a_prompt_leaves_room_for_its_answer() -> None:
    _, codec = codec_of("plain")
    record = Prompt(chat("hello the thing"))
    length = len(one(record, codec).trunk)
    assert len(one(record, codec, max_tokens=length + 9, room=9).trunk) == length
    found = lost(record, codec, max_tokens=length + 8, room=9)
    assert found.reason == "too long"
    assert "of which an answer may take 9" in found.message


def test_every_kind_of_record_becomes_a_row(tmp_path: Path) -> None:
    for kind in KINDS:
        assert Rules(kind).plain()["kind"] == kind.__name__
    assert json.dumps(Rules(Labelled, labels=("a",)).plain())
    assert np.array_equal(one(Labelled("t", ()), codec_of("plain")[1]).trunk.weights, [0.0])
