"""While transformers is imported it looks for its names in the files of all its models: here once, and not by line.

    transformers         ─▶ every file of models/ ─▶ the last line that begins with `__all__`
    transformers.models  ─▶ the same again, since it remembers 128 folders and there are some 500

The names it finds are the same: its own function gets the text from that line on, and each folder is read once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

SCANNER = "transformers.utils.import_utils"
"""The module that looks; it must be changed as soon as it is there, while its package is still being imported."""


@contextmanager
def scanned_once() -> Iterator[None]:
    """Where transformers is imported inside, it reads each of its files once."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


def hasten(module: Any) -> None:
    """Change how a scanner looks; one that has other functions, as another version may, is left as it is."""
    if not {"fetch__all__", "create_import_structure_from_path"} <= set(vars(module)):
        return
    module.fetch__all__ = from_last_line(module.fetch__all__)
    module.create_import_structure_from_path = cache(module.create_import_structure_from_path.__wrapped__)


def from_last_line(names: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """A function that reads the names of a file's last `__all__`, spared what stands before that line."""
    return lambda text: names(text[text.rfind("\n__all__") + 1 :])


class _Finder(MetaPathFinder):
    """Finds the scanner as others would, and changes it when it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != SCANNER:
            return None
        sys.meta_path.remove(self)  # the next question goes to the others
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            _afterwards(spec.loader, hasten)
        return spec


def _afterwards(loader: Any, act: Callable[[ModuleType], None]) -> None:
    """Have a loader act on the module that it has loaded."""
    load = loader.exec_module

    def both(module: ModuleType) -> None:
        load(module)
        act(module)

    loader.exec_module = both
