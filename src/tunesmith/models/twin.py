"""A second model over the same weights: its modules are its own, its tensors are the first one's.

    model ── modules ──┐                    twin ── modules + an adapter ──┐
                       └── weights, in memory once ────────────────────────┘

So an adapter can be put on the twin, and the model beside it stays untouched, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)


class _Shared(TorchFunctionMode):
    """Copying a tensor gives the tensor itself, such as the scales that a quantised layer keeps beside its weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return args[0]
        return func(*args, **(kwargs or {}))


def twin(model: Model, apart: Collection[str] = ()) -> Model:
    """A model with modules of its own over the weights of another; the other one must not run meanwhile.

    apart: names of weights that the twin shall have copies of, since they will be changed in it.
    """
    named: list[tuple[str, Tensor]] = list(model.named_parameters(remove_duplicate=False))
    named += model.named_buffers(remove_duplicate=False)
    own = {id(tensor) for name, tensor in named if name in apart}
    with _Shared():
        memo = {id(tensor): cast(Any, tensor) for _, tensor in named if id(tensor) not in own}
        return copy.deepcopy(model, memo)
