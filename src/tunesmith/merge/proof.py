# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Proof of a merged model before it takes its name.

files   every tensor is in its file, once, with its type and shape, and no file is longer or shorter than it says;
        that numbers are finite is seen while they are written
full    besides, transformers loads the model without a weight missing or left over, and its logits on real
        prompts are finite
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.problem import Problem
from tunesmith.merge.output import ShardFile
from tunesmith.merge.weights import Weights

if TYPE_CHECKING:
    import torch

PROMPTS = (
    "Who are you?",
    "What is the capital of France, and why is it famous?",
    "Write one sentence about rain in the mountains.",
    "你是谁？请用一句话介绍自己。",
    "这家酒店的早餐很好，房间也干净。这条评论是正面的还是负面的？",
    "def area(radius):",
)


REPORT = "Please report the recipe"


@dataclass(frozen=True)
class Proof:
    """What was proven: tensors in the files, and the prompts that logits were finite on (0: not asked for)."""

    tensors: int
    prompts: int
    surprise: float | None = None

    @property
    def lines(self) -> list[str]:
        """What was proven, in words."""
        told = [f"{self.tensors:,} tensors, each once, with its type and shape, all numbers finite"]
        if self.surprise is not None:
            told.append(
                f"transformers loads it; logits are finite on {self.prompts} prompts, whose tokens it expects with "
                f"a mean loss of {self.surprise:.2f} nats"
            )
        return told


def prove_files(folder: Path, shards: Sequence[ShardFile]) -> int:
    """Read the files' headers back; how many tensors they hold.

    Raises:
        Problem: a tensor is missing, left over, or not as planned.
    """
    weights = Weights(folder)
    try:
        pieces = {piece.name: piece for shard in shards for piece in shard.pieces}
        if weights.tensors.keys() != pieces.keys():
            wrong = sorted(weights.tensors.keys() ^ pieces.keys())
            raise Problem(str(folder), f"holds other tensors than planned ({', '.join(wrong[:3])})", REPORT)
        for name, tensor in weights.tensors.items():
            if (tensor.stored, tensor.shape) != (pieces[name].stored, pieces[name].shape):
                raise Problem(
                    str(folder), f"{name} is {tensor.stored} {list(tensor.shape)}, other than planned", REPORT
                )
    finally:
        weights.close()
    return len(pieces)


def prove_model(folder: Path) -> float:
    """Load the model and compute its logits on real prompts; the mean loss of the prompts' own tokens, in nats.

    Raises:
        Problem: it does not load, weights are missing, or its logits are not finite.
    """
    import torch

    from tunesmith.models.device import DTYPES
    from tunesmith.models.load import load_codec, load_weights
    from tunesmith.models.source import find, head_of, read_json

    found = find(str(folder))
    stored = DTYPES.get(str(read_json(folder / "config.json").get("dtype")), torch.float32)
    model = load_weights(found, head_of(found), stored)
    codec = load_codec(found)
    losses = [_loss(model, codec.encode_text(prompt), folder) for prompt in PROMPTS]
    return sum(losses) / len(losses)


def _loss(model: torch.nn.Module, ids: list[int], folder: Path) -> float:
    """The mean loss of a prompt's tokens after the first; 0 where the model has no logits by token."""
    import torch

    row = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=row).logits.float()
    if not torch.isfinite(logits).all():
        raise Problem(str(folder), "its logits on real prompts are not finite, so it was not kept", "Check the recipe")
    if logits.ndim < 3 or len(ids) < 2:
        return 0.0
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], row[0, 1:]))
