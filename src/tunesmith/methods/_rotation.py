"""What the methods that rotate blocks of numbers share."""

from __future__ import annotations

from typing import cast

from torch import nn

from tunesmith.core.problem import Problem


def check_divides(place: str, size: int, name: str, layer: nn.Module) -> None:
    """Refuse blocks that a layer's input cannot be cut into.

    Raises:
        Problem: with sizes that would do.
    """
    width = int(cast(nn.Linear, layer).in_features)
    if width % size == 0:
        return
    fitting = sorted((d for d in range(2, width + 1) if width % d == 0), key=lambda d: abs(d - size))
    raise Problem(
        place,
        f"{size} does not divide the input of {name}, which has {width} numbers",
        f"Sizes near it that do: {', '.join(str(d) for d in sorted(fitting[:3]))}",
    )
