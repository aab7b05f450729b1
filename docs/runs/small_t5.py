"""A small T5 with random weights, and rows to pre-train it on: sentences with spans left out (arXiv:1910.10683).

    python docs/runs/small_t5.py        makes runs/small-t5-start and runs/small-t5.jsonl

The text is the encyclopedia's sentences and stories of the shared data; about 15 % of the words of each are left out,
and the answer names them in their order.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from tunesmith import builtin

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
GAP = "<{}>"
SHARE, SPAN = 0.15, 2


def tokenizer() -> PreTrainedTokenizerFast:
    """The embedded base's tokenizer in T5's frame: a text, and an end token."""
    made = Tokenizer.from_file(str(builtin.path("seedling") / "tokenizer.json"))
    end = "<|im_end|>"
    made.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, made.token_to_id(end))])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, pad_token="<|endoftext|>")


def model(words: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """Three layers on each side, 7.5 million weights."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(words),
            d_model=256,
            d_kv=32,
            d_ff=768,
            num_layers=3,
            num_heads=8,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=True,
            dropout_rate=0.0,
            pad_token_id=words.pad_token_id,
            decoder_start_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
        )
    )


def texts() -> list[str]:
    """Sentences and paragraphs of stories."""
    with gzip.open(DATA / "corpora" / "en_wiki_sentences.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [json.loads(line)["text"] for line in file]
    for story in json.loads((DATA / "text" / "tinystories_1000.json").read_text("utf-8")):
        text = story["text"] if isinstance(story, dict) else story
        found += [part for part in text.split("\n") if part.strip()]
    return [text for text in found if 8 <= len(text.split()) <= 80]


def gapped(text: str, draw: random.Random) -> dict[str, str]:
    """A text with spans of words left out, and the words that are missing."""
    words = text.split()
    starts = sorted(draw.sample(range(len(words) - 1), max(1, round(SHARE * len(words) / SPAN))))
    shown: list[str] = []
    missing: list[str] = []
    place = 0
    for number, start in enumerate(start for start in starts):
        if start < place:
            continue
        gap = GAP.format(number)
        shown += [*words[place:start], gap]
        missing += [gap, *words[start : start + SPAN]]
        place = start + SPAN
    return {"instruction": " ".join([*shown, *words[place:]]), "output": " ".join(missing)}


def main() -> None:
    """Write the model and the rows."""
    words = tokenizer()
    folder = ROOT / "runs" / "small-t5-start"
    made = model(words)
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    draw = random.Random(0)
    rows = [gapped(text, draw) for text in texts()]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (ROOT / "runs" / "small-t5.jsonl").write_text(lines, "utf-8")
    print(f"{sum(weight.numel() for weight in made.parameters()):,} weights in {folder.name}, {len(rows):,} rows")


if __name__ == "__main__":
    main()
