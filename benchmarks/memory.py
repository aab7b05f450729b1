"""Peak memory of methods on the same model and batch, measured, beside what `plan` says before the run.

    python benchmarks/memory.py [--hidden 768 --layers 12 --tokens 2048] [NAME …]

Each row is two processes of tunesmith: `plan`, and two steps of `train`, whose record holds the peak of its resident
memory. The model has random weights in the shape of a Llama.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from bench.table import Column, Group, Told
from bench.training import command, show

WORDS = "the river ran slowly under old stone bridges while people talked about weather bread and trains"
ROWS = 64
COLUMNS = [
    Column("measured", "measured peak, GB", "实测峰值，GB", 2),
    Column("plan", "plan, GB", "估算，GB", 2),
    Column("share", "plan / measured", "估算 / 实测", 2),
    Column("measured", "of full", "占 full", 2, ratio=True),
]

SUBJECTS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, GaLore": {"method": "full", "optimizer": {"galore": {"rank": 64}}},
    "full, APOLLO": {"method": "full", "optimizer": {"apollo": {"rank": 64}}},
    "full, LISA": {"method": "full", "optimizer": {"lisa": {}}},
    "full, BAdam": {"method": "full", "optimizer": {"badam": {}}},
    "full, Adafactor": {"method": "full", "optimizer": {"adafactor": {}}},
    "LoRA": {"method": {"lora": {"rank": 16}}},
    "LoRA-FA": {"method": {"lora_fa": {"rank": 16}}},
    "LoRA, recomputed": {"method": {"lora": {"rank": 16}}, "train": {"checkpoint_activations": "on"}},
    "QLoRA (nf4)": {"method": {"lora": {"rank": 16}}, "model": {"quantize": "nf4"}},
    "LoRA over int8": {"method": {"lora": {"rank": 16}}, "model": {"quantize": "int8"}},
    "prefix": {"method": {"prefix": {}}},
    "prompt": {"method": {"prompt": {}}},
    "bitfit norms": {"method": {"bitfit": {"parts": "norms"}}},
    "bottleneck": {"method": {"bottleneck": {}}},
}


def model(folder: Path, hidden: int, layers: int) -> None:
    """Write a Llama with random weights and the shipped tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunesmith import builtin

    tokenizer = AutoTokenizer.from_pretrained(builtin.path("seedling"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows(file: Path, tokens: int) -> None:
    """Write texts of about this many tokens each."""
    words = WORDS.split()
    lines = [
        {"text": " ".join(words[(place * (n + 3)) % len(words)] for place in range(tokens * 2))} for n in range(ROWS)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run_file(where: Path, subject: dict[str, Any], tokens: int, row: int, name: str) -> Path:
    """The run of a subject."""
    value = {
        "model": {"path": str(where / "model"), "dtype": "float32", "device": "cpu", **subject.get("model", {})},
        "data": str(where / "rows.jsonl"),
        "objective": "pretrain",
        "method": subject["method"],
        "optimizer": subject.get("optimizer", "adamw"),
        "validation": {"fraction": 0},
        "train": {
            "steps": 2,
            "tokens_per_step": tokens,
            "tokens_per_batch": tokens,
            "max_tokens": row,
            "over_long": "truncate",
            "checkpoint_activations": "off",
            "checkpoint_every": 1000,
            "listeners": [],
            **subject.get("train", {}),
        },
        "output": str(where / "runs" / name),
    }
    file = where / f"{name}.yaml"
    file.write_text(yaml.safe_dump(value, sort_keys=False))
    return file


def tunesmith(*words: object) -> str:
    """What a command prints; its error ends the benchmark of this subject."""
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-600:])
    return done.stdout


def planned(text: str) -> float:
    """Gigabytes in all, from what `plan` prints."""
    section = text.partition("\nmemory\n")[2].partition("\n\n")[0]
    total = re.search(r"in all\s+([\d.]+) (GB|MB)", section)
    if total is None:
        raise RuntimeError(f"no total in the plan:\n{text}")
    return float(total.group(1)) / (1 if total.group(2) == "GB" else 1000)


def measured(folder: Path) -> float:
    """Gigabytes of the peak of a run."""
    return json.loads((folder / "record.json").read_text())["peak_memory_bytes"] / 1e9


def told(where: Path, name: str, number: int, asked: argparse.Namespace) -> Told:
    """A subject: what `plan` says and what two steps of `train` took; or why it was refused."""
    file = run_file(where, SUBJECTS[name], asked.tokens, asked.row, f"s{number}")
    found = Told(name, "ours")
    try:
        said = planned(tunesmith("plan", file))
        tunesmith("train", file)
    except RuntimeError as error:
        found.fault = f"refused: {str(error).splitlines()[-1]}"
        return found
    peak = measured(where / "runs" / f"s{number}")
    found.rounds.append({"measured": peak, "plan": said, "share": said / peak})
    return found


def main() -> None:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="subjects; by default all")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=2048, help="of a micro-batch")
    parser.add_argument("--row", type=int, default=512, help="tokens of a row")
    parser.add_argument("--dry", action="store_true", help="print the table, and keep the figures that are kept")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    names: list[str] = [name for name in SUBJECTS if not asked.names or name in asked.names]
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        where = Path(scratch)
        model(where / "model", asked.hidden, asked.layers)
        rows(where / "rows.jsonl", asked.row)
        sides = [told(where, name, number, asked) for number, name in enumerate(names)]
    size = f"{asked.hidden} × {asked.layers}"
    said = f"A Llama of {size}, {asked.tokens:,} tokens a micro-batch in rows of {asked.row}, float32."
    said_zh = f"一个 {size} 的 Llama，每个微批次 {asked.tokens:,} 个 token，每行 {asked.row}，float32。"
    base = "full" if "full" in names else ""
    group = Group("methods", said, said_zh, COLUMNS, sides, "measured", base=base, command=command())
    show("memory", group, asked)


if __name__ == "__main__":
    main()
