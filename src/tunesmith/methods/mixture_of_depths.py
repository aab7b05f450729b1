"""Mixture of depths: some blocks take only the tokens that need them (Raposo et al., arXiv:2404.02258).

    training     of each row the share `capacity` with the highest router scores goes through a block
    afterwards   a small predictor decides token by token, since the best of a row are known only at its end

    y = block(chosen tokens alone),   x' = y + s · tanh(r) · (y - x)      s starts at 0: a chosen token is as before

The predictor learns from the choices of training with a cross-entropy of its own, whose gradient reaches nothing else;
before it has learned anything it lets every token through, so the run starts at the base's validation loss. Validation
measures what generation does. The first block with full attention always takes all tokens, since caches are measured
by it; blocks with sliding windows are not routed, since their caches drop keys by count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from tunesmith.core.problem import Problem
from tunesmith.methods import Formula, Losses
from tunesmith.methods._blocks import single_stack, width
from tunesmith.methods._own import OwnMethod
from tunesmith.methods._routing import Choice, Routed, refused
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.models.quantize import Held

PREDICTOR = 64
"""Numbers in the middle of a predictor."""


class MixtureOfDepths(OwnMethod):
    """Some blocks take only the tokens that need them, which saves their time for the others."""

    reads_segments: ClassVar[bool] = True
    usual_lr: ClassVar[float] = 5e-5
    not_folded: ClassVar[str] = "decides for each token which blocks it goes through, which no plain model does"
    free: ClassVar[frozenset[str]] = frozenset({"predictor_weight"})

    capacity: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a row's tokens that goes through a routed block; 1 is the base itself."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Numbers of the routed blocks, from 0; by default every other one, from the second."""
    learns: Literal["routers", "blocks", "all"] = "blocks"
    """Only routers and predictors learn, or the routed blocks with them, or the whole model."""
    predictor_weight: Annotated[float, Field(gt=0)] = 0.01
    """Weight of the predictors' loss, a sum over all tokens."""

    @property
    def reversible(self) -> bool:
        return self.learns == "routers"

    @property
    def starts_at_identity(self) -> bool:
        return self.capacity == 1

    def unfit(self, held: Held) -> str:
        return "" if self.learns == "routers" else f"with learns {self.learns}, weights of the base itself learn"

    def attach(self, model: PreTrainedModel) -> None:
        _, stack = single_stack(model, "method.mixture_of_depths")
        for number in self._chosen(model, stack):
            routed = Routed(stack[number], number, self.capacity, width(model), PREDICTOR)
            routed.block.requires_grad_(self.learns != "routers")
            stack[number] = routed
        if self.learns == "all":
            model.requires_grad_()

    def loss(self, policy: Policy, batch: Batch, formula: Formula) -> Losses:
        total, figures = formula.loss(policy, batch)
        choices = [routed.choice for routed in policy.model.modules() if isinstance(routed, Routed) and routed.choice]
        count = formula.count(batch)
        passed = sum(float(_mean(choice.passed, choice)) for choice in choices) / len(choices)
        figures = {**figures, "passed": total.new_tensor(passed * count)}
        if self.capacity == 1 or not policy.trained.training:
            return total, figures
        right = sum(float(_mean((c.foretold >= 0) == c.passed, c)) for c in choices) / len(choices)
        figures["foretold"] = total.new_tensor(right * count)
        return total + self.predictor_weight * _predictor_loss(choices), figures

    def _chosen(self, model: PreTrainedModel, stack: nn.ModuleList) -> Sequence[int]:
        """The blocks that are routed.

        Raises:
            Problem: they cannot be; the hint names those that can.
        """
        where = "method.mixture_of_depths.blocks"
        if odd := refused(stack[0]):
            raise Problem(
                where,
                f"the blocks of {type(model).__name__} are called with {', '.join(odd)}, which needs all tokens",
                "Use another method",
            )
        kinds = get_layer_types_and_kwargs(model.config.get_text_config())[0]
        full = [number for number, kind in enumerate(kinds) if kind == "full_attention"][1:]
        chosen = sorted(set(self.blocks)) or [number for number in full if number % 2]
        wrong = [number for number in chosen if number not in full]
        if wrong or not chosen:
            named = f"names block {wrong[0]}" if wrong else "names no block"
            raise Problem(
                where,
                f"{named}, and a routed block of {type(model).__name__} must have full attention and not be the first",
                f"Name some of {', '.join(map(str, full))}" if full else "Use another model",
            )
        return chosen


def _mean(values: Tensor, choice: Choice) -> Tensor:
    """The share of tokens, without padding, for which it is so []."""
    return values[choice.real].float().mean()


def _predictor_loss(choices: Sequence[Choice]) -> Tensor:
    """The sum over tokens of the cross-entropy between what was foretold and what was chosen, mean over blocks []."""
    losses = [
        F.binary_cross_entropy_with_logits(choice.foretold, choice.passed.float(), choice.real.float(), reduction="sum")
        for choice in choices
    ]
    return sum(losses[1:], losses[0]) / len(losses)
