"""Products in whole numbers, and a base held in 8 bits that is computed by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_methods import method_of
from torch import Tensor, nn

from tunesmith.core.run import ModelSpec
from tunesmith.models.fast import described, int8, quicken
from tunesmith.models.load import load
from tunesmith.models.policy import Policy
from tunesmith.models.whole import BLOCK, Whole, lacking
from tunesmith.objectives import next_token_loss

CPU = torch.device("cpu")
WHY = lacking()
pytestmark = pytest.mark.skipif(WHY is not None, reason=f"products in whole numbers: {WHY}")


def codes(rows: int, columns: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (rows, columns), generator=draw, dtype=torch.int8)


@pytest.mark.parametrize(("digits", "off"), [(1, 0.02), (2, 1e-4)])
@pytest.mark.parametrize("rows", [1, 7, BLOCK + 3])
def test_a_product_is_that_of_the_matrix(digits: Any, off: float, rows: int) -> None:
    whole, scales = codes(48, 40), torch.rand(48, generator=torch.Generator().manual_seed(1))
    x = torch.randn(rows, 40, generator=torch.Generator().manual_seed(2))
    expected = x.double() @ (whole.double() * scales[:, None].double()).T
    found = Whole(whole, scales)(x, digits)
    assert float((found - expected).norm() / expected.norm()) < off
    if digits == 1:
        assert float((found - expected).norm() / expected.norm()) > 1e-4


def test_extremes_are_exact() -> None:
    """The largest numbers of both signs, and a row of nothing."""
    x = torch.zeros(3, 64)
    x[0], x[1] = 127 * 256, -127 * 256
    found = Whole(torch.full((16, 64), 127, dtype=torch.int8), torch.ones(16))(x, 2)
    assert torch.equal(found, x[:, :16] * 64 * 127)


def held(path: Path, family: str = "llama") -> tuple[Any, nn.Module]:
    """A tiny model under LoRA whose base is held in 8 bits."""
    pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
    model: Any = load(ModelSpec(path=str(tiny.folder(path / family, family)), quantize="int8")).model
    trained = method_of("lora", dropout=0.0).apply(model)
    draw = torch.Generator().manual_seed(3)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
    return model, trained


def learned(model: Any, trained: nn.Module, fast: Any) -> tuple[float, Tensor]:
    took = quicken(trained, fast, CPU)
    described(fast, took)
    trained.train()
    trained.zero_grad()
    loss = next_token_loss(Policy(model, forest=True, trained=trained), tiny.forest())
    loss.backward()
    return loss.item(), torch.cat(
        [w.grad.flatten() for _, w in sorted(trained.named_parameters()) if w.grad is not None]
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "olmo2"])
@pytest.mark.parametrize("digits", [1, 2])
def test_it_learns_what_the_written_out_base_learns(
    family: str, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two digits to rounding; with one the gradient turns by a few degrees at most."""
    monkeypatch.setattr(int8, "FORWARD", digits)
    monkeypatch.setattr(int8, "BACKWARD", digits)
    model, trained = held(tmp_path, family)
    loss, slopes = learned(model, trained, "off")
    fast_loss, fast_slopes = learned(model, trained, "auto")
    turned = float(torch.cosine_similarity(slopes, fast_slopes, dim=0))
    assert fast_loss == pytest.approx(loss, rel=1e-4 if digits == 2 else 1e-2)
    assert turned > (1 - 1e-5 if digits == 2 else 0.995)


def test_alone_it_needs_what_computes_layers(tmp_path: Path) -> None:
    """Named without `lora` nothing would use its products: PEFT writes the base out as ever."""
    model, trained = held(tmp_path)
    plain = learned(model, trained, "off")
    assert learned(model, trained, ("int8",))[0] == plain[0]


def test_a_plain_base_has_nothing_to_take() -> None:
    assert quicken(tiny.model("llama"), "auto", CPU)["int8"] == 0
