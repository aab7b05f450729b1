"""The pieces of other levers, each compiled into few passes over memory by torch's inductor, on a processor.

    norm    values, and slopes by states               mlp      the gate, and slopes by what it reads
    int8    rows in one digit; the head's levels       rotary   both ways

Products stay as they are. The first time on a machine the compiler takes about 10 CPU seconds for the first piece and
one for each other, later 2 in all, since what it makes is kept in the cache; so this is for runs of some minutes or
more (`model.fast: long`). It needs a C++ compiler. The plain head's softmax was measured not to gain.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from tunesmith.core.caches import cache_home
from tunesmith.core.problem import Problem
from tunesmith.models.fast import FUSED, WHOLE
from tunesmith.models.fast._pieces import Piece

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""The variable that says where torch keeps what it compiled; by default a folder whose name anybody can foretell."""


def pull(model: nn.Module) -> int:
    """How many modules have a piece that is compiled; the levers that took them had it made by `compiled`."""
    return sum(vars(part).get("quickened") in FUSED or WHOLE in vars(part) for part in model.modules())


def compiled(piece: Piece, at_once: Piece | None = None) -> Piece:
    """A `Maker`: the piece compiled when it is first called, once in a process, for any number of rows.

    The function raises Problem where nothing can be compiled.
    """
    return cast(Piece, _compiled(at_once or piece))


@cache
def _compiled(piece: Callable[..., Any]) -> Callable[..., Any]:
    quick: list[Callable[..., Any]] = []

    def call(*given: Any) -> Any:
        if not quick:
            quick.append(_compiler()(piece))
        try:
            return quick[0](*(part.detach() if isinstance(part, Tensor) else part for part in given))
        except _failures() as error:
            why = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
            what = f"nothing can be compiled here ({why})"
            raise Problem("model.fast", what, "Install a C++ compiler such as g++, or take model.fast=auto") from error

    return call


def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import BackendCompilerFailed

    return BackendCompilerFailed, OSError


@cache
def _compiler() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """torch.compile, in this process and thread alone, for as many threads as torch has when a piece is computed."""
    from torch._inductor import config as settings  # some CPU seconds, only where it is asked for
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(FOLDER) in (None, default_cache_dir()):  # torch writes its own choice there
        folder = cache_home() / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ[FOLDER] = str(folder)
    settings.compile_threads = 1
    settings.cpp.dynamic_threads = True
    return lambda piece: torch.compile(piece, dynamic=True)
