"""Bottleneck adapters: small networks between the frozen layers, each with a way around it.

    houlsby    after attention and after the feed-forward part    (Houlsby et al., arXiv:1902.00751)
    pfeiffer   after the feed-forward part only                   (Pfeiffer et al., arXiv:2005.00247)
    parallel   beside the feed-forward part                       (He et al., arXiv:2110.04366)

    h ─▶ h + s · up(f(down(h)))        in sequence, h being what the part gave
    h ─▶ h + s · up(f(down(x)))        in parallel, x being what went into it

`up` starts at zero, so the model starts as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods._blocks import Block, blocks, width
from tunesmith.methods._own import OwnMethod, Part

CURVES = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}
START = 0.02
"""Standard deviation of the first values of `down`."""


class Bottleneck(OwnMethod):
    """Small networks between the frozen layers of the model learn; they can be switched off."""

    usual_lr: ClassVar[float] = 5e-4
    not_folded: ClassVar[str] = "has a curve between its two layers, which no weights of the base can hold"
    free: ClassVar[frozenset[str]] = frozenset({"dropout"})

    place: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """Where: after attention and feed-forward (houlsby), after feed-forward only, or beside it (parallel)."""
    size: Annotated[int, Field(gt=0)] = 32
    """Numbers in the middle of each; more can learn more and takes more memory."""
    curve: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """The curve between the two layers."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """What each adds is multiplied by this; 4 is usual for parallel ones."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the middle that is left out at random while training."""

    def attach(self, model: PreTrainedModel) -> None:
        found = blocks(model)
        if not found:
            raise self._misfit(model, "no list of blocks")
        for block in found:
            for host in self._hosts(model, block):
                if "residual" in inspect.signature(host.forward).parameters:
                    raise self._misfit(model, f"the way around {type(host).__name__} inside of it")
                host.add_module("bottleneck", _Adapter(width(model), self, _device_of(host)))
                host.register_forward_hook(_through, with_kwargs=True)

    def _hosts(self, model: PreTrainedModel, block: Block) -> list[nn.Module]:
        """The modules of a block that get an adapter."""
        if block.mlp is None:
            raise self._misfit(model, f"no feed-forward part of its own in {block.path}")
        if self.place != "houlsby":
            return [block.mlp]
        if not block.attentions:
            raise self._misfit(model, f"no attention in {block.path}")
        return [*block.attentions, block.mlp]

    def _misfit(self, model: PreTrainedModel, what: str) -> Problem:
        place = "pfeiffer or the method lora" if "attention" in what else "the method lora"
        return Problem(
            "method.bottleneck.place", f"is {self.place}, and {type(model).__name__} has {what}", f"Use {place}"
        )


class _Adapter(Part):
    """down, curve, up; what it gives is added by the hook of its host."""

    def __init__(self, hidden: int, options: Bottleneck, device: torch.device) -> None:
        super().__init__()
        self.options = options
        self.down = nn.Linear(hidden, options.size, device=device)
        self.up = nn.Linear(options.size, hidden, device=device)
        nn.init.normal_(self.down.weight, std=START)
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., d] to what is added, [..., d]."""
        middle = CURVES[self.options.curve](self.down(hidden.to(self.down.weight.dtype)))
        middle = F.dropout(middle, self.options.dropout, self.training)
        return (self.options.scale * self.up(middle)).to(hidden.dtype)


def _through(host: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any], output: Any) -> Any:
    """Add what the adapter gives to what its host gave, the first of several things where it gives several."""
    adapter: Any = host.bottleneck
    if not adapter.on:
        return output
    first = output[0] if isinstance(output, tuple) else output
    parallel = adapter.options.place == "parallel"
    found = first + adapter((inputs[0] if inputs else options["hidden_states"]) if parallel else first)
    return (found, *output[1:]) if isinstance(output, tuple) else found


def _device_of(host: nn.Module) -> torch.device:
    return next(host.parameters()).device
