"""What a run takes, counted before any weight is loaded: parameters, memory by component, disk.

Weights and optimizer state follow from shapes, found on a model without memory (meta device). What a micro-batch holds
beside them is counted by rehearsing it on such shapes (rehearsal): activations, gradients, and what passes.

    total = weights + what learns + optimizer + libraries + the most of (activations + gradients + what passes)
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.core.problem import Problem
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.methods import Method, hold_in, trainable
from tunesmith.models.device import memory_bytes
from tunesmith.models.fast import quicken
from tunesmith.models.forest import Batch
from tunesmith.models.planting import plant
from tunesmith.models.quantize import Held, saved_bytes, written_bytes
from tunesmith.optimizers import OptimizerSpec, named
from tunesmith.train.rehearsal import Place, rehearse

LIBRARIES_BYTES = 580_000_000
"""What Python (9 MB), torch (216), transformers, PEFT and the quantisers they find (322), tunesmith and its data (33)
take before the first weight, measured on Linux."""


NAMES = {
    "weights": "weights of the model",
    "learns": "of these or beside them: what learns",
    "gradients": "gradients beside the activations",
    "optimizer": "optimizer state",
    "activations": "activations of the largest micro-batch",
    "passing": "what passes, such as logits of a chunk",
    "libraries": "Python and libraries",
}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by component."""

    weights: int
    learns: int
    gradients: int
    optimizer: int
    activations: int
    passing: int
    libraries: int = LIBRARIES_BYTES

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__slots__)

    @property
    def largest(self) -> tuple[str, str]:
        """The component that takes the most, with its figure."""
        return self.lines()[max(range(len(NAMES)), key=lambda number: getattr(self, list(NAMES)[number]))]

    def lines(self) -> list[tuple[str, str]]:
        """Each component in words, with its figure."""
        return [(text, gigabytes(getattr(self, name))) for name, text in NAMES.items()]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a run's model before it is loaded."""

    all: int
    trainable: int
    layers: int
    memory: Memory
    parts: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many numbers learn in each kind of module, the layers added up."""


def survey(
    model: PreTrainedModel,
    method: Method,
    optimizer: OptimizerSpec,
    *,
    place: Place,
    tokens: int,
    row: int,
    answer: float = 1.0,
    checkpointing: bool,
    accumulates: bool = True,
    held: Held | None = None,
) -> Shape:
    """Count a model on the meta device under a method.

    model: a skeleton; place: device and number type; tokens: those of the largest micro-batch; row: those of its
    longest row; answer: the share of these that an encoder-decoder's decoder reads; checkpointing: whether activations
    are recomputed; accumulates: whether a step has several micro-batches; held: how the base is quantised.
    """
    whole = sum(weight.numel() for weight in model.parameters())
    kind = optimizer.holds if method.changes_base else place.dtype
    model = model.to(dtype=kind)  # type: ignore[call-arg]
    spared, written = (saved_bytes(model, held, kind), written_bytes(model, held, kind)) if held else (0, 0)
    trained = method.apply(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    hold_in(trained, optimizer.holds)
    quicken(trained, place.fast, place.device)
    trained.train()
    sides = model.config.is_encoder_decoder
    layers = _layers(model) if sides else model.config.get_text_config().num_hidden_layers
    shapes = {name: weight.shape for name, weight in trainable(trained).items()}
    learns = sum(shape.numel() for shape in shapes.values())
    frozen = sum(w.numel() * w.element_size() for w in trained.parameters() if not w.requires_grad)
    parts = learned_parts(trained)
    optimizer.heaviest_step(optimizer.build(named(method.groups(trained, optimizer.lr), trained)))
    batch = _forest(tokens, row, answer if sides else 0.0)
    found = rehearse(model, trained, method, batch, place, accumulates=accumulates)
    gradients, passing = optimizer.gradient_bytes(shapes), found.passing + written
    if not accumulates:  # all of them are there at the end of the backward pass, when the activations are gone
        gradients = min(gradients, max(found.gradients, gradients - found.kept - passing))
    memory = Memory(
        weights=frozen - spared,
        learns=optimizer.holds.itemsize * learns,
        gradients=gradients,
        optimizer=optimizer.state_bytes(shapes),
        activations=found.kept,
        passing=passing,
    )
    return Shape(whole, learns, layers, memory, parts)


def learned_parts(trained: nn.Module) -> dict[str, int]:
    """How many numbers learn in each kind of module, such as `self_attn.q_proj`, the layers added up; largest first."""
    around = {
        n for n, module in trained.named_modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    }
    found: Counter[str] = Counter()
    for name, weight in trainable(trained).items():
        place = name.rpartition(".")[0]
        owner = next((outer for outer in accumulate(place.split("."), "{}.{}".format) if outer in around), place)
        found[".".join([word for word in owner.split(".") if not word.isdigit()][-2:])] += weight.numel()
    return dict(found.most_common())


def check_fits(memory: Memory, device: torch.device, where: str) -> None:
    """Refuse what cannot fit.

    Raises:
        Problem: with the figures and what would make it fit.
    """
    free = memory_bytes(device)
    if memory.total <= free:
        return
    largest = memory.largest
    raise Problem(
        where,
        f"needs about {gigabytes(memory.total)} of memory and {gigabytes(free)} are free on {device.type}; "
        f"the largest part is {largest[0]} with {largest[1]}",
        "Make train.tokens_per_batch or train.max_tokens smaller, set train.checkpoint_activations to on, "
        "or use a smaller model or the method lora",
    )


def check_disk(folder: Path, needed: int) -> None:
    """Refuse a run whose checkpoints and model do not fit on the disk.

    Raises:
        Problem: with both figures.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Problem(
            str(folder),
            f"the run writes about {gigabytes(needed)} and {gigabytes(free)} are free on its disk",
            "Free some space, set train.keep_checkpoints lower, or choose another output folder",
        )


def products_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product here, the best of a few (some 50 ms)."""
    left, right = (torch.ones(1024, 1024, dtype=dtype, device=device) for _ in range(2))
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        float(torch.mm(left, right)[0, 0])
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def gigabytes(count: float) -> str:
    """Bytes for a person: `1.25 GB`, `12.3 MB`, `40.5 KB`."""
    for size, unit, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "KB", 1)):
        if count >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count:.0f} bytes"


def _layers(model: PreTrainedModel) -> int:
    """Layers of both sides of an encoder-decoder."""
    return sum(isinstance(module, GradientCheckpointingLayer) for module in model.modules())


def _forest(tokens: int, row: int, answer: float) -> Batch:
    """A forest of so many tokens in rows of one length; answer: the share that is a branch."""
    row = max(2, min(row, tokens))
    lengths = [row] * (tokens // row) + ([tokens % row] if tokens % row > 1 else [])
    return plant([_row(length, answer) for length in lengths])


def _row(length: int, answer: float) -> TokenRow:
    branch = min(length - 1, math.ceil(length * answer))
    pieces = [Piece(np.zeros(n, np.int32), np.ones(n, np.float32)) for n in (length - branch, branch)]
    return TokenRow(Piece(pieces[0].tokens, pieces[0].weights * (not branch)), tuple(pieces[1:] if branch else ()))
