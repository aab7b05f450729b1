"""Remembered words give the ids that the tokenizer gives, for every pattern, or nothing."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tunesmith import builtin
from tunesmith.data import word_patterns
from tunesmith.data import words as module
from tunesmith.data.tokenizer import Codec
from tunesmith.data.words import Words

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


QWEN = LLAMA.replace("{1,3}", "")
EMBEDDED = QWEN.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"'(?:[sdmt]|ll|ve|re)\b")

CUTTERS: dict[str, Any] = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": split(LLAMA),
    "gpt4o": split(GPT4O),
    "qwen": split(QWEN),
    "embedded": split(EMBEDDED),
}
WHOLE = sorted({*CUTTERS} - {"gpt4o"})
"""Those of which it is known where words end in any text; gpt4o's reach from a line break to a slash."""
CORPUS = [
    "It's what they'll say: 12 345 6789 words, in 2024!\n\n  def f(x):\n\treturn x ** 2  # IT'S fine, we've \r\n"
] * 3
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|im_end|>x"]


def made(cutter: Any, normalizer: Any = None, corpus: Sequence[str] = CORPUS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cutter
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def words_of(tokenizer: Tokenizer) -> Words | None:
    return Words.of(json.loads(tokenizer.to_str()), tokenizer)


TOKENIZERS = {name: made(cutter) for name, cutter in CUTTERS.items()}
PIECES = st.sampled_from(
    [*SPECIALS, "'s", "'LL", "12", "3456", " ", "  ", "\n", "\r\n", "\t", "it", "IT", "iPhone", "?!", "/"]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(st.characters(max_codepoint=127), max_size=6)), max_size=12).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=120, deadline=None)
@given(text=TEXTS, share=st.floats(0, 1))
def test_ids_and_cuts_are_the_tokenizers(name: str, text: str, share: float) -> None:
    tokenizer = TOKENIZERS[name]
    words = words_of(tokenizer)
    assert words is not None
    encoding = tokenizer.encode(text, add_special_tokens=False)
    cut = round(share * len(text))
    found = words.locate(text, ())
    assert found is not None
    assert found[0].tolist() == encoding.ids
    again = words.locate(text, ())
    assert again is not None
    assert again[0].tolist() == encoding.ids, "remembered words give what they gave at first"
    told = words.locate(text, (cut,))
    if told is not None:
        assert told[1] == [sum(stop <= cut for _, stop in encoding.offsets)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_cuts_between_words_are_told_and_others_are_not(name: str) -> None:
    words = words_of(TOKENIZERS[name])
    assert words is not None
    text = "<|im_start|>word\nA fine day<|im_end|>\n"
    told = words.locate(text, (12, 17, text.index("<|im_end|>"), len(text)))
    assert told is not None
    assert told[1][0] == 1
    assert told[1][3] == len(told[0])
    assert words.locate(text, (14,)) is None


ODD = "éçñßЖжאبहไ你好。，！？「」…—’“”°²½Ⅷ๓٣\u00a0\u2028\u3000\u200b\u200d\u0301\u0085\x1c\ufeff🚀\U00020000"
MIXED = st.lists(
    st.one_of(
        PIECES, st.text(st.sampled_from(ODD), max_size=3), st.text(st.sampled_from("aB1'.,! \n\r\t/"), max_size=5)
    ),
    max_size=14,
).map("".join)


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=250, deadline=None)
@given(text=MIXED, share=st.floats(0, 1))
def test_ids_of_any_text_are_the_tokenizers(name: str, text: str, share: float) -> None:
    words = words_of(TOKENIZERS[name])
    assert words is not None
    encoding = TOKENIZERS[name].encode(text, add_special_tokens=False)
    for _ in range(2):
        if (told := words.locate(text, ())) is not None:
            assert told[0].tolist() == encoding.ids
        else:
            assert not unicodedata.is_normalized("NFC", text)
    cut = round(share * len(text))
    if (told := words.locate(text, (cut,))) is not None:
        ends = accumulate((stop for _, stop in encoding.offsets), max)
        assert told[1] == [sum(stop <= cut for stop in ends)]


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_remembered_of_one_text_is_right_in_all_others(name: str) -> None:
    tokenizer = made(
        CUTTERS[name], corpus=["word  ", "1  2   3\n  ", "x\t\t y \n\n z\u00a0  "] * 3
    )  # white space in one token
    words = words_of(tokenizer)
    assert words is not None
    ends = ("word", "word.", "word\n", "word\t", "word\x1c", "word\u00a0", "word \n", "\n", "")
    for before, between, after in product(
        ends, (" ", "  ", "\n", "\n ", "\n\n", " \n"), ("next", "1", "- x", "Zo\u00eb", "")
    ):
        for text in (before + between + after, f"{before} {after}{between}{before}"):
            told = words.locate(text, ())
            assert told is not None
            assert told[0].tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_texts_that_are_normalised_go_to_the_tokenizer_unless_they_are_already() -> None:
    tokenizer = made(CUTTERS["qwen"], normalizers.NFC())
    words = words_of(tokenizer)
    assert words is not None
    assert words.locate("a cafe\u0301 here", ()) is None
    told = words.locate("a caf\u00e9 here", ())
    assert told is not None
    assert told[0].tolist() == tokenizer.encode("a caf\u00e9 here", add_special_tokens=False).ids


def test_pieces_are_cut_out_where_words_end_and_remembered() -> None:
    words = words_of(TOKENIZERS["qwen"])
    assert words is not None
    text = "Ask.\nIt costs 5 €, says Zoë:  a bargain\n你好。 Yes"
    found = words._cut(text)  # pyright: ignore[reportPrivateUsage]
    assert "".join(found) == text
    assert [word for word in found if not word.isascii()] == [" €,", " Zoë:", "你好。"]
    words.locate(text, ())
    assert {" €,", " Zoë:", "  a"} <= words._pieces.keys()  # pyright: ignore[reportPrivateUsage]
    words.locate("It costs 5 €, says Zoë: a bargain", ())
    assert {"€,", "Zoë:", "costs"} <= words._spaced.keys()  # pyright: ignore[reportPrivateUsage]


def test_patterns_of_which_no_ends_are_known_are_left_to_the_tokenizer() -> None:
    words = words_of(TOKENIZERS["gpt4o"])
    assert words is not None
    assert words.locate("naïve", ()) is None
    assert words.locate("naive", ()) is not None


@pytest.mark.parametrize(
    "tokenizer",
    [
        made(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        made(CUTTERS["gpt2"], normalizers.Lowercase()),
        made(split(r"\p{Han}+|\p{L}+|[^\p{L}]")),
        made(pre_tokenizers.Metaspace()),
    ],
)
def test_other_tokenizers_have_no_words(tokenizer: Tokenizer) -> None:
    assert words_of(tokenizer) is None


def test_a_pattern_that_cuts_otherwise_is_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_patterns, "_GPT2", r" ?\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]")
    assert words_of(TOKENIZERS["gpt2"]) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WORDS", 40)
    words = words_of(TOKENIZERS["gpt2"])
    assert words is not None
    text = " ".join(f"w{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" * 3) + "x" * 500
    found = words.locate(text, ())
    assert found is not None
    assert found[0].tolist() == TOKENIZERS["gpt2"].encode(text, add_special_tokens=False).ids
    for known in (words._words, words._spaced, words._pieces):  # pyright: ignore[reportPrivateUsage]
        assert 0 < len(known) <= 40


def test_the_embedded_base_has_words() -> None:
    codec = Codec.load(builtin.path("builtin:seedling"))
    assert codec._words is not None  # pyright: ignore[reportPrivateUsage]
    text = "A plain sentence, twice: a plain sentence."
    assert codec.encode_text(text) == codec._own.encode(text).ids  # pyright: ignore[reportPrivateUsage]
