"""The tokenizer: byte-level BPE over both languages, with the chat template beside it.

    text ─▶ words, single digits ─▶ bytes ─▶ merges ─▶ ids

Modern Chinese is counted twice while the merges are learned, so that neither verse nor English takes most of the
vocabulary. Sources that joined in the second stage of pre-training had no part in it. There is no normaliser: every
text comes back from its tokens byte for byte.

    python -m seedling.tokenizer
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from seedling import BUILTIN, PARTS, ROOT, SOURCES
from tunesmith.core.rundir import write_atomic, write_json

ENTRIES = 6144
MAX_TOKENS = 1024
END_OF_TEXT, TURN_START, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FOLDER = BUILTIN / "seedling"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

_WORDS = Regex(
    r"'(?:[sdmt]|ll|ve|re)\b"  # the short half of don't, we've
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the space or mark before it
    r"|\p{N}"  # one digit
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # marks
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus_by_source() -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The facts and the documents of each source, in the order of the corpus."""
    facts: list[dict[str, Any]] = json.loads(SOURCES.read_text(encoding="utf-8"))
    with ExitStack() as stack:
        files = {
            part: stack.enter_context((PARTS / f"{part}.jsonl").open(encoding="utf-8"))
            for part in dict.fromkeys(fact["part"] for fact in facts)
        }
        for fact in facts:
            yield fact, [json.loads(next(files[fact["part"]]))["text"] for _ in range(fact["rows"])]


def train() -> Tokenizer:
    """Learn the merges from the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Split(_WORDS, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_weighted(), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer as transformers 4 and 5 load it."""
    write_atomic(folder / "tokenizer.json", (tokenizer.to_str(pretty=False) + "\n").encode())
    roles: dict[str, str | list[str]] = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    roles["additional_special_tokens"] = [TURN_START, TURN_END]
    write_json(folder / "special_tokens_map.json", roles)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", settings | roles)
    shutil.copyfile(ROOT / "chat_template.jinja", folder / "chat_template.jinja")


def _weighted() -> Iterator[str]:
    for fact, documents in corpus_by_source():
        if fact["stage"] == 1:
            for _ in range(2 if fact["part"] == "chinese" else 1):
                yield from documents


def main() -> None:
    tokenizer = train()
    save(tokenizer, FOLDER)
    for fact, documents in corpus_by_source():
        tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(documents))
        characters = sum(map(len, documents))
        print(f"{fact['name']:22}{tokens:10,} tokens {characters / tokens:6.2f} characters a token")


if __name__ == "__main__":
    main()
