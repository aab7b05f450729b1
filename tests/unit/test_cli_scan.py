"""transformers' names as it finds them itself, beside those that it finds when its looking is hastened."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import import_utils

from tunesmith.cli.scan import SCANNER, from_last_line, hasten, scanned_once

MODELS = Path(import_utils.__file__).parents[1] / "models"
LINES = st.sampled_from(
    ["", "import os", '__all__ = ["A", "B"]', "__all__ = [", '    "C",', "]", "text = '__all__'", " __all__ = 3"]
)


def found(names: object, text: str) -> object:
    """What a reader of names gives, or the kind of fault it raises."""
    try:
        return names(text)  # type: ignore[operator]
    except Exception as error:
        return type(error)


@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n", "\r", "\x0c"]))
def test_names_are_those_of_the_whole_text(lines: list[str], between: str) -> None:
    plain, text = import_utils.fetch__all__, between.join(lines)
    assert found(from_last_line(plain), text) == found(plain, text)


@pytest.mark.parametrize("folder", ["llama", "auto", "bert"])
def test_structure_of_real_folders(folder: str) -> None:
    place = str(MODELS / folder)
    expected = import_utils.create_import_structure_from_path.__wrapped__(place)
    copy = _copied(import_utils)
    hasten(copy)
    assert copy.create_import_structure_from_path(place) == expected
    assert folder in str(expected)


def test_a_scanner_of_another_version_is_left_as_it_is() -> None:
    other = SimpleNamespace(fetch__all__=len)
    hasten(other)
    assert vars(other) == {"fetch__all__": len}


def test_nothing_stays_where_transformers_was_loaded_before() -> None:
    before = list(sys.meta_path)
    with scanned_once():
        assert sys.modules[SCANNER] is import_utils
    assert sys.meta_path == before


def _copied(module: ModuleType) -> ModuleType:
    """A module of its own with the same code, so that the one in use stays as it is."""
    copy = ModuleType(module.__name__)
    copy.__dict__.update(vars(module))
    source = Path(str(module.__file__)).read_text("utf-8")
    exec(compile(source, str(module.__file__), "exec"), copy.__dict__)
    return copy
