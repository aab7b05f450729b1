"""Several optimizers as one: each steps its own groups, and one plain state holds what all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from tunesmith.optimizers._own import Exact


class Joined(Exact):
    """One optimizer that steps others; groups and state are shared with them, so a checkpoint sees one."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.defaults = {name: value for part in parts for name, value in part.defaults.items()}
        self.parts = parts
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            count = len(part.param_groups)
            part.param_groups = self.param_groups[start : start + count]
            part.state = self.state
            start += count
