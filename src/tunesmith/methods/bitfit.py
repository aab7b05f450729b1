"""BitFit: only the biases learn, about a thousandth of a model (Ben Zaken et al., arXiv:2106.10199).

Most newer architectures have no biases at all; their norms are as small, and are the other choice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods import Method, hold_in_float32
from tunesmith.methods._blocks import is_norm
from tunesmith.models.heads import head_parts


class Bitfit(Method):
    """Only biases, or only norms, learn: hardly any memory beside the model itself, which is saved whole."""

    usual_lr: ClassVar[float] = 1e-3

    parts: Literal["biases", "norms", "both"] = "biases"
    """What learns: every bias (those of norms too), every weight and bias of a norm, or both."""

    def apply(self, model: PreTrainedModel) -> nn.Module:
        found = {"biases": _biases(model), "norms": _norms(model)}
        chosen = found["biases"] | found["norms"] if self.parts == "both" else found[self.parts]
        if not chosen:
            raise self._nothing(model, found)
        model.requires_grad_(False)
        for weight in chosen.values():
            weight.requires_grad_()
        for head in head_parts(model).values():
            head.requires_grad_()
        hold_in_float32(model)
        return model

    def _nothing(self, model: PreTrainedModel, found: dict[str, dict[str, nn.Parameter]]) -> Problem:
        other = next((name for name, weights in found.items() if weights), None)
        has = f"; it has {len(found[other])} weights of {other}, such as {next(iter(found[other]))}" if other else ""
        what = "neither biases nor norms" if self.parts == "both" else f"no {self.parts}"
        return Problem(
            "method.bitfit.parts",
            f"is {self.parts}, and {type(model).__name__} has {what}{has}",
            f"Set parts: {other}, or use the method lora" if other else "Use the method lora",
        )


def _biases(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Every bias; those of a head for labels or a score are no part of the base."""
    own = {id(weight) for head in head_parts(model).values() for weight in head.parameters()}
    return {
        name: weight
        for name, weight in model.named_parameters()
        if name.rpartition(".")[2].endswith("bias") and id(weight) not in own
    }


def _norms(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    return {
        f"{path}.{name}": weight
        for path, module in model.named_modules()
        if is_norm(path.rpartition(".")[2], module)
        for name, weight in module.named_parameters(recurse=False)
    }
