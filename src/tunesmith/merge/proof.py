# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
"""Proof of a merged model before it takes its name.

files   every tensor is in its file, once, with its type and shape, and no file is longer or shorter than it says;
        that numbers are finite is seen while they are written
full    besides, transformers loads the model without a weight missing or left over, and its logits on real
        prompts are finite
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.problem import Problem
from tunesmith.merge.output import ShardFile
from tunesmith.merge.prompts import PROMPTS
from tunesmith.merge.weights import Weights

if TYPE_CHECKING:
    import torch

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
    from tunesmith.models.load import load_codec
    from tunesmith.models.source import find

    codec = load_codec(find(str(folder)))
    with opened(folder, folder) as model:
        return _loss(model, [codec.encode_text(prompt) for prompt in PROMPTS], folder)


@contextmanager
def opened(folder: Path, scratch: Path | None = None) -> Generator[torch.nn.Module]:
    """A model to run; its layers stay on the disk until it is their turn, so memory follows embeddings and the largest
    layer. scratch: where a copy of the layers may be written, by default the system's place for such.

    Raises:
        Problem: it does not load, or weights are missing.
    """
    import torch

    from tunesmith.models.device import DTYPES
    from tunesmith.models.load import load_weights, skeleton
    from tunesmith.models.source import find, head_of, read_json

    found = find(str(folder))
    head = head_of(found)
    stored = DTYPES.get(str(read_json(folder / "config.json").get("dtype")), torch.float32)
    log = logging.getLogger("accelerate.big_modeling")
    log.setLevel(logging.ERROR)  # it tells of layers on the disk: they shall be
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        places = {"device_map": _places(skeleton(found, head)), "offload_folder": place}
        yield load_weights(found, head, stored, places).eval()


def hidden_states(model: torch.nn.Module, tokens: Sequence[int]) -> NDArray[np.float32]:
    """What enters each layer of a model when it reads a row of tokens: [layers, tokens, numbers]."""
    import torch

    with torch.no_grad():
        states = model(input_ids=torch.tensor([list(tokens)]), output_hidden_states=True).hidden_states
    return torch.stack([state[0].float() for state in states[:-1]]).numpy()


def _places(model: torch.nn.Module) -> dict[str, str]:
    """Where each part is kept: the members of the longest list of modules on the disk, all else in memory."""
    import torch

    lists = [(len(part), name) for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)]
    _, longest = max(lists, default=(0, ""))
    places: dict[str, str] = {}
    for name, part in model.named_modules():
        if longest and name.startswith(f"{longest}.") and name.count(".") == longest.count(".") + 1:
            places[name] = "disk"
        elif not list(part.children()) and not (longest and name.startswith(f"{longest}.")):
            places[name] = "cpu"
    return places


def _loss(model: torch.nn.Module, rows: list[list[int]], folder: Path) -> float:
    """The mean loss of the rows' tokens after the first; 0 where the model has no logits by token."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    with torch.no_grad():
        found = model(input_ids=tokens, attention_mask=mask)
    logits = (found.logits if "logits" in found else found.last_hidden_state).float()
    real = logits[mask.bool()] if logits.ndim == 3 else logits
    if not torch.isfinite(real).all():
        raise Problem(str(folder), "its logits on real prompts are not finite, so it was not kept", "Check the recipe")
    if logits.ndim < 3 or cast(Any, model).get_output_embeddings() is None:
        return 0.0
    learned = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), learned))
