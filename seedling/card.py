"""The model card: what went into the seedling and how it was trained, every figure counted or read from a file.

sources.json, build/corpus.jsonl, the weights' header, run folders ─▶ builtin/seedling/README.md

python -m seedling.card                                       # before training
python -m seedling.card runs/seedling runs/seedling-chat      # with the course of these runs
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from seedling import BUILD, BUILTIN, SOURCES
from seedling.tokenizer import ENTRIES, MAX_TOKENS, corpus_by_source
from tunesmith.core.events import read_events
from tunesmith.core.rundir import open_run, write_atomic

FOLDER = BUILTIN / "seedling"
LANGUAGES = {"en": "English", "zh": "Chinese"}

_PAGE = """\
---
language: [en, zh]
license: cc-by-sa-4.0
library_name: transformers
pipeline_tag: text-generation
---

# seedling

The small base model that ships with tunesmith as `builtin:seedling`. It continues English and Chinese text and knows
the turns of a chat; it knows next to nothing else, and its answers are not to be relied on. It is there so that every
part of tunesmith can be tried on any machine in minutes, without a download.

{shape}

## Tokenizer

Byte-level BPE of {entries:,} entries, digits single, no normalisation: every text comes back byte for byte. The chat
template is ChatML with tools. `<|endoftext|>` ends a document, `<|im_end|>` a turn.

{compression}

## What it was trained on

{rows:,} documents, {tokens:,} tokens; one in a hundred documents, chosen by a hash of its content, was held out and is
not counted here. Texts keep their licences; where a licence asks for attribution or share-alike, this table is the
notice. Because some of them are share-alike, the weights are under CC BY-SA 4.0.

{sources}

## How it was trained

With tunesmith itself, all weights learning: the objective `pretrain` from random weights, then a short stage of `sft`
on chats of the sources instructions, gsm8k, dialogues and xiehouyu. `seedling/` in the source tree holds every step.
The first run was stopped and resumed twice. At step 496 it was shortened from 1,472 to 1,050 steps, and from there to
step 546 its learning rate was about a fifth below the schedule, by a fault of resuming that has since been mended.

{training}
"""


@dataclass(frozen=True, slots=True)
class Count:
    """What one source brings, counted from the corpus."""

    fact: dict[str, Any]
    tokens: int

    @property
    def language(self) -> str:
        return self.fact["language"]


def card(runs: list[Path]) -> str:
    """The text of the model card; `runs` are the folders of the training runs, in their order."""
    counts = count_sources()
    return _PAGE.format(
        shape=_shape(FOLDER if (FOLDER / "config.json").is_file() else BUILD / "seed"),
        entries=ENTRIES,
        compression=_compression(counts),
        rows=sum(count.fact["rows"] for count in counts),
        tokens=sum(count.tokens for count in counts),
        sources=_sources(counts),
        training="\n\n".join(map(_training, runs)) or "This folder holds no weights yet.",
    )


def count_sources() -> list[Count]:
    """Tokens of each source, with the tokenizer that ships."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    return [
        Count(fact, sum(len(encoding.ids) for encoding in tokenizer.encode_batch(documents)))
        for fact, documents in corpus_by_source()
    ]


def parameters(weights: Path) -> int:
    """The number of parameters in a safetensors file, from its header alone."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; whole numbers get separators, others three places."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _shape(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    rows = [("architecture", config["architectures"][0]), ("parameters", parameters(folder / "model.safetensors"))]
    rows += [(key.removeprefix("num_").replace("_", " "), config[key]) for key in keys]
    return table(("part", "value"), [*rows, ("longest row, tokens", MAX_TOKENS)])


def _compression(counts: list[Count]) -> str:
    rows: list[tuple[object, ...]] = []
    for code, name in LANGUAGES.items():
        own = [count for count in counts if count.language == code]
        tokens, characters = sum(count.tokens for count in own), sum(count.fact["characters"] for count in own)
        rows.append((name, tokens, characters, characters / tokens))
    return table(("language", "tokens", "characters", "characters a token"), rows)


def _sources(counts: list[Count]) -> str:
    head = ("source", "language", "documents", "tokens", "licence", "from")
    rows = [
        (fact["name"], LANGUAGES[count.language], fact["rows"], count.tokens, fact["licence"], fact["attribution"])
        for count in counts
        for fact in (count.fact,)
    ]
    return table(head, rows)


def _training(run: Path) -> str:
    """What a run did: its size, every validation, what was noted when it went on after a stop, its run file."""
    folder = open_run(run)
    record = json.loads(folder.record.read_text(encoding="utf-8"))
    events = list(read_events(folder.events))
    measured = [event for event in events if event.kind == "validate"]
    names = list(dict.fromkeys(name for event in measured for name in event.values))
    rows = [(event.step, *(event.values.get(name, "") for name in names)) for event in measured]
    stops = [event.values["text"] for event in events if event.kind == "note" and "going on" in event.values["text"]]
    parts = [
        f"### {record['objective']}",
        f"{record['state']['step']:,} steps, {record['state']['tokens']:,} tokens.",
        *(f"* {stop}" for stop in stops),
        table(("step", *names), rows),
        f"```yaml\n{folder.run_file.read_text(encoding='utf-8').strip()}\n```",
    ]
    return "\n\n".join(parts)


def main(arguments: list[str]) -> None:
    text = card([Path(argument) for argument in arguments])
    write_atomic(FOLDER / "README.md", text.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
