"""Stairs go down only: every import statement of the package, lazy ones inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sources import modules, place, tree

STAIRS = (
    {"core"},
    {"builtin"},
    {"data"},
    {"models"},
    {"methods", "optimizers"},
    {"generate"},
    {"rewards"},
    {"objectives"},
    {"train", "evaluate", "merge"},
    {"compare"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(STAIRS) for room in rooms}

WITHOUT_TORCH = ("core", "data")
NEVER = {"torch", "torchvision", "torchaudio", "accelerate", "peft", "trl"}
ONLY_INSIDE_FUNCTIONS = {"transformers", "datasets", "sklearn", "scipy", "pandas", "matplotlib"}


class Import(NamedTuple):
    """One imported module, where it stands, and whether it waits inside a function."""

    target: str
    place: str
    lazy: bool


def imports(name: str, file: Path) -> list[Import]:
    """All modules that a file imports, whatever the form and the depth."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return list(_walk(tree(file), package, file, lazy=False))


def _walk(node: ast.AST, package: str, file: Path, *, lazy: bool) -> Iterator[Import]:
    for target in _targets(node, package):
        yield Import(target, place(file, node), lazy)
    inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, package, file, lazy=inside)


def _targets(node: ast.AST, package: str) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            base = ".".join([*above, *([module] if module else [])])
            return [f"{base}.{alias.name}" for alias in names]
        case ast.Call(func=function, args=[ast.Constant(value=str(target)), *_]) if _imports_by_name(function):
            return [target]
    return []


def _imports_by_name(function: ast.expr) -> bool:
    last = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return last in ("import_module", "__import__")


def room_of(name: str) -> str:
    """The room of a module or of something in it: the first name below the package; empty for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else ""


def faults(name: str, found: list[Import]) -> list[str]:
    """The imports of one module that the stairs forbid."""
    room = room_of(name)
    if not room:
        return []
    return [f"{each.place}: {room} imports {each.target}" for each in found if not allowed(room, each)]


def allowed(room: str, each: Import) -> bool:
    top = each.target.split(".")[0]
    if top == "tunesmith":
        other = room_of(each.target)
        return other == room or each.target == "tunesmith.__version__" or (other and LEVEL[other] < LEVEL[room])
    if room in WITHOUT_TORCH:
        return top not in NEVER and (each.lazy or top not in ONLY_INSIDE_FUNCTIONS)
    return True


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_stairs_go_down_only(room: str) -> None:
    inside = {name: file for name, file in modules().items() if room_of(name) == room}
    assert not [fault for name, file in inside.items() for fault in faults(name, imports(name, file))]


def test_every_folder_is_a_known_room() -> None:
    top = {name.split(".")[1] for name, file in modules().items() if "." in name}
    assert top <= {*LEVEL, "__main__"}


@pytest.mark.parametrize(
    ("name", "line", "fine"),
    [
        ("tunesmith.train.loop", "from tunesmith.models.policy import Policy", True),
        ("tunesmith.train.loop", "from tunesmith import __version__", True),
        ("tunesmith.train.loop", "from .world import World", True),
        ("tunesmith.train.loop", "from ..core import run", True),
        ("tunesmith.train.loop", "from ..evaluate import report", False),
        ("tunesmith.train.loop", "import tunesmith.cli", False),
        ("tunesmith.train.loop", "from tunesmith import train", True),
        ("tunesmith.merge.fold", "from tunesmith import train", False),
        ("tunesmith.data.pack", "def f():\n    from tunesmith.models import forest", False),
        ("tunesmith.data.pack", "def f():\n    import torch.nn", False),
        ("tunesmith.data.pack", "def f():\n    from transformers import AutoTokenizer", True),
        ("tunesmith.data.pack", "from transformers import AutoTokenizer", False),
        ("tunesmith.core.run", "import importlib\nimportlib.import_module('torch')", False),
        ("tunesmith.core.run", "from pydantic import Field", True),
    ],
)
def test_the_check_sees_every_form(name: str, line: str, fine: bool) -> None:
    found = list(_walk(ast.parse(line), name.rpartition(".")[0], Path(__file__), lazy=False))
    assert (not faults(name, found)) == fine
