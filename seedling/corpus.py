"""The pre-training corpus: which sources, under which licence, and what is held out.

    DATA/* ─▶ readers ─▶ documents ─┬─▶ build/corpus.jsonl       {"text": …}, the sources of stage 1
                                    ├─▶ build/parts/PART.jsonl   {"text": …}, all sources: english, sums, chinese, verse
                                    ├─▶ build/held_out.jsonl     {"text": …, "source": …, "language": …}, 1 % by hash
                                    └─▶ sources.json             rows, characters, licence and attribution of each

Documents stand in the order of their sources; shuffling is the training's business. A document that an earlier source
brought already is left out, so that nothing that is held out comes back under another name.

    python -m seedling.corpus ../shared/data
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedling import CORPUS, HELD_OUT, PARTS, SOURCES, one_in, readers
from tunesmith.core.rundir import write_atomic, write_json

HELD_OUT_ONE_IN = 100


@dataclass(frozen=True, slots=True)
class Source:
    """One corpus: its file, how it is read, and what may and must be said of it."""

    name: str
    file: str
    read: Callable[[Path], Iterator[str]]
    language: str
    licence: str
    attribution: str
    stage: int = 1
    """Of pre-training: read from its first step (1), or from where the sources were weighted anew (2)."""

    @property
    def part(self) -> str:
        """The file of `parts` that holds it: verse and word problems are many and alike, so they are weighted apart."""
        if self.read is readers.verse:
            return "verse"
        if self.read is readers.sums:
            return "sums"
        return {"en": "english", "zh": "chinese"}[self.language]


# fmt: off
CATALOG = (
    Source("song_ci", "corpora/zh_song_ci.jsonl.gz", readers.verse, "zh",
           "MIT", "chinese-poetry: classical verse of the Song dynasty"),
    Source("wiki_qa_simplified", "corpora/zh_wiki_qa_simplified.jsonl.gz", readers.questioned_paragraphs, "zh",
           "CC BY-SA 4.0", "CMRC 2018 by Cui et al., paragraphs of the Chinese Wikipedia by its authors"),
    Source("wiki_qa_traditional", "corpora/zh_wiki_qa_traditional.jsonl.gz",
           readers.questioned_paragraphs_traditional, "zh",
           "CC BY-SA 3.0", "DRCD by Delta Research, paragraphs of the Chinese Wikipedia by its authors"),
    Source("dialogues", "corpora/zh_dialogues.jsonl.gz", readers.dialogues, "zh",
           "Apache-2.0", "CrossWOZ by Zhu et al."),
    Source("xiehouyu", "text/xiehouyu.json", readers.riddles, "zh",
           "MIT", "chinese-xinhua: two-part sayings"),
    Source("glaive_zh", "sft/glaive_toolcall_zh_demo.json", readers.assistant_chats_chinese, "zh",
           "Apache-2.0", "Glaive function calling, Chinese demonstration set; conversations without tools only"),
    Source("wiki_sentences", "corpora/en_wiki_sentences.jsonl.gz", readers.wiki_sentences, "en",
           "CC BY-SA 4.0", "WikiSplit by Botha et al., sentences of the English Wikipedia by its authors"),
    Source("wikitext2", "corpora/en_wikitext2_valid.jsonl.gz", readers.wiki_articles, "en",
           "CC BY-SA 3.0", "WikiText-2 by Merity et al., articles of the English Wikipedia by its authors"),
    Source("shakespeare", "corpora/en_shakespeare.jsonl.gz", readers.plays, "en",
           "public domain", "plays by William Shakespeare"),
    Source("tinystories", "text/tinystories_1000.json", readers.stories, "en",
           "CDLA-Sharing-1.0", "TinyStories by Eldan and Li"),
    Source("alice", "text/alice.txt", readers.book, "en",
           "public domain", "Alice's Adventures in Wonderland by Lewis Carroll"),
    Source("c4", "text/c4_demo.jsonl", readers.web, "en",
           "ODC-BY 1.0", "C4 by Raffel et al., from Common Crawl"),
    Source("instructions", "sft/rasbt_instructions_1100.json", readers.instructions, "en",
           "Apache-2.0", "instruction set by Sebastian Raschka"),
    Source("gsm8k", "sft/gsm8k_train_1000.jsonl", readers.sums, "en",
           "MIT", "GSM8K (training rows) by Cobbe et al."),
    Source("glaive_en", "sft/glaive_toolcall_en_demo.json", readers.assistant_chats_english, "en",
           "Apache-2.0", "Glaive function calling, English demonstration set; conversations without tools only"),
    Source("gsm8k_more", "benchmarks/gsm8k_train.jsonl.gz", readers.sums, "en",
           "MIT", "GSM8K (the other training rows) by Cobbe et al.", 2),
    Source("wikigold", "ner/wikigold.conll.txt", readers.tagged_sentences, "en",
           "CC BY 4.0", "Wikigold by Balasuriya et al., sentences of the English Wikipedia by its authors", 2),
    Source("preferences_en", "pref/dpo_en_demo.json", readers.preferred_english, "en",
           "Apache-2.0", "English demonstration set of preferences; the chosen answers", 2),
    Source("preferences_zh", "pref/dpo_zh_demo.json", readers.preferred_chinese, "zh",
           "Apache-2.0", "Chinese demonstration set of preferences; the chosen answers", 2),
)
# fmt: on


def held_out(text: str) -> bool:
    """Whether a document is kept away from training; follows from its content alone."""
    return one_in(HELD_OUT_ONE_IN, text)


def build(data: Path) -> list[dict[str, Any]]:
    """Write the corpus and its held-out part; the facts of each source are returned and written too."""
    kept: dict[str, list[str]] = {}
    aside: list[str] = []
    facts: list[dict[str, Any]] = []
    seen: set[str] = set()
    for source in CATALOG:
        texts = dict.fromkeys(source.read(data / source.file))
        documents = [text for text in texts if text.strip() and text not in seen]
        seen.update(documents)
        train = [text for text in documents if not held_out(text)]
        test = [text for text in documents if held_out(text)]
        for name in (source.part, *(("corpus",) if source.stage == 1 else ())):
            kept.setdefault(name, []).extend(_line({"text": text}) for text in train)
        aside += [_line({"text": text, "source": source.name, "language": source.language}) for text in test]
        facts.append(_facts(source, train, test))
    _write(CORPUS, kept.pop("corpus"))
    for name, lines in kept.items():
        _write(PARTS / f"{name}.jsonl", lines)
    _write(HELD_OUT, aside)
    write_json(SOURCES, facts)
    return facts


def _write(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, "".join(lines).encode())


def _facts(source: Source, train: list[str], test: list[str]) -> dict[str, Any]:
    return {
        "name": source.name,
        "file": source.file,
        "language": source.language,
        "part": source.part,
        "stage": source.stage,
        "licence": source.licence,
        "attribution": source.attribution,
        "rows": len(train),
        "characters": sum(map(len, train)),
        "held_out_rows": len(test),
    }


def _line(row: dict[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> None:
    for fact in build(Path(arguments[0])):
        print(f"{fact['name']:22}{fact['rows']:8,} rows {fact['characters']:12,} characters")


if __name__ == "__main__":
    main(sys.argv[1:])
