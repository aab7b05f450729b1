"""A small published model of children's stories, the same with random weights, and texts for both.

python docs/runs/stories.py

../shared/data ─┬─▶ runs/stories-base             the model, with the end of text that its authors trained it with
                ├─▶ runs/stories-random           the same architecture and tokenizer, weights drawn anew
                ├─▶ runs/stories.jsonl            stories, one a row, with broken quotes mended
                └─▶ runs/shakespeare-train.jsonl  plays in passages, and the last tenth of them apart in
                    runs/shakespeare-held.jsonl
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from seedling.clean import grouped, mended  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
PASSAGE = 900
"""Characters of a passage of plays: about as many tokens as the model's context holds."""
HELD = 0.1
"""The part of the plays that is measured on, from their end, so that no scene stands on both sides."""


def base(folder: Path) -> None:
    """The published model. Its authors put `<s>` between stories, so `<s>` ends a text, and not the unseen `</s>`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (DATA / "model" / "stories260K").iterdir():
        shutil.copyfile(file, folder / file.name)
    about = folder / "tokenizer_config.json"
    config = json.loads(about.read_text("utf-8"))
    about.write_text(json.dumps(config | {"eos_token": config["bos_token"]}, indent=2), "utf-8")


def untrained(published: Path, folder: Path) -> None:
    """The architecture and the tokenizer of a model with weights drawn at random, as its own code draws them."""
    shutil.copytree(published, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(published)).save_pretrained(folder)


def stories() -> list[str]:
    """Children's stories, their quotes mended and their paragraphs as they were."""
    return [mended(text) for text in json.loads((DATA / "text" / "tinystories_1000.json").read_text("utf-8"))]


def plays() -> tuple[list[str], list[str]]:
    """Passages of plays: those to learn from, and those of the last tenth."""
    with gzip.open(DATA / "corpora" / "en_shakespeare.jsonl.gz", "rt", encoding="utf-8") as lines:
        text = json.loads(next(iter(lines)))["text"]
    passages = list(grouped(text.split("\n\n"), PASSAGE, "\n\n"))
    cut = round(len(passages) * (1 - HELD))
    return passages[:cut], passages[cut:]


def write(file: Path, texts: Iterable[str]) -> None:
    """Texts as JSON lines."""
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")


def main() -> None:
    """Write the two models and the texts."""
    runs = ROOT / "runs"
    base(runs / "stories-base")
    untrained(runs / "stories-base", runs / "stories-random")
    learned, held = plays()
    for name, texts in (("stories", stories()), ("shakespeare-train", learned), ("shakespeare-held", held)):
        write(runs / f"{name}.jsonl", texts)
        print(f"{len(texts):,} rows in {name}.jsonl")


if __name__ == "__main__":
    main()
