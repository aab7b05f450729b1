# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Fold: melt an adapter into plain weights, and prove it before calling it done.

    base shards ─▶ + change in float32 ─▶ rounded once ─▶ staging ─▶ reloaded, logits compared ─▶ renamed

One shard of the base is in memory at a time. The folded model appears under its name only after its logits on real
prompts agree with those of base and adapter; else it is removed and the difference is told. A base that was held in
few bits while training is written out in memory instead, so that the folded model is the one that was trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.core.records import Message
from tunesmith.core.run import ModelSpec
from tunesmith.core.rundir import sync_file, sync_folder, write_json
from tunesmith.merge.few_bits import Shift, as_trained, held_as, shift
from tunesmith.merge.lowrank import Adapter, Change, read_adapter
from tunesmith.merge.prompts import PROMPTS
from tunesmith.methods._own import saved_method
from tunesmith.methods._through_peft import melted
from tunesmith.models.ancestor import saved_length, unfoldable
from tunesmith.models.device import DTYPES
from tunesmith.models.load import load, load_codec, save_tokenizer
from tunesmith.models.quantize import Held, write_out
from tunesmith.models.sentences import keep_layout
from tunesmith.models.source import Found, find, head_of, read_json

Hear = Callable[[str], None]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of logits, relative to the largest logit, that one rounding of the weights explains."""
SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True)
class Folded:
    """A folded model, and how far it is from base and adapter.

    difference: largest difference of logits relative to the largest logit; prompts: on how many it was measured;
    shift: where the base was held in few bits, how far the original base is from it; original: whether that was taken.
    """

    folder: Path
    difference: float
    prompts: int
    dtype: str
    shift: Shift | None = None
    original: bool = False

    @property
    def lines(self) -> list[str]:
        return [
            f"folded model: {self.folder} ({self.dtype})",
            f"logits agree with base + adapter to {self.difference:.1e} of the largest logit on {self.prompts} prompts",
            *([] if self.shift is None else self._told(self.shift)),
        ]

    def _told(self, shift: Shift) -> list[str]:
        far = f"{shift.difference:.1e} of the largest logit and {shift.nats:.1e} nats a token"
        if self.original:
            return [f"it has the original weights; the model that was trained, over {shift.kind}, is {far} away"]
        return [
            f"it has the weights of the base as it was trained, written out of {shift.kind}; over the original "
            f"weights (--base original) it would be {far} away from what was trained"
        ]


def fold(
    target: str,
    output: Path | None = None,
    dtype: str = "auto",
    prompts: tuple[str, ...] = PROMPTS,
    hear: Hear = lambda text: None,
    base: Literal["trained", "original"] = "trained",
) -> Folded:
    """Fold the adapter of a run or an adapter folder into its base.

    output: the new folder, by default `folded` in the run or beside the adapter; dtype: `auto` keeps the base's; base:
    of one that was held in few bits, what these stood for while training, or the original weights.

    Raises:
        Problem: nothing to fold, the output exists, or the folded model does not compute what it should.
    """
    found = find(target)
    adapter = _foldable(target, found)
    held = held_as(found)
    if base == "original" and held is not None and held.own:
        raise Problem("--base", "the files of this base hold no original weights", "Leave it out")
    over = held if base == "trained" else None
    folder = output or (found.run.path if found.run else adapter) / "folded"
    if folder.exists():
        raise Problem(str(folder), "exists already", "Choose another --output, or remove the folder")
    kind = _kind(found, dtype)
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _write(found, over, staging, kind, hear)
        hear("reloading the folded model and comparing logits")
        chats = _chats(found, prompts)
        expected = _logits(_with_adapter(found, over), chats)
        difference = _difference(expected, _logits(_load(staging, found), chats))
        _refuse_mismatch(difference, kind, target)
        moved = None
        if held is not None and not held.own:
            hear("comparing logits over the base in few bits and over the original one")
            other = _logits(_with_adapter(found, None if over else held), chats)
            moved = shift(held.kind, *((expected, other) if over else (other, expected)))
        for file in staging.iterdir():
            sync_file(file)
        sync_folder(staging)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    sync_folder(folder.parent)
    return Folded(folder, difference, len(prompts), str(kind)[6:], moved, base == "original")


def _foldable(target: str, found: Found) -> Path:
    """The adapter of a target.

    Raises:
        Problem: there is none, or none that plain weights could hold.
    """
    if found.adapter is None:
        raise Problem(target, "holds plain weights, so there is nothing to fold", "Use the model as it is")
    if saved_length(found.adapter):
        raise unfoldable(target)
    if (own := saved_method(found.adapter)) is not None:
        raise own.no_fold()
    return found.adapter


def _write(found: Found, held: Held | None, folder: Path, dtype: torch.dtype, hear: Hear) -> None:
    assert found.adapter is not None
    adapter = read_adapter(found.adapter)
    if held is not None:
        hear(f"the base was trained over in {held.kind}: it is written out as it was, and the adapter folded into that")
        _fold_whole(found, held, folder, dtype)
    elif adapter is not None and _covers(adapter, found.base):
        _fold_shards(adapter, found.base, folder, dtype, hear)
    else:
        hear("this adapter needs its model: folding in memory through PEFT")
        _fold_whole(found, None, folder, dtype)
    save_tokenizer(load_codec(found), found, folder)
    keep_layout(found.adapter, folder)


def _kind(found: Found, dtype: str) -> torch.dtype:
    if dtype != "auto":
        if dtype not in DTYPES:
            raise Problem("--dtype", f"{dtype!r} is no number type", f"Known: auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    stored = read_json(found.base / "config.json")
    return DTYPES.get(str(stored.get("dtype") or stored.get("torch_dtype")), torch.float32)


def _covers(adapter: Adapter, base: Path) -> bool:
    """Whether every change is of a weight that the base's files hold under the same name."""
    names: set[str] = set()
    for shard in _shards(base):
        with safe_open(shard, framework="pt") as tensors:
            names.update(tensors.keys())
    return set(adapter.changes) <= names


def _fold_shards(adapter: Adapter, base: Path, folder: Path, dtype: torch.dtype, hear: Hear) -> None:
    shards = _shards(base)
    index: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        hear(f"folding shard {number} of {len(shards)}")
        tensors = _fold_shard(adapter, shard, dtype)
        save_file(tensors, folder / shard.name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, shard.name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    config = read_json(base / "config.json")
    for name in ("torch_dtype", "auto_map"):
        config.pop(name, None)
    write_json(folder / "config.json", {**config, "dtype": str(dtype)[6:]})
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")


def _fold_shard(adapter: Adapter, shard: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    with safe_open(shard, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
            out[name] = _folded(adapter.changes.get(name), tensors.get_tensor(name), dtype)
    return out


def _folded(change: Change | None, weight: Tensor, dtype: torch.dtype) -> Tensor:
    if change is not None:
        weight = change.apply(weight)
    return weight.to(dtype).contiguous() if weight.is_floating_point() else weight


def _fold_whole(found: Found, held: Held | None, folder: Path, dtype: torch.dtype) -> None:
    base = _base(found, held) if held is None else write_out(_base(found, held))
    adapted = PeftModel.from_pretrained(base, str(found.adapter), is_trainable=False)
    model: Any = melted(adapted)
    model.to(dtype).save_pretrained(folder, safe_serialization=True)


def _with_adapter(found: Found, held: Held | None) -> PeftModel:
    return PeftModel.from_pretrained(_base(found, held), str(found.adapter), is_trainable=False)


def _base(found: Found, held: Held | None) -> PreTrainedModel:
    return _load(found.base, found) if held is None else as_trained(found, held)


def _load(folder: Path, source: Found) -> PreTrainedModel:
    return load(ModelSpec(path=str(folder), dtype="float32", attention="padded"), head_of(source)).model


def _chats(found: Found, prompts: tuple[str, ...]) -> list[Tensor]:
    """The tokens [1, L] of each prompt: as a chat, or as a text for a model that writes none."""
    codec = load_codec(found)
    if head_of(found).kind != "lm":
        return [torch.tensor([codec.encode_framed(prompt)]) for prompt in prompts]
    return [
        torch.tensor([codec.encode_chat([Message("user", prompt)], add_generation_prompt=True)]) for prompt in prompts
    ]


def _difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference of logits, relative to the largest logit."""
    size = max(float(part.abs().max()) for part in expected)
    return max(float((left - right).abs().max()) for left, right in zip(expected, got, strict=True)) / size


def _logits(model: torch.nn.Module, chats: list[Tensor]) -> list[Tensor]:
    """The logits [1, L, V] of each chat, or its scores or states.

    The decoder of an encoder-decoder is given the chat to repeat.
    """
    model.eval()
    device = next(model.parameters()).device
    inputs: list[dict[str, Tensor]] = [{"input_ids": chat.to(device)} for chat in chats]
    if model.config.is_encoder_decoder:  # type: ignore[union-attr]
        inputs = [{**each, "labels": each["input_ids"]} for each in inputs]
    with torch.no_grad():
        found = [model(**each) for each in inputs]
    return [(one.logits if "logits" in one else one.last_hidden_state).float().cpu() for one in found]


def _refuse_mismatch(difference: float, dtype: torch.dtype, target: str) -> None:
    if difference <= TOLERANCE[dtype]:
        return
    raise Problem(
        target,
        f"the folded model's logits differ from base + adapter by {difference:.1e} of the largest logit "
        f"(at most {TOLERANCE[dtype]:.0e} is rounding), so it was not kept",
        "Fold with --dtype float32; if that differs too, please report the adapter's configuration",
    )


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
