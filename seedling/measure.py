"""How well a model predicts the held-out documents, beside two compressors that were given the same texts.

    held_out.jsonl ─┬─▶ model: - log2 p of each document alone, from <|endoftext|> on
                    ├─▶ PPMd:  size of (training text + held-out) - size of (training text)
                    └─▶ xz:    the same                                    ─▶ bits a byte, by language and source

A compressor reads the held-out documents of a language in one stream after all training text of that language, so it
also learns from the documents before; the model reads each alone. PPMd is run with contexts of up to 6 bytes, as 7-Zip
does by default, and of up to 16 with a gigabyte of memory, beyond which it gains nothing here.

    python -m seedling.measure                # the compressors: writes seedling/floors.json; needs pyppmd
    python -m seedling.measure MODEL          # the model: writes seedling/measured.json and seedling/samples.json
"""

from __future__ import annotations

import json
import lzma
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from seedling import FLOORS, HELD_OUT, LANGUAGES, MEASURED, SAMPLES
from seedling.tokenizer import MAX_TOKENS, corpus_by_source
from tunesmith.core.rundir import write_json

PPMD_MEMORY = 1 << 30
DICTIONARY = 64 << 20
"""Bytes that xz looks back; more than either language has."""
JOINT = "\n\n"
PROMPTS = (
    "Once upon a time, there was a little girl named",
    "The town is located in the north of",
    "Question: Tom has 3 apples and buys 5 more. How many apples does he have now?\nAnswer:",
    "KING HENRY:\n",
    "问：你好，请帮我推荐一家附近的餐馆。\n答：",
    "这座城市位于",
    "浣溪沙·",
    "老鼠过街——",
)
"""What the samples go on from; written before the weights were there, and none is left out."""


def held_out() -> list[dict[str, str]]:
    """The held-out documents, each {"text", "source", "language"}."""
    with HELD_OUT.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def opened(folder: str) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def model_bits(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> list[float]:
    """Bits that a model needs for each document, read from the mark that ends the one before."""
    bits: list[float] = []
    with torch.inference_mode():
        for row in rows:
            ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
            bits.append(sum(_bits(model, [tokenizer.bos_token_id, *part]) for part in _windows(ids)))
    return bits


def compressors() -> dict[str, Callable[[bytes], int]]:
    """The size of a text by each compressor, in bytes."""
    import pyppmd

    def ppmd(order: int) -> Callable[[bytes], int]:
        def size(text: bytes) -> int:
            encoder = pyppmd.Ppmd7Encoder(order, PPMD_MEMORY)
            return len(encoder.encode(text)) + len(encoder.flush())

        return size

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": DICTIONARY}]
    return {
        "PPMd, 6 bytes": ppmd(6),
        "PPMd, 16 bytes": ppmd(16),
        "xz": lambda text: len(lzma.compress(text, lzma.FORMAT_XZ, filters=filters)),
    }


def floors() -> dict[str, dict[str, float]]:
    """Bits a byte of each compressor by language."""
    rows = held_out()
    return {
        name: _floors([row for row in rows if row["language"] == code], _training_text(code))
        for code, name in LANGUAGES.items()
    }


def measure(model: Any, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Bits a byte of a model, by language and by source."""
    rows = held_out()
    bits = model_bits(model, tokenizer, rows)
    groups: dict[str, dict[str, list[tuple[dict[str, str], float]]]] = {"languages": {}, "sources": {}}
    for row, own in zip(rows, bits, strict=True):
        groups["languages"].setdefault(LANGUAGES[row["language"]], []).append((row, own))
        groups["sources"].setdefault(row["source"], []).append((row, own))
    return {kind: {name: _rate(told) for name, told in parts.items()} for kind, parts in groups.items()}


def samples(model: Any, tokenizer: Any, tokens: int = 60) -> list[dict[str, str]]:
    """The first continuation of each prompt at temperature 0.8 with a fixed seed; nothing is chosen."""
    told: list[dict[str, str]] = []
    for prompt in PROMPTS:
        torch.manual_seed(0)
        ids = tokenizer([tokenizer.bos_token + prompt], add_special_tokens=False, return_tensors="pt")["input_ids"]
        drawn = model.generate(input_ids=ids, do_sample=True, temperature=0.8, top_k=50, max_new_tokens=tokens)
        text = tokenizer.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True)
        told.append({"prompt": prompt, "continuation": text.rstrip("\ufffd")})
    return told


def _bits(model: Any, ids: list[int]) -> float:
    row = torch.tensor([ids])
    return model(input_ids=row, labels=row).loss.item() * (len(ids) - 1) / math.log(2)


def _windows(ids: list[int]) -> Iterator[list[int]]:
    size = MAX_TOKENS - 1
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _training_text(language: str) -> bytes:
    documents = [text for fact, texts in corpus_by_source() if fact["language"] == language for text in texts]
    return (JOINT.join(documents) + JOINT).encode()


def _floors(rows: list[dict[str, str]], training: bytes) -> dict[str, float]:
    text = JOINT.join(row["text"] for row in rows).encode()
    return {name: 8 * (size(training + text) - size(training)) / len(text) for name, size in compressors().items()}


def _rate(told: list[tuple[dict[str, str], float]]) -> dict[str, float]:
    size = sum(len(row["text"].encode()) for row, _ in told)
    return {"bytes": size, "model": sum(bits for _, bits in told) / size}


def main(arguments: list[str]) -> None:
    if not arguments:
        write_json(FLOORS, floors())
        return
    (folder,) = arguments
    model, tokenizer = opened(folder)
    figures = measure(model, tokenizer)
    write_json(MEASURED, figures)
    write_json(SAMPLES, samples(model, tokenizer))
    for name, row in (figures["languages"] | figures["sources"]).items():
        print(f"{name:22}{row['model']:.3f} bits a byte, {row['bytes']:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
