"""Names, docstrings and lengths: what keeps the house readable."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from sources import PACKAGE, REPOSITORY, Function, functions, modules, place, tree

from tunesmith.core.plugins import FAMILIES

VAGUE = {"util", "utils", "common", "helper", "helpers", "misc", "manager", "managers"}


def python_files() -> Iterator[Path]:
    for folder in ("src", "tests", "seedling", "benchmarks"):
        yield from (file for file in (REPOSITORY / folder).rglob("*.py") if ".environments" not in file.parts)


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for file in modules().values():
        yield from ((file, node) for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef))


def heirs(root: str) -> set[str]:
    """The names of all classes of the package that inherit from `root`, however far down."""
    bases = [(node.name, above(node)) for _, node in classes()]
    found = {root}
    while more := {name for name, above in bases if above & found} - found:
        found |= more
    return found - {root}


def above(node: ast.ClassDef) -> set[str]:
    """The names of the classes that one inherits from."""
    return {ast.unparse(base).rpartition(".")[2] for base in node.bases}


def public(name: str) -> bool:
    return not name.startswith("_")


def test_no_vague_names() -> None:
    vague = [
        str(file.relative_to(REPOSITORY))
        for file in python_files()
        if VAGUE & {word for part in file.relative_to(REPOSITORY).with_suffix("").parts for word in part.split("_")}
    ]
    assert not vague


def test_test_files_have_names_of_their_own() -> None:
    names = [file.name for file in (REPOSITORY / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_modules_classes_and_functions_say_what_they_are() -> None:
    silent: list[str] = []
    for file in modules().values():
        module = tree(file)
        said = [node for node in module.body if isinstance(node, Function | ast.ClassDef) and public(node.name)]
        silent += [place(file, node) for node in (module, *said) if not ast.get_docstring(node)]
    assert not silent


def undocumented_fields(body: list[ast.stmt]) -> Iterator[ast.AnnAssign]:
    """The fields of a class body that are not followed by a docstring."""
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        hidden = not public(node.target.id) or ast.unparse(node.annotation).startswith("ClassVar")
        if not hidden and not is_text(after):
            yield node


def is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_every_option_has_help() -> None:
    options = heirs("Options")
    assert {"Plugin", "Run", "TrainSpec"} <= options
    silent = [
        place(file, field)
        for file, node in classes()
        if node.name in options and above(node) & (options | {"Options"})
        for field in undocumented_fields(node.body)
    ]
    assert not silent


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_one_plugin_a_file(family: str) -> None:
    plugins = {name for name in heirs("Plugin") if public(name)}
    for file in (PACKAGE / FAMILIES[family]).glob("*.py"):
        if file.stem.startswith("_") and file.stem != "__init__":
            continue
        found = [node.name for node in tree(file).body if isinstance(node, ast.ClassDef) and node.name in plugins]
        assert len(found) == 1, f"{file.relative_to(REPOSITORY)} holds {found}"


def length(function: Function) -> int:
    """Lines of a function from `def` to its end, its docstring left out."""
    first = function.body[0]
    said = first.end_lineno - first.lineno + 1 if ast.get_docstring(function, clean=False) is not None else 0
    return function.end_lineno - function.lineno + 1 - said


def test_functions_are_short() -> None:
    lengths = {place(file, node): length(node) for file in modules().values() for node in functions(tree(file))}
    ordered = sorted(lengths.values())
    assert not {where: lines for where, lines in lengths.items() if lines > 60}
    assert statistics.median(ordered) <= 10
    assert statistics.quantiles(ordered, n=10)[-1] <= 40


def test_files_are_short() -> None:
    lines = {str(file.relative_to(REPOSITORY)): file.read_text("utf-8").count("\n") for file in modules().values()}
    assert not {name: count for name, count in lines.items() if count > 400}
