"""The source files of the house as syntax trees; what the tests beside this file read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SOURCE = REPOSITORY / "src"
PACKAGE = SOURCE / "tunesmith"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package goes by its folder's name."""
    return {_dotted(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def functions(inside: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(inside) if isinstance(node, Function))


def place(file: Path, node: ast.AST) -> str:
    """Where a node stands, in the form that editors jump to."""
    return f"{file.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}"


def _dotted(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
