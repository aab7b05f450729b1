"""How `builtin:seedling` and the shipped examples are made; none of this is installed with the package.

    corpora ─▶ corpus ─▶ tokenizer ─▶ config ─▶ pretrain.yaml, -2, -3 ─┬─▶ turns.yaml ─▶ halves.yaml ─▶ seedling
                                                                      └─▶ chats ─▶ chat.yaml ─▶ seedling-chat
    ship, measure, curve, card: what goes into the package and is said of it
    examples (reviews.yaml, identity.yaml, preferences.yaml)

Run each step from the repository root, as `python -m seedling.corpus ../shared/data`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
"""What can be made again, and is therefore not committed."""
BUILTIN = ROOT.parent / "src" / "tunesmith" / "builtin"
"""What ships with the package."""
CORPUS = BUILD / "corpus.jsonl"
"""What the first part of pre-training read, and the tokenizer learned its merges from."""
PARTS = BUILD / "parts"
"""Everything, by part: english, sums, chinese and verse, for the second part of pre-training."""
HELD_OUT = BUILD / "held_out.jsonl"
TURNS = BUILD / "turns.jsonl"
SOURCES = ROOT / "sources.json"
"""What went into the corpus, with licences; the model card is written from it."""
RECORD = ROOT / "record"
"""What the runs that made the shipped models wrote about themselves."""
FLOORS = ROOT / "floors.json"
MEASURED = ROOT / "measured.json"
"""Bits a byte of compressors and of the shipped model, which the model card shows."""
SAMPLES = ROOT / "samples.json"
CHAT_SCORE = ROOT / "chat.json"
"""What the shipped chat model answers to held-out questions, by topic."""
LANGUAGES = {"en": "English", "zh": "Chinese"}


def one_in(count: int, content: str) -> bool:
    """Whether a text is one of so many, chosen by a hash of its content."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) % count == 0
