"""Medusa: further heads that foretell later tokens, so that answers can be drafted and checked at once.

    hidden at x_t ─┬─ the base's head ─▶ x_{t+1}
                   ├─ head 1 ─▶ x_{t+2}          head k:  W (h + silu(A_k h + b_k)),   A_k and b_k start at zero
                   └─ head 2 ─▶ x_{t+3}          loss = sum_k decay^k · (- log p_k(x_{t+1+k}))

Cai et al., arXiv:2401.10774. W is the base's own vocabulary head, shared by all, or a copy for each that learns. Each
head starts as the base's, and learns to look one token further. With a frozen base (Medusa-1) only the heads' loss is
computed, and answers stay those of the base; with a base that learns too (Medusa-2) it is added to the objective's,
and the heads have a learning rate of their own. The engine `medusa` answers with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods import Formula, Losses, trainable
from tunesmith.methods._blocks import single_stack, width
from tunesmith.methods._own import OwnMethod, Part
from tunesmith.models.forest import Batch
from tunesmith.models.likelihood import Head
from tunesmith.models.policy import Policy
from tunesmith.models.quantize import Held

SAMPLE = 512
"""Targets of a batch on which the accuracy of heads is measured while training; validation takes all."""


class Medusa(OwnMethod):
    """Heads learn to foretell later tokens, with which the engine `medusa` answers faster."""

    usual_lr: ClassVar[float] = 1e-3
    not_folded: ClassVar[str] = "adds heads, for which plain models of transformers have no place"
    free: ClassVar[frozenset[str]] = frozenset({"decay", "weight", "heads_lr"})

    heads: Annotated[int, Field(gt=0, le=16)] = 3
    """How many; the first foretells the token after the next one."""
    vocabulary: Literal["tied", "own"] = "tied"
    """Whether all use the base's vocabulary head, or each has a copy that learns: much larger, somewhat better."""
    base: Literal["frozen", "learns"] = "frozen"
    """Only the heads learn, or all weights of the base with them; these are then saved with the heads."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """The loss of head k counts decay^k."""
    weight: Annotated[float, Field(gt=0)] = 0.2
    """Weight of the heads' loss beside the objective's, where the base learns."""
    heads_lr: Annotated[float, Field(gt=0)] = 4.0
    """Learning rate of the heads as a multiple of the base's, where the base learns."""

    @property
    def reversible(self) -> bool:
        return self.base == "frozen"

    def unfit(self, held: Held) -> str:
        return "with base learns, weights of the base itself learn" if self.base == "learns" else ""

    def attach(self, model: PreTrainedModel) -> None:
        single_stack(model, "method.medusa")
        if model.get_output_embeddings() is None:
            what = f"foretells tokens, and {type(model).__name__} has no head for them"
            raise Problem("method.medusa", what, "Use the objective sft or pretrain")
        if self.base == "learns":
            model.requires_grad_()
        model.add_module("medusa", MedusaHeads(model, self.heads, own=self.vocabulary == "own"))

    def groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        heads = {id(weight) for weight in heads_of(model).parameters()}
        learns = list(trainable(model).values())
        if self.base == "frozen":
            return [{"params": learns, "lr": lr}]
        return [
            {"params": [weight for weight in learns if id(weight) not in heads], "lr": lr},
            {"params": [weight for weight in learns if id(weight) in heads], "lr": lr * self.heads_lr},
        ]

    def begin(self, policy: Policy, batches: Iterator[Batch], steps: int) -> None:
        first = next(batches, None)
        if first is not None and first.answers > len(first.rows):
            what = "learns to foretell the text of answers, and these rows have several answers to choose between"
            raise Problem("method.medusa", what, "Use the objective sft or pretrain")

    def loss(self, policy: Policy, batch: Batch, formula: Formula) -> Losses:
        listening = _Listening(policy)
        if self.base == "frozen":
            with torch.no_grad(), policy.still():
                states = listening.states(batch)
            foretold, figures = self._heads_loss(listening, batch, states, formula.count(batch))
            return foretold, figures
        total, told = formula.loss(listening, batch)
        states = listening.states(batch) if listening.heard is None else listening.heard
        foretold, figures = self._heads_loss(listening, batch, states, formula.count(batch))
        return total + self.weight * foretold, {**told, **figures, "heads": foretold.detach()}

    def _heads_loss(self, policy: _Listening, batch: Batch, states: Tensor, count: float) -> Losses:
        """The sum over heads and targets, and the accuracy of each head."""
        heads, training = heads_of(policy.model), policy.trained.training
        total = states.new_zeros((), dtype=torch.float32)
        figures: dict[str, Tensor] = {}
        for number in range(self.heads):
            at, later = _pairs(batch, number + 1)
            seen, wanted = states[at], batch.targets.token[later]
            with policy.numbers():
                logprobs = heads.head(policy.model, number).logprobs(heads(seen, number), wanted)
            total = total - self.decay ** (number + 1) * (logprobs * batch.targets.weight[later]).sum()
            some = slice(SAMPLE if training else None)
            with torch.no_grad(), policy.numbers():
                right = heads.guesses(policy.model, seen[some], number) == wanted[some]
            figures[f"head_{number + 1}"] = count * right.float().mean() if len(right) else right.sum().float()
        return total, figures


class MedusaHeads(Part):
    """The heads of a model."""

    def __init__(self, model: PreTrainedModel, count: int, *, own: bool) -> None:
        super().__init__()
        layer: Any = model.get_output_embeddings()
        device, hidden = layer.weight.device, width(model)
        self.residual = nn.ModuleList(nn.Linear(hidden, hidden, device=device) for _ in range(count))
        for part in self.residual.parameters():
            nn.init.zeros_(part)
        self.vocabulary = nn.ModuleList(_copy(layer) for _ in range(count if own else 0))

    def __len__(self) -> int:
        return len(self.residual)

    def forward(self, hidden: Tensor, number: int) -> Tensor:
        """[..., d] to the state that head `number` reads, [..., d]."""
        layer: Any = self.residual[number]
        return hidden + F.silu(layer(hidden.to(layer.weight.dtype))).to(hidden.dtype)

    def head(self, model: PreTrainedModel, number: int) -> Head:
        """The vocabulary head of one of them, with what the architecture does to logits."""
        found = Head.of(model)
        if len(self.vocabulary):
            found.layer = self.vocabulary[number]
        return found

    def guesses(self, model: PreTrainedModel, hidden: Tensor, number: int) -> Tensor:
        """[M] the token that a head finds likeliest for each state [M, d], in chunks."""
        head = self.head(model, number)
        states = self(hidden, number)
        chunks = head.chunks(states, states.new_zeros(len(states), dtype=torch.long)) if len(states) else []
        parts = [head.logits(part).argmax(-1) for part, _ in chunks]
        return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.long)


def heads_of(model: nn.Module) -> MedusaHeads:
    """The heads that were put on a model.

    Raises:
        Problem: it has none.
    """
    for part in model.modules():
        if isinstance(part, MedusaHeads):
            return part
    raise Problem("model", "has no Medusa heads", "Train them with the method medusa")


def has_heads(model: nn.Module) -> bool:
    """Whether heads were put on a model."""
    return any(isinstance(part, MedusaHeads) for part in model.modules())


class _Listening(Policy):
    """A policy that keeps the states at its targets, so that they are computed once for objective and heads."""

    def __init__(self, policy: Policy) -> None:
        vars(self).update(vars(policy))
        self.heard: Tensor | None = None

    def hidden(self, batch: Batch, source: Tensor, row: Tensor) -> Tensor:
        found = super().hidden(batch, source, row)
        if source is batch.targets.source:
            self.heard = found
        return found

    def states(self, batch: Batch) -> Tensor:
        """[M, d] the states that targets are read at."""
        with self._precision():
            return self.hidden(batch, batch.targets.source, batch.targets.row)

    def numbers(self) -> Any:
        """The context in which products are computed."""
        return self._precision()


def _copy(layer: Any) -> nn.Linear:
    """A vocabulary head of its own with the values of the base's."""
    size, hidden = layer.weight.shape
    made = nn.Linear(hidden, size, bias=getattr(layer, "bias", None) is not None, device=layer.weight.device)
    with torch.no_grad():
        for own, first in zip(made.parameters(), layer.parameters(), strict=True):
            own.copy_(first)
    return made


def _pairs(batch: Batch, ahead: int) -> tuple[Tensor, Tensor]:
    """Numbers [P] of targets, and [P] of the targets that stand `ahead` tokens later in the same answer."""
    place = batch.positions[batch.targets.source]
    if len(place) == 0:
        return place, place
    key = batch.targets.row * (int(place.max()) + ahead + 1) + place
    ordered, order = key.sort()
    found = torch.searchsorted(ordered, key + ahead).clamp_max(len(key) - 1)
    hit = ordered[found] == key + ahead
    return hit.nonzero()[:, 0], order[found[hit]]
