"""Packages that are installed and not loaded, left unloaded where a library would load them only to ask for them.

PEFT and transformers ask whether a layer is one of bitsandbytes or torchao by loading these. A model can hold layers
only of packages that are loaded, so where one is not, the answer is known to be no.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ASKED = ("transformers.utils.import_utils", "peft.import_utils")
"""The modules that remember which packages are there."""
OF_LAYERS = ("bitsandbytes", "torchao")
"""Packages that have layers of their own, which take long to load."""


@contextmanager
def unloaded(*packages: str) -> Iterator[set[str]]:
    """Let packages that are installed and not yet loaded look as if they were not there; gives their names."""
    hidden = {name for name in packages if name not in sys.modules and importlib.util.find_spec(name)}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is Python's own sign for "not there"
    _forget()
    try:
        yield hidden
    finally:
        for name in hidden:
            del sys.modules[name]
        _forget()


def _forget() -> None:
    """Have the libraries look again for packages when they are next asked."""
    for module in filter(None, map(sys.modules.get, ASKED)):
        for answer in vars(module).values():
            if getattr(answer, "__name__", "").startswith("is_") and hasattr(answer, "cache_clear"):
                answer.cache_clear()
