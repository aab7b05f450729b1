"""What the libraries beneath load when they are imported, and hardly any run needs, is loaded where it is used.

    sklearn.metrics   transformers, to decode with an assistant     ┐
    scipy.optimize    transformers, for losses of pictures          ├ look absent while transformers and PEFT are
    torchao           transformers, to save weights it holds        │ imported; then what would load them stands
    bitsandbytes      PEFT, to find directions of weights it holds  ┘ where they look for it

Together they are a third of the time in which a run starts. What is loaded stays until the end, so nobody looks for
garbage in it, neither while it is loaded nor later. The command does this in its own process, before anything else asks
for the libraries; `import tunesmith` in a program of yours leaves its imports as they are.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunesmith.cli.scan import scanned_once
from tunesmith.models.unloaded import unloaded

_MATCHED = ("deformable_detr", "for_object_detection", "grounding_dino", "lw_detr", "rf_detr", "rt_detr")


@dataclass(frozen=True, slots=True)
class Late:
    """A name in a module that stands for a package, or for a function of one."""

    module: str
    name: str
    source: str
    function: str = ""


LATE = (
    Late("transformers.generation.candidate_generator", "roc_curve", "sklearn.metrics", "roc_curve"),
    *(
        Late(f"transformers.loss.loss_{kind}", "linear_sum_assignment", "scipy.optimize", "linear_sum_assignment")
        for kind in _MATCHED
    ),
    Late(
        "transformers.quantizers.quantizer_torchao",
        "flatten_tensor_state_dict",
        "torchao.prototype.safetensors.safetensors_support",
        "flatten_tensor_state_dict",
    ),
    Late("peft.helpers", "bnb", "bitsandbytes"),
)
"""What is loaded later, and where it is looked for."""


def models() -> None:
    """Import transformers and PEFT without what is loaded later; nothing is done where transformers is loaded already.

    A second call does nothing.
    """
    if "transformers" in sys.modules:
        return
    with _for_good(), scanned_once(), unloaded(*{late.source.partition(".")[0] for late in LATE}) as hidden:
        for package in ("peft", "transformers.generation"):
            importlib.import_module(package)
        asking = [late for late in LATE if importlib.util.find_spec(late.module)]  # other versions may have others
        modules = [importlib.import_module(late.module) for late in asking]
    for late, module in zip(asking, modules, strict=True):
        if late.source.partition(".")[0] in hidden:
            setattr(module, late.name, Later(late.source, late.function))


@contextmanager
def _for_good() -> Iterator[None]:
    """No search for garbage meanwhile, and none later in what was made meanwhile."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class Later:
    """A package, or a function of one, that is imported when it is used."""

    def __init__(self, source: str, function: str) -> None:
        self._source = source
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(self._source), self._function)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._source), name)
