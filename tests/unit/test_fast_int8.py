"""Products in whole numbers, and a base held in 8 bits that is computed by them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from made_digits import coarser
from made_methods import method_of
from torch import Tensor, nn

from tunesmith.core.run import ModelSpec
from tunesmith.models import whole_head
from tunesmith.models.fast import WHOLE, described, int8, quicken
from tunesmith.models.likelihood import Head
from tunesmith.models.load import load
from tunesmith.models.policy import Policy
from tunesmith.models.whole import BLOCK, Added, Digit, Whole, rounded
from tunesmith.models.whole_head import WholeHead
from tunesmith.objectives import next_token_loss

CPU = torch.device("cpu")
FAMILIES = ["llama", "qwen2", "gemma2", "olmo2"]


def codes(rows: int, columns: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (rows, columns), generator=draw, dtype=torch.int8)


@pytest.mark.parametrize(("digits", "off"), [(1, 0.02), (2, 1e-4)])
@pytest.mark.parametrize("rows", [1, 7, BLOCK + 3])
def test_a_product_is_that_of_the_matrix(digit: Digit, digits: Any, off: float, rows: int) -> None:
    whole, scales = codes(48, 40), torch.rand(48, generator=torch.Generator().manual_seed(1))
    x = torch.randn(rows, 40, generator=torch.Generator().manual_seed(2))
    expected = x.double() @ (whole.double() * scales[:, None].double()).T
    found = Whole(whole, scales)(x, digits)
    assert float((found - expected).norm() / expected.norm()) < off * coarser(digit, digits)
    if digits == 1:
        assert float((found - expected).norm() / expected.norm()) > 1e-4


def test_extremes_are_exact(digit: Digit) -> None:
    """The largest numbers of both signs, and a row of nothing."""
    x = torch.zeros(3, 64)
    x[0], x[1] = digit.largest(2), -digit.largest(2)
    found = Whole(torch.full((16, 64), 127, dtype=torch.int8), torch.ones(16))(x, 2)
    assert torch.equal(found, x[:, :16] * 64 * 127)


def test_rows_are_read_once_for_several_products(digit: Digit) -> None:
    """A product with another added, and added to what is there, is that of the parts."""
    draw = torch.Generator().manual_seed(4)
    x, by, left, right, there = (
        torch.randn(*shape, generator=draw) for shape in ((BLOCK, 40), (40,), (BLOCK, 2), (2, 48), (BLOCK, 48))
    )
    matrix = Whole(codes(48, 40), torch.rand(48, generator=draw))
    expected = matrix(x * by, 1) + 3 * left @ right
    found = matrix.of(rounded(x, digit, by), Added(left, right, 3.0))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-3)
    into = matrix.of(rounded(x, digit, by), Added(left, right, 3.0), there.clone())
    assert torch.allclose(into, expected + there, rtol=1e-5, atol=1e-3)


@pytest.mark.usefixtures("digit")
class TestHead:
    """The last layer in whole numbers."""

    COUNT, WIDTH, ROWS = 700, 40, 300

    def exact(self, weight: Tensor, hidden: Tensor, tokens: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """log p and its slopes by autograd, in float64."""
        leaf = hidden.double().requires_grad_()
        values = (scale * leaf @ weight.double().T).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slopes

    def drawn(self, size: float) -> tuple[Tensor, Tensor, Tensor]:
        draw = torch.Generator().manual_seed(5)
        weight = torch.randn(self.COUNT, self.WIDTH, generator=draw) * torch.rand(self.COUNT, 1, generator=draw)
        hidden = torch.randn(self.ROWS, self.WIDTH, generator=draw) * size
        return weight, hidden, torch.randint(0, self.COUNT, (self.ROWS,), generator=draw)

    @pytest.mark.parametrize("scale", [1.0, 0.5])
    @pytest.mark.parametrize(("size", "off"), [(0.01, 0.002), (0.3, 0.02), (2.0, 0.04)])
    def test_values_and_slopes(
        self, digit: Digit, size: float, off: float, scale: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From even shares to sure ones, in several chunks of rows, and of tokens where sums would grow too large."""
        weight, hidden, tokens = self.drawn(size)
        values, slopes = self.exact(weight, hidden, tokens, scale)
        for summed in (whole_head.SUMMED, 128):
            monkeypatch.setattr(whole_head, "SUMMED", summed)
            monkeypatch.setattr(whole_head, "LEAST", 100)
            monkeypatch.setattr(whole_head, "LOGITS", 0)
            found, found_slopes = WholeHead(weight).slopes(hidden, tokens, scale)
            assert float((found - values).abs().max()) < 0.01 + 0.03 * float(values.abs().mean())
            assert float(found.mean()) == pytest.approx(float(values.mean()), rel=2e-3)
            assert float((found_slopes - slopes).norm() / slopes.norm()) < off * coarser(digit, 1)

    def test_small_shares_are_not_lost(self, digit: Digit) -> None:
        """One token takes half, thousands the rest: each is less than a level, and together they count."""
        count = 4000
        weight = torch.zeros(count, 8)
        weight[2:, 0], weight[0, 1], weight[1, 2] = 0.1, 1.0, 1.0
        hidden = torch.zeros(64, 8)
        hidden[:, 1] = float(torch.tensor(count - 2.0).log())
        tokens = torch.ones(64, dtype=torch.int64)
        _, slopes = WholeHead(weight).slopes(hidden, tokens)
        _, expected = self.exact(weight, hidden, tokens, 1.0)
        assert float(expected[0, 0]) == pytest.approx(-0.05, rel=0.01)
        assert float(slopes.mean(dim=0)[0]) == pytest.approx(float(expected[0, 0]), rel=0.02 * coarser(digit, 1))

    def test_only_what_is_learned_from_is_rounded(self, tmp_path: Path) -> None:
        """Without gradients, and as single likelihoods, values are those of the plain layer."""
        model, trained = held(tmp_path)
        hidden, tokens, weights = torch.randn(50, 32), torch.randint(0, 200, (50,)), torch.rand(50)

        def totals() -> tuple[float, float]:
            head, leaf = Head.of(model), hidden.clone().requires_grad_()
            with torch.no_grad():
                still = head.total(hidden, tokens, weights).item()
            assert (head.logprobs(leaf, tokens) * weights).sum().item() == pytest.approx(still, rel=1e-6)
            return still, head.total(leaf, tokens, weights).item()

        quicken(trained, "off", CPU)
        plain, learning = totals()
        assert learning == pytest.approx(plain, rel=1e-6)
        layers = 7 * model.config.num_hidden_layers
        assert quicken(trained, "auto", CPU)["int8"] == layers + 1
        still, rounded_off = totals()
        assert still == pytest.approx(plain, rel=1e-6)
        assert 1e-8 < abs(rounded_off / plain - 1) < 1e-3

    def test_a_head_that_learns_stays_plain(self, tmp_path: Path) -> None:
        model, trained = held(tmp_path)
        model.get_output_embeddings().weight.requires_grad_()
        assert quicken(trained, "auto", CPU)["int8"] == 7 * model.config.num_hidden_layers


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("digits", "fast"), [(1, "auto"), (2, "auto"), (1, "long")])
def test_it_learns_what_the_written_out_base_learns(
    digit: Digit, family: str, digits: Any, fast: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two digits to rounding; with one the gradient turns by a few degrees at most."""
    if fast == "long" and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setattr(int8, "FORWARD", digits)
    monkeypatch.setattr(int8, "BACKWARD", digits)
    model, trained = held(tmp_path, family)
    loss, slopes = learned(model, trained, "off")
    fast_loss, fast_slopes = learned(model, trained, fast)
    turned = float(torch.cosine_similarity(slopes, fast_slopes, dim=0))
    assert fast_loss == pytest.approx(loss, rel=(1e-4 if digits == 2 else 1e-2) * coarser(digit, digits))
    assert 1 - turned < (1e-5 if digits == 2 else 5e-3) * coarser(digit, digits) ** 2


@pytest.mark.parametrize("family", FAMILIES)
def test_where_products_cannot_be_had_it_is_written_out(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses and gradients as the plain layers', and no matrix is kept for the backward pass."""
    monkeypatch.setattr(int8, "lacking", lambda: "there are none here")
    model, trained = held(tmp_path, family)
    loss, slopes = learned(model, trained, "off")
    fast_loss, fast_slopes = learned(model, trained, "auto")
    assert quicken(trained, "auto", CPU)["int8"] == 7 * model.config.num_hidden_layers
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    assert float((fast_slopes - slopes).norm() / slopes.norm()) < 1e-5

    shapes: set[tuple[int, ...]] = set()

    def note(tensor: Tensor) -> Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learned(model, trained, "auto")
    matrices = {tuple(part.weight.shape) for part in model.modules() if vars(part).get(WHOLE) is not None}
    assert matrices
    assert not shapes & matrices


def test_alone_it_needs_what_computes_layers(tmp_path: Path) -> None:
    """Named without `lora` nothing would use its products: PEFT writes the base out as ever."""
    model, trained = held(tmp_path)
    plain = learned(model, trained, "off")
    assert learned(model, trained, ("int8",))[0] == plain[0]


def test_a_plain_base_has_nothing_to_take() -> None:
    assert quicken(tiny.model("llama"), "auto", CPU)["int8"] == 0
