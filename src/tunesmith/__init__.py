"""tunesmith fine-tunes language models, from raw data to a measured, folded, chatting model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.core.problem import Problem as Problem
    from tunesmith.core.run import Run as Run
    from tunesmith.train.verb import train as train

__version__ = "0.1.0"
__all__ = ["Problem", "Run", "__version__", "train"]

_HOMES = {"Problem": "tunesmith.core.problem", "Run": "tunesmith.core.run", "train": "tunesmith.train.verb"}


def __getattr__(name: str) -> Any:
    """Load public names when they are first used, so that `import tunesmith` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
