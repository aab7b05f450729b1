"""Readers of the corpora: each turns one file into documents of plain text, cleaned and of paragraph size."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seedling.clean import grouped, mended, sentences, strided, unspaced, visible, whole

ENGLISH_SIZE = 1000
"""Characters of an English document: about 300 tokens."""
CHINESE_SIZE = 320
"""Characters of a Chinese document: about 270 tokens."""
STRIDE = 997
"""Sorted lists are read with so many others between neighbours."""

_ALICE_START = "*** START OF THIS PROJECT GUTENBERG EBOOK"
_ALICE_END = "End of Project Gutenberg"
_CALCULATION = re.compile(r"<<.*?>>")
_DEFECT = re.compile("[^\u4e00-\u9fff，。、·・《》…\n]")
_EMPTY_BRACKETS = re.compile(r"（[\s，、；:：]*）")
_VARIANT = re.compile(r"-\{(?:zh-\w+:)?(.*?)\}-")


def verse(file: Path) -> Iterator[str]:
    """Poems, several a document; those with lost or foreign characters are left out."""
    poems = dict.fromkeys(row["text"] for row in _lines(file) if not _DEFECT.search(row["text"]))
    return grouped(poems, CHINESE_SIZE, "\n\n")


def questioned_paragraphs(file: Path) -> Iterator[str]:
    """Encyclopedia paragraphs, each followed by its questions and answers."""
    for row in _lines(file):
        pairs = [_chinese_pair(pair["question"], pair["answer"]) for pair in row["questions"]]
        text = _EMPTY_BRACKETS.sub("", _VARIANT.sub(r"\1", row["text"]))
        yield "\n".join([visible(text), *pairs])


def questioned_paragraphs_traditional(file: Path) -> Iterator[str]:
    """The same in traditional script, the marks of question and answer too."""
    return (text.replace("\n问：", "\n問：") for text in questioned_paragraphs(file))


def dialogues(file: Path) -> Iterator[str]:
    """Conversations, cut between a reply and the next request where they are long."""
    for row in _lines(file):
        turns = [message["content"].strip() for message in row["messages"]]
        pairs = [_chinese_pair(ask, reply) for ask, reply in zip(turns[::2], turns[1::2], strict=False)]
        yield from grouped(pairs, CHINESE_SIZE, "\n")


def riddles(file: Path) -> Iterator[str]:
    """Two-part sayings, one a line, several a document."""
    sayings = {row["riddle"]: row["answer"] for row in _whole(file)}
    lines = [f"{riddle}——{answer}。" for riddle, answer in sayings.items() if _plain_chinese(riddle + answer)]
    return grouped(strided(lines, STRIDE), CHINESE_SIZE, "\n")


def wiki_sentences(file: Path) -> Iterator[str]:
    """Single sentences in paragraphs; neighbours of the sorted list never stand together."""
    texts = [unspaced(row["text"], hyphens=True) for row in _lines(file)]
    return grouped(strided([text for text in texts if whole(text)], STRIDE), ENGLISH_SIZE, " ")


def wiki_articles(file: Path) -> Iterator[str]:
    """Articles by paragraphs, without the sentences in which a word was replaced by `<unk>`."""
    for row in _lines(file):
        yield from grouped(_article_paragraphs(row["text"]), ENGLISH_SIZE, "\n")


def plays(file: Path) -> Iterator[str]:
    """Speeches, several a document."""
    for row in _lines(file):
        yield from grouped(row["text"].split("\n\n"), ENGLISH_SIZE, "\n\n")


def stories(file: Path) -> Iterator[str]:
    """Children's stories, one a document, with broken quotes mended."""
    for text in _whole(file):
        yield visible(re.sub(r"\n\s*\n\s*", "\n", mended(text)))


def book(file: Path) -> Iterator[str]:
    """A book by paragraphs, without the publisher's header and footer."""
    text = file.read_text(encoding="utf-8-sig")
    body = text[text.index(_ALICE_START) : text.index(_ALICE_END)].partition("\n")[2]
    paragraphs = (_unwrapped(part) for part in re.split(r"\n\s*\n", body))
    return grouped((part for part in paragraphs if re.search(r"\w", part)), ENGLISH_SIZE, "\n\n")


def web(file: Path) -> Iterator[str]:
    """Web pages by lines."""
    for row in _lines(file):
        if "�" not in row["text"]:
            yield from grouped(visible(row["text"]).split("\n"), ENGLISH_SIZE, "\n")


def instructions(file: Path) -> Iterator[str]:
    """Instructions with their answers, several a document."""
    rows = _whole(file)
    asked = ("\n".join(filter(None, (row["instruction"].strip(), row["input"].strip()))) for row in rows)
    pairs = [_english_pair(ask, row["output"]) for ask, row in zip(asked, rows, strict=True)]
    return grouped(dict.fromkeys(pairs), ENGLISH_SIZE, "\n\n")


def sums(file: Path) -> Iterator[str]:
    """Word problems solved in words, without the calculator marks."""
    for row in _lines(file):
        steps, _, result = _CALCULATION.sub("", row["answer"]).partition("####")
        yield _english_pair(row["question"], f"{steps.strip()}\nThe answer is {result.strip()}.")


def tagged_sentences(file: Path) -> Iterator[str]:
    """Sentences of a corpus of named entities, without the tags: one word a line, an empty line after a sentence."""
    blocks = file.read_text(encoding="utf-8").split("\n\n")
    texts = (unspaced(" ".join(line.split()[0] for line in block.splitlines() if line.split())) for block in blocks)
    return grouped((text for text in texts if re.search(r"\w", text) and "DOCSTART" not in text), ENGLISH_SIZE, " ")


def preferred_english(file: Path) -> Iterator[str]:
    """Conversations with the answer that was preferred."""
    return _preferred(file, _english_pair, ENGLISH_SIZE)


def preferred_chinese(file: Path) -> Iterator[str]:
    """Conversations with the answer that was preferred."""
    return _preferred(file, _chinese_pair, CHINESE_SIZE)


def assistant_chats_english(file: Path) -> Iterator[str]:
    """Conversations in which no tool was called."""
    for pairs in _untooled(file):
        yield from grouped((_english_pair(*pair) for pair in pairs), ENGLISH_SIZE, "\n\n")


def assistant_chats_chinese(file: Path) -> Iterator[str]:
    """Conversations in which no tool was called."""
    for pairs in _untooled(file):
        yield from grouped((_chinese_pair(*pair) for pair in pairs), CHINESE_SIZE, "\n")


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    reader = gzip.open if file.suffix == ".gz" else open
    with reader(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _whole(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _english_pair(question: str, answer: str) -> str:
    return f"Question: {question.strip()}\nAnswer: {answer.strip()}"


def _chinese_pair(question: str, answer: str) -> str:
    return f"问：{question.strip()}\n答：{answer.strip()}"


def _plain_chinese(text: str) -> bool:
    """Whether a saying is free of glosses, pronunciations and list marks."""
    return re.fullmatch(r"[\u4e00-\u9fff，、；：。《》！？“”]+", text) is not None


def _article_paragraphs(text: str) -> Iterator[str]:
    for line in text.splitlines():
        title = re.fullmatch(r"\s*(?:= )+(.*?)(?: =)+\s*", line)
        kept = [part for part in sentences(title[1] if title else line.strip()) if whole(part)]
        if kept and any(kept):
            yield unspaced(" ".join(kept))


def _unwrapped(paragraph: str) -> str:
    """A paragraph on one line; verse, which is indented, keeps its lines."""
    lines = paragraph.strip("\n").splitlines()
    joint = "\n" if all(line.startswith(" ") for line in lines) else " "
    return joint.join(line.strip() for line in lines)


def _preferred(file: Path, pair: Callable[[str, str], str], size: int) -> Iterator[str]:
    """Documents of one conversation each, cut at line ends where it is long; system turns and
    lines with lost characters are left out."""
    for row in _whole(file):
        said = [turn["value"] for turn in row["conversations"] if turn["from"] != "system"] + [row["chosen"]["value"]]
        if len(said) % 2 == 0:
            pairs = (pair(ask, reply) for ask, reply in zip(said[::2], said[1::2], strict=True))
            lines = visible(mended("\n".join(pairs))).split("\n")
            yield from grouped((line for line in lines if "\ufffd" not in line), size, "\n")


def _untooled(file: Path) -> Iterator[list[tuple[str, str]]]:
    for row in _whole(file):
        turns = row["conversations"]
        if [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2):
            values = [turn["value"] for turn in turns]
            yield list(zip(values[::2], values[1::2], strict=True))
