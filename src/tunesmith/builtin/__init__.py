"""What ships with the package: `builtin:seedling`, `builtin:seedling-chat` and small example data, as plain files."""

from __future__ import annotations

from pathlib import Path

from tunesmith.core.problem import Problem, nearest

PREFIX = "builtin:"
_ROOT = Path(__file__).resolve().parent


def models() -> tuple[str, ...]:
    """The names of the models that ship: the folders that hold a tokenizer and, once trained, weights."""
    return tuple(sorted(file.parent.name for file in _ROOT.glob("*/tokenizer.json")))


def examples() -> tuple[str, ...]:
    """The names of the example files."""
    return tuple(sorted(file.name for file in (_ROOT / "examples").glob("*.jsonl")))


def path(name: str) -> Path:
    """The folder of a model by its name, with or without `builtin:` before it.

    Raises:
        Problem: no such model ships; the nearest name is in the hint.
    """
    bare = name.removeprefix(PREFIX)
    if bare not in models():
        raise Problem(PREFIX + bare, "no such model ships with tunesmith", nearest(bare, models()))
    return _ROOT / bare


def example(name: str) -> Path:
    """An example file by its name, with or without `.jsonl`.

    Raises:
        Problem: no such file ships; the nearest name is in the hint.
    """
    file = name if name.endswith(".jsonl") else f"{name}.jsonl"
    if file not in examples():
        raise Problem(name, "no such example ships with tunesmith", nearest(file, examples()))
    return _ROOT / "examples" / file
