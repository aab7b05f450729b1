"""Data sides: from a file of rows to packed tokens, as tunesmith does it and as transformers alone does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.work import Clock


def ours(settings: dict[str, Any]) -> dict[str, Any]:
    """Read, check, hash, render, tokenise, mask, store and pack; settings: `place`, `processes`."""
    from tunesmith.core.records import Chat
    from tunesmith.core.run import DataSpec
    from tunesmith.data.build import Part, build_store
    from tunesmith.data.encode import Rules
    from tunesmith.data.sources import open_source
    from tunesmith.data.tokenizer import Codec

    place, budget = Path(settings["place"]), settings.get("budget", 1024)
    codec = Codec.load(place / "model", "chatml")
    clock = Clock()
    with clock:
        parts = [Part(source, 0) for source in open_source(DataSpec(path=str(place / "rows.json")))]
        store, report = build_store(
            parts, codec, Rules(Chat, 1024, over_long="truncate"), Path.cwd() / "cache", processes=settings["processes"]
        )
        fill = packed(store, budget)
    return {
        "rows": len(store),
        "tokens": int(store.lengths.sum()),
        "lost": report.sources[0].lost,
        "fill": 100 * fill,
        **clock.figures,
    }


def packed(store: Any, budget: int) -> float:
    """Pack an epoch step by step, as a run does; the share of the micro-batches that is filled."""
    from tunesmith.data.pack import Packing, pack
    from tunesmith.data.stream import Pace, Stream

    lengths, stream, packs = store.lengths, Stream(store.lengths, Pace(8192)), 0
    for step in range(stream.steps_per_epoch):
        packs += len(pack(lengths[stream.rows_of_step(step)].tolist(), budget))
    return Packing(len(store), int(lengths.sum()), packs, budget).fill


def template(settings: dict[str, Any]) -> dict[str, Any]:
    """A loop over rows with `apply_chat_template`, as a script of one's own would have it: no masks, no packing."""
    from transformers import AutoTokenizer

    place = Path(settings["place"])
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.chat_template = settings["template"]
    clock = Clock()
    with clock:
        rows = json.loads((place / "rows.json").read_text("utf-8"))
        found = [tokenizer.apply_chat_template(turns(row), return_dict=False) for row in rows]
    return {"rows": len(found), "tokens": sum(map(len, found)), **clock.figures}


def turns(row: dict[str, str]) -> list[dict[str, str]]:
    """A row of instructions as a chat."""
    asked = "\n".join(filter(None, (row["instruction"], row["input"])))
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
