"""The layers of a decoder, each compiled by torch: norms, rotary embeddings, gates and LoRA's sums become few kernels.

    layer   [ norm · projections · rotary ]  attention  [ projection · norm · MLP ]
                  a compiled graph            as it is       a compiled graph

One layer is compiled for all, for batches of any length; attention over the forest stays as it is, between two graphs.
The first batches wait for the compiler, half a minute or so, which short runs do not earn back. On a processor it was
measured not to pay, and it needs a C++ compiler there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.models.attention import NAME, forest_attention

BACKEND = "inductor"
COMPILED = "_compiled_call_impl"
"""Where torch looks for a module's compiled call, which `nn.Module.compile` sets."""


def pull(model: nn.Module) -> int:
    """Have the layers of a model compiled when they are first used; returns how many there are.

    On `meta`, where nothing is computed, they are counted alone.
    """
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if any(weight.is_meta for weight in model.parameters()):
        return len(layers)
    if layers:
        AttentionInterface.register(NAME, torch.compiler.disable(forest_attention))
    for layer in layers:
        vars(layer)[COMPILED] = _compiled(layer)
    return len(layers)


def _compiled(layer: Any) -> Callable[..., Any]:
    """A layer's call. With a cache, as answers are drawn, it is the layer's own: it would be compiled anew for each."""
    quick = torch.compile(layer._call_impl, dynamic=True, backend=BACKEND)

    def call(*args: Any, **kwargs: Any) -> Any:
        return (quick if kwargs.get("past_key_values") is None else layer._call_impl)(*args, **kwargs)

    return call
