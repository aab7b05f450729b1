"""Pieces compiled by torch: the same losses and gradients, one compiled piece for rows of any number and width."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.models.fast import described, fused, mlp, norm, quicken, release, rotary
from tunesmith.models.fast._pieces import as_it_is
from tunesmith.models.whole import NARROW, WIDE, rounded, rounded_at_once

CPU = torch.device("cpu")
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
SHAPES = ((7, 48), (1, 64), (33, 64), (64, 64), (300, 1030))


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nothing has been compiled; what a test compiles is forgotten afterwards."""
    torch._dynamo.reset()
    monkeypatch.setattr(fused, "_compiled", cache(fused._compiled.__wrapped__))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def each(shape: tuple[int, int], piece: Any, at_once: Any = None) -> tuple[Any, Any, list[tuple[Any, ...]]]:
    """A piece, the same compiled, and what both are tried on."""
    x, dy = drawn(*shape), drawn(*shape, seed=1)
    given: dict[Any, list[tuple[Any, ...]]] = {
        norm._values: [(x, drawn(shape[1]), 1e-5)],
        norm._slopes: [(dy, x, drawn(shape[1]), drawn(shape[0], 1).abs())],
        rounded: [(x, WIDE, None), (x, NARROW, drawn(shape[1]).abs()), (torch.zeros_like(x), WIDE, None)],
    }
    gates = [(x, dy, drawn(*shape, seed=2))]
    return piece, fused.compiled(piece, at_once), given.get(piece, gates)


@NEEDS_COMPILER
@pytest.mark.parametrize("shape", SHAPES)
class TestEach:
    @pytest.mark.parametrize("piece", [norm._values, norm._slopes])
    def test_norms(self, piece: Any, shape: tuple[int, int]) -> None:
        same(*each(shape, piece))

    @pytest.mark.parametrize("name", mlp.GATES)
    def test_gates(self, name: str, shape: tuple[int, int]) -> None:
        gate = mlp.GATES[name]
        same(*each(shape, gate.slopes))
        plain, quick, ((_, g, u),) = each(shape, gate.value)
        same(plain, quick, [(g, u)])

    @pytest.mark.parametrize("back", [False, True])
    def test_positions(self, shape: tuple[int, int], back: bool) -> None:
        count, width = shape
        plain, quick, _ = each(shape, rotary._turn, rotary._turn_at_once)
        cos, sin = drawn(1, 1, count, width), drawn(1, 1, count, width, seed=1)
        for x in (drawn(1, 3, count, width), drawn(2, count, 3, width).transpose(1, 2)):
            same(plain, quick, [(x, cos, sin, back)])

    def test_digits(self, shape: tuple[int, int]) -> None:
        """Compiled, sums may be contracted, so that a number between two digits goes the other way."""
        plain, quick, given = each(shape, rounded, rounded_at_once)
        for args in given:
            (ours, scales), (theirs, their_scales) = quick(*args), plain(*args)
            assert ours.dtype == theirs.dtype == torch.uint8
            assert int((ours.int() - theirs.int()).abs().max()) <= 1
            assert float((ours != theirs).float().mean()) < 1e-3
            torch.testing.assert_close(scales, their_scales)


def same(plain: Any, quick: Any, given: list[tuple[Any, ...]]) -> None:
    for args in given:
        ours = quick(*(part.clone() if isinstance(part, Tensor) else part for part in args))
        theirs = plain(*(part.clone() if isinstance(part, Tensor) else part for part in args))
        for found, right in zip(*((x if isinstance(x, tuple) else (x,)) for x in (ours, theirs)), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@NEEDS_COMPILER
def test_a_piece_is_compiled_once_for_any_number_of_rows(unused: None) -> None:
    quick = fused.compiled(norm._values)
    torch._dynamo.utils.counters.clear()
    for count in (5, 20, 300, 7):
        quick(drawn(count, 64).requires_grad_(count % 2 == 0), drawn(64), 1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


ALONE = """
import torch
from tunesmith.models.fast import fused, norm
fused.compiled(norm._values)(torch.randn(5, 64), torch.randn(64), 1e-5)
"""


@NEEDS_COMPILER
def test_what_is_compiled_lies_in_the_cache(tmp_path: Path) -> None:
    """Not in the folder for all users of a machine, where somebody else might have laid something."""
    known = {name: value for name, value in os.environ.items() if name != fused.FOLDER}
    subprocess.run([sys.executable, "-c", ALONE], check=True, env={**known, "TUNESMITH_CACHE": str(tmp_path)})
    kernels = tmp_path / "kernels"
    assert kernels.stat().st_mode & 0o077 == 0
    assert list(kernels.rglob("*.so"))


def test_without_a_compiler_it_is_refused(unused: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as settings

    monkeypatch.setenv(fused.FOLDER, str(tmp_path / "kernels"))
    model = tiny.model("llama")
    with (
        settings.patch({"cpp.cxx": (str(tmp_path / "none"),)}),
        pytest.raises(Problem, match="can be compiled here \\(No working C\\+\\+ compiler") as raised,
    ):
        quicken(model, "long", CPU)
    assert "C++ compiler" in raised.value.hint
    quicken(model, "auto", CPU)


@NEEDS_COMPILER
def test_long_is_auto_and_what_is_compiled() -> None:
    model = tiny.model("llama")
    auto, long = quicken(model, "auto", CPU), quicken(model, "long", CPU)
    assert long == {**auto, "fused": auto["norm"] + auto["mlp"] + auto["rotary"]}
    assert "fused 13" in described("long", long)
    release(model)
    assert not any("quickened" in vars(part) for part in model.modules())
    assert quicken(model, "long", torch.device("cuda")) == quicken(model, "auto", torch.device("cuda"))


def test_alone_it_has_nothing_to_compile() -> None:
    with pytest.raises(Problem, match="fused finds nothing"):
        described(("fused",), quicken(tiny.model("llama"), ("fused",), CPU))


def test_shapes_are_counted_and_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> None:
        raise AssertionError(given)

    monkeypatch.setattr(fused, "compiled", never)
    took = quicken(tiny.model("llama").to("meta"), "long", CPU)
    assert took["fused"] == took["norm"] + took["mlp"] + took["rotary"] > 0


def test_a_piece_as_it_is() -> None:
    assert as_it_is(rounded, rounded_at_once) is rounded
