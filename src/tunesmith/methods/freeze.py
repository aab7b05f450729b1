"""Partial fine-tuning: some layers learn, chosen by number or by name, and the rest is frozen."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods import Method, hold_in_float32, thaw
from tunesmith.models.heads import head_parts

Count = Annotated[int, Field(ge=0)]


class Freeze(Method):
    """A few layers of the model learn, the others stay as they are."""

    usual_lr: ClassVar[float] = 1e-4

    first: Count = 0
    """So many of the first layers learn."""
    last: Count = 2
    """So many of the last layers learn."""
    names: tuple[str, ...] = ()
    """Further weights that learn, by name; `*` stands for anything, as in `*.norm.weight`."""
    head: Literal["frozen", "learns"] = "frozen"
    """Whether the output layer learns; where it is tied to the embeddings, they learn with it."""

    @model_validator(mode="after")
    def _something_learns(self) -> Freeze:
        if not (self.first or self.last or self.names or self.head == "learns"):
            problem = Problem("", "nothing would learn", "Set first, last, names or head")
            raise ValueError(problem) from problem
        return self

    def apply(self, model: PreTrainedModel) -> nn.Module:
        thaw(model, (*self._layers(model), *self.names))
        output = model.get_output_embeddings() if self.head == "learns" else None
        for part in (output, *head_parts(model).values()):
            if isinstance(part, nn.Module):
                part.requires_grad_()
        hold_in_float32(model)
        return model

    def _layers(self, model: PreTrainedModel) -> list[str]:
        stack, path = layer_stack(model)
        if self.first + self.last > len(stack):
            raise Problem(
                "method.freeze",
                f"first {self.first} and last {self.last} are more than the model's {len(stack)} layers",
                "Ask for fewer, or use the method full",
            )
        numbers = [*range(self.first), *range(len(stack) - self.last, len(stack))]
        return [f"{path}.{number}.*" for number in numbers]


def layer_stack(model: PreTrainedModel) -> tuple[nn.ModuleList, str]:
    """The list of transformer layers and its path: the longest ModuleList of the model."""
    lists = [(module, name) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise Problem("method.freeze", f"{type(model).__name__} has no list of layers", "Choose weights by names")
    return max(lists, key=lambda found: len(found[0]))
