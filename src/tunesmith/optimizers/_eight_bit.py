"""AdamW of bitsandbytes, with a state that a checkpoint can hold (Dettmers et al., arXiv:2110.02861).

Its own state dictionary has a table of 256 steps for each weight and nests what it holds; here the tables are left out,
and what comes back is put into buffers that bitsandbytes makes anew.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from tunesmith.optimizers import Groups
from tunesmith.optimizers._groups import decayed
from tunesmith.optimizers._options import AdamOptions


def adamw(groups: Groups, spec: AdamOptions, *, bits: int, paged: bool = False) -> Optimizer:
    """AdamW with state of 8 or 32 bits; paged: kept in memory that moves between GPU and host by itself."""
    parts = decayed(groups, spec.weight_decay)
    return _class()(parts, lr=spec.lr, betas=spec.betas, eps=spec.eps, optim_bits=bits, is_paged=paged)


@cache
def _class() -> Any:
    """The class, made when it is first needed: bitsandbytes is optional."""
    from bitsandbytes.optim.adamw import AdamW

    class PlainAdamW(AdamW):
        """AdamW of bitsandbytes whose state dictionary is flat."""

        def state_dict(self) -> dict[str, Any]:
            whole = Optimizer.state_dict(self)
            return {**whole, "state": {index: _without_tables(state) for index, state in whole["state"].items()}}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
            Optimizer.load_state_dict(self, {**state_dict, "state": {}})
            index = 0
            for number, group in enumerate(self.param_groups):
                for place, weight in enumerate(group["params"]):
                    if index in state_dict["state"]:
                        self.init_state(group, weight, number, place)
                        _fill(self.state[weight], state_dict["state"][index])
                    index += 1

    return PlainAdamW


def _without_tables(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith("qmap")}


def _fill(state: dict[str, Any], saved: dict[str, Any]) -> None:
    for name, value in saved.items():
        if isinstance(value, Tensor):
            state[name].copy_(value)
        else:
            state[name] = value
