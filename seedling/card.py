"""The model cards: what went into a model, how it was trained and what it can do, every figure counted or read.

sources.json, build/parts, record/*, floors.json, measured.json, samples.json, chat.json ─▶ builtin/MODEL/README.md

python -m seedling.card seedling
python -m seedling.card seedling-chat
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from seedling import BUILTIN, CHAT_SCORE, FLOORS, LANGUAGES, MEASURED, RECORD, ROOT, SAMPLES
from seedling.tokenizer import ENTRIES, MAX_TOKENS, corpus_by_source
from tunesmith.core.events import read_events
from tunesmith.core.run import read_run
from tunesmith.core.rundir import open_run, write_atomic

STAGES = ((0, "pretrain.yaml"), (3430, "pretrain-2.yaml"), (4021, "pretrain-3.yaml"))
"""The step after which each stage of pre-training began, and its run file."""
BASE_RUNS = ("seedling-2", "seedling-turns")
CHAT_RUN = "seedling-chat"

_HEAD = """\
---
language: [en, zh]
license: cc-by-sa-4.0
library_name: transformers
pipeline_tag: text-generation
---
"""

_BASE = (
    _HEAD
    + """
# seedling

The small base model that ships with tunesmith as `builtin:seedling`. It continues English and Chinese text and knows
the turns of a chat; it knows next to nothing else, and its answers are not to be relied on. It is there so that every
part of tunesmith can be tried on any machine in minutes, without a download.

{shape}

## Tokenizer

Byte-level BPE of {entries:,} entries, digits single, no normalisation: every text comes back byte for byte. The chat
template is ChatML with tools. `<|endoftext|>` ends a document, `<|im_end|>` a turn.

{compression}

## How well it predicts text

Bits a byte on the held-out documents, fewer is better, beside compressors that were given all training text of the
language first. The compressors read the held-out documents as one stream and learn from those before; the model reads
each alone. The last columns say by how much the model needs less.

{floors}

By source, for the model:

{by_source}

## Samples

The first continuation of each prompt at temperature 0.8 with a fixed seed, up to 60 tokens; none was chosen.

{samples}

## What it was trained on

{rows:,} documents, {tokens:,} tokens; one in a hundred documents, chosen by a hash of its content, was held out and is
not counted here. `epochs` says how often a source was read on average. Texts keep their licences; where a licence asks
for attribution or share-alike, this table is the notice. Because some of them are share-alike, the weights are under
CC BY-SA 4.0.

{sources}

## How it was trained

With tunesmith itself, on one to two cores of a processor, all weights learning: the objective `pretrain` from random
weights, then a short stage of `sft` that teaches the turns of a chat on documents of the same corpus, then the mean of
both weights (`seedling/halves.yaml`), which predicts text nearly as well as the first alone. `seedling/` in the source
tree holds every step, and `seedling/record/` the whole record of each run. The first run was stopped and resumed
several times. From step {second:,} on it read more sources, with other weights, and from step {third:,} on with others
again, because verse had become worse; its length was set while the learning rate stood still.

{training}
"""
)

_CHAT = (
    _HEAD
    + """
# seedling-chat

The chat form of `builtin:seedling`, which ships with tunesmith as `builtin:seedling-chat`. It holds a short, simple
exchange in English and Chinese, says who it is, and says so when it does not know; what it says of the world is not to
be relied on. Architecture, tokenizer and the texts of pre-training are those of `builtin:seedling`; see its card.

{shape}

## What it can do

Held-out questions of each topic, worded as no training row words them or with names and numbers that none has, answered
greedily; an answer is right if it is one of those that the question accepts or has the key words of one.

{score}

## Samples

The first held-out question of each topic in each language with its greedy answer; none was chosen.

{samples}

## What it was tuned on

Short chats in English and Chinese that were written for this project and are free for any use (CC0 1.0), made by
`python -m seedling.chats`; none comes from elsewhere. The weights keep the CC BY-SA 4.0 of the base model.

{training}
"""
)


@dataclass(frozen=True, slots=True)
class Count:
    """What one source brings, counted from the corpus."""

    fact: dict[str, Any]
    tokens: int

    @property
    def language(self) -> str:
        return self.fact["language"]


def base_card() -> str:
    """The text of the card of the base model."""
    counts = count_sources()
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    return _BASE.format(
        shape=_shape(BUILTIN / "seedling"),
        entries=ENTRIES,
        compression=_compression(counts),
        floors=_floors(measured["languages"], json.loads(FLOORS.read_text(encoding="utf-8"))),
        by_source=table(("source", "bytes", "bits a byte"), _by_source(measured["sources"])),
        samples="\n\n".join(map(_sample, json.loads(SAMPLES.read_text(encoding="utf-8")))),
        rows=sum(count.fact["rows"] for count in counts),
        tokens=sum(count.tokens for count in counts),
        sources=_sources(counts),
        second=STAGES[1][0],
        third=STAGES[2][0],
        training="\n\n".join(_training(RECORD / run) for run in BASE_RUNS),
    )


def chat_card() -> str:
    """The text of the card of the chat model."""
    told = json.loads(CHAT_SCORE.read_text(encoding="utf-8"))
    return _CHAT.format(
        shape=_shape(BUILTIN / "seedling-chat"),
        score=table(("topic", "English", "Chinese"), told["topics"]),
        samples=table(("question", "answer", "right"), told["samples"]),
        training=_training(RECORD / CHAT_RUN),
    )


def epochs(counts: list[Count]) -> dict[str, float]:
    """How often each source was read: its share of the tokens of each stage of pre-training."""
    read = dict.fromkeys((count.fact["name"] for count in counts), 0.0)
    for tokens, weights in _stages(RECORD / BASE_RUNS[0]):
        weighted = {count.fact["name"]: count.tokens * _weight(weights, count.fact) for count in counts}
        for count in counts:
            read[count.fact["name"]] += tokens / sum(weighted.values()) * _weight(weights, count.fact)
    return read


def _stages(run: Path) -> Iterator[tuple[float, dict[str, float]]]:
    """The tokens that each stage read, and the weights it gave to files."""
    steps = {event.step: event.values["tokens"] for event in read_events(run / "events.jsonl") if event.kind == "step"}
    ends = [start for start, _ in STAGES[1:]] + [max(steps)]
    for (start, file), end in zip(STAGES, ends, strict=True):
        weights = {Path(spec.path).stem: spec.weight for spec in read_run(ROOT / file).data}
        yield sum(tokens for step, tokens in steps.items() if start < step <= end), weights


def _weight(weights: dict[str, float], fact: dict[str, Any]) -> float:
    """How often a stage read a source in each of its epochs."""
    if "corpus" in weights:
        return weights["corpus"] * (fact["stage"] == 1)
    return weights[fact["part"]]


def count_sources() -> list[Count]:
    """Tokens of each source, with the tokenizer that ships."""
    tokenizer = Tokenizer.from_file(str(BUILTIN / "seedling" / "tokenizer.json"))
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
    head = ("source", "language", "documents", "tokens", "epochs", "licence", "from")
    read = epochs(counts)
    rows = [
        (
            *(fact["name"], LANGUAGES[count.language], fact["rows"], count.tokens),
            *(f"{read[fact['name']]:.1f}", fact["licence"], fact["attribution"]),
        )
        for count in counts
        for fact in (count.fact,)
    ]
    return table(head, rows)


def _floors(measured: dict[str, dict[str, float]], floors: dict[str, dict[str, float]]) -> str:
    """A line a language: the model, each compressor, and how much less the model needs than each."""
    names = list(next(iter(floors.values())))
    rows = [
        [language, int(row["bytes"]), row["model"]]
        + [floors[language][name] for name in names]
        + [f"{1 - row['model'] / floors[language][name]:.1%}" for name in names]
        for language, row in measured.items()
    ]
    return table(("language", "bytes", "seedling", *names, *(f"less than {name}" for name in names)), rows)


def _by_source(sources: dict[str, dict[str, float]]) -> list[tuple[object, ...]]:
    return [(name, int(row["bytes"]), row["model"]) for name, row in sources.items()]


def _sample(row: dict[str, str]) -> str:
    quoted = f"**{row['prompt']}**{row['continuation']}".replace("\n", "  \n")
    return "\n".join(f"> {line}".rstrip(" ") if line == "" else f"> {line}" for line in quoted.split("\n"))


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
    (name,) = arguments
    text = {"seedling": base_card, "seedling-chat": chat_card}[name]()
    write_atomic(BUILTIN / name / "README.md", text.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
