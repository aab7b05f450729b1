"""Puts a trained run into the package: its weights in a number type, the tokenizer, and the record of the run.

runs/NAME/model ─▶ src/tunesmith/builtin/MODEL       weights in safetensors, configuration, tokenizer, template
runs/NAME/*     ─▶ seedling/record/NAME              run file, record and events, as they were written

python -m seedling.ship seedling runs/seedling-turns
python -m seedling.ship seedling-chat runs/seedling-chat --dtype bfloat16
python -m seedling.ship --record runs/seedling-2     # the record alone
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from seedling import BUILTIN, RECORD, ROOT
from seedling.tokenizer import FILES as TOKENIZER_FILES
from tunesmith.core.rundir import write_atomic, write_json
from tunesmith.data.build import cache_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEPT = ("run.yaml", "events.jsonl", "data_report.json")


def ship(name: str, model: Path, dtype: torch.dtype) -> Path:
    """Write a model as `builtin:NAME`; returns its folder."""
    folder = BUILTIN / name
    folder.mkdir(exist_ok=True)
    AutoModelForCausalLM.from_pretrained(model, dtype=dtype).save_pretrained(folder)
    for file in TOKENIZER_FILES:
        if not (folder / file).exists():
            shutil.copyfile(BUILTIN / "seedling" / file, folder / file)
    return folder


def record(run: Path) -> Path:
    """Keep what a run wrote about itself, without the place where it ran; returns the folder."""
    folder = RECORD / run.name
    folder.mkdir(parents=True, exist_ok=True)
    for file in KEPT:
        text = (run / file).read_text(encoding="utf-8")
        for place in (ROOT.parent, cache_folder().parent):
            text = text.replace(f"{place}/", "")
        write_atomic(folder / file, text.encode())
    told = json.loads((run / "record.json").read_text(encoding="utf-8"))
    write_json(folder / "record.json", told | {"base": "."})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("given", nargs="+", metavar="NAME FOLDER | RUN", help="what to ship, or the runs to record")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--record", action="store_true", help="keep the records of runs, and ship no weights")
    asked = parser.parse_args()
    if asked.record:
        print(*(record(Path(run)) for run in asked.given), sep="\n")
    else:
        name, folder = asked.given
        print(ship(name, Path(folder), DTYPES[asked.dtype]))


if __name__ == "__main__":
    main()
