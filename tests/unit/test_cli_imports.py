"""What is loaded later: absent after the libraries' import, there when used; seen in a process of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.cli.imports import LATE, Later
from tunesmith.models.unloaded import unloaded

SOURCE = Path(__file__).resolve().parents[2] / "src"
PACKAGES = sorted({late.source.partition(".")[0] for late in LATE})

PROBE = """
import ast, gc, json, os, sys

from tunesmith.cli import imports

PACKAGES = set(json.loads(sys.argv[1]))
before = set(sys.modules)
imports.models()
fresh = {name: sys.modules[name] for name in set(sys.modules) - before}


def at_head(body):
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        yield node
        yield from at_head(ast.iter_child_nodes(node))


def asks(module):
    '''Whether importing the module loads one of the packages, or remembers whether it is there.'''
    file = getattr(module, "__file__", None) or ""
    if not (file.endswith(".py") and os.path.isfile(file)):
        return False
    text = open(file, encoding="utf-8").read()
    if not any(name in text for name in (*PACKAGES, "is_bnb")):
        return False
    for node in at_head(ast.parse(text).body):
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        named += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        asked = node.func if isinstance(node, ast.Call) else None
        known = getattr(asked, "id", "").removeprefix("is_").removesuffix("_available")
        if known in {*PACKAGES, "bnb", "bnb_4bit"} or {name.partition(".")[0] for name in named} & PACKAGES:
            return True
    return False


from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import import_utils

from tunesmith.core.plugins import build

small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
tuned = build("method", {"lora": {"rank": 1}}).apply(LlamaForCausalLM(LlamaConfig(**small)))

late = {entry.module: sys.modules[entry.module] for entry in imports.LATE}
loaded = set(sys.modules)
match = late["transformers.loss.loss_rt_detr"].linear_sum_assignment
told = {
    "adapted": sum(type(part).__name__ == "Linear" and hasattr(part, "lora_A") for part in tuned.modules()),
    "loaded": sorted(PACKAGES & loaded),
    "asking": sorted(name for name, module in fresh.items() if module is not None and asks(module)),
    "seen": {name: getattr(import_utils, f"is_{name}_available")() for name in PACKAGES},
    "stands": all(isinstance(getattr(late[entry.module], entry.name), imports.Later) for entry in imports.LATE),
    "rows": [list(map(int, part)) for part in match([[1, 0], [0, 1]])],
    "roc": list(map(float, late["transformers.generation.candidate_generator"].roc_curve([0, 1], [0.1, 0.9])[1])),
    "folders": import_utils.create_import_structure_from_path.cache_info()._asdict(),
    "finders": [type(finder).__module__ for finder in sys.meta_path],
    "collects": gc.isenabled(),
    "spared": gc.get_freeze_count(),
    "bits": late["peft.helpers"].bnb.functional.__name__,
}
json.dump(told, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    answer = tmp_path_factory.mktemp("imports") / "answer.json"
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(PACKAGES), str(answer)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(answer.read_text())


def test_packages_are_not_loaded_and_are_not_taken_for_absent(told: dict[str, Any]) -> None:
    assert told["adapted"] == 7
    assert told["loaded"] == []
    assert told["seen"] == dict.fromkeys(PACKAGES, True)


def test_every_module_that_asked_is_listed(told: dict[str, Any]) -> None:
    assert set(told["asking"]) <= {late.module for late in LATE}


def test_what_is_used_is_loaded(told: dict[str, Any]) -> None:
    assert told["stands"]
    assert told["rows"] == [[0, 1], [1, 0]]
    assert told["roc"] == [0.0, 1.0, 1.0]
    assert told["bits"] == "bitsandbytes.functional"


def test_transformers_reads_each_of_its_folders_once(told: dict[str, Any]) -> None:
    assert told["folders"]["maxsize"] is None
    assert told["folders"]["hits"] > 0
    assert "tunesmith.cli.scan" not in told["finders"]


def test_garbage_is_looked_for_afterwards_and_not_among_what_was_imported(told: dict[str, Any]) -> None:
    assert told["collects"]
    assert told["spared"] > 100_000


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    assert Later("json", "dumps")([1]) == "[1]"
    with pytest.raises(AttributeError):
        Later("json", "").nothing  # noqa: B018  # asking is the test


def test_only_what_is_not_loaded_looks_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_package_of_layers.py").write_text("here = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with unloaded("a_package_of_layers", "json", "no_such_package") as hidden:
        assert hidden == {"a_package_of_layers"}
        assert importlib.util.find_spec("a_package_of_layers") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("a_package_of_layers")
    assert importlib.import_module("a_package_of_layers").here
    with unloaded("a_package_of_layers") as hidden:
        assert not hidden
    del sys.modules["a_package_of_layers"]


def test_libraries_look_again() -> None:
    from transformers.utils.import_utils import is_scipy_available

    there = is_scipy_available()
    with unloaded():
        assert is_scipy_available.cache_info().currsize == 0
        assert is_scipy_available() is there
    assert is_scipy_available.cache_info().currsize == 0
