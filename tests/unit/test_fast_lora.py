"""Layers that read the same states: computed together, and never out of what is no longer so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from made_methods import method_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.models.fast import TOGETHER, lora, quicken, release

CPU = torch.device("cpu")
NAMES = lora.SIBLINGS


@pytest.fixture
def attention() -> Any:
    """The first attention layer of a model with LoRA that does something, in float64, with the lever on."""
    model = tiny.model("llama").double()
    trained = method_of("lora", dropout=0.0).apply(model).double()
    draw = torch.Generator().manual_seed(3)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=draw) * 0.2)
    quicken(trained, ("lora",), CPU)
    return next(part for part in trained.modules() if hasattr(part, "q_proj"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each call of the function computed."""
    found: list[int] = []
    plain = lora._changed

    def counted(x: Tensor, layers: tuple[Any, ...]) -> tuple[Tensor, ...]:
        found.append(len(layers))
        return plain(x, layers)

    monkeypatch.setattr(lora, "_changed", counted)
    return found


def states(seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(1, 5, 32, generator=draw, dtype=torch.float64).requires_grad_()


def right(layer: nn.Module, x: Tensor) -> Tensor:
    return type(layer).forward(layer, x)  # type: ignore[arg-type]


def all_of(attention: Any, x: Tensor) -> list[Tensor]:
    return [getattr(attention, name)(x) for name in NAMES]


def slopes(outputs: list[Tensor], attention: Any, x: Tensor) -> list[Tensor]:
    """Of a sum over outputs with another weight for each number, by the states and all that learns."""
    total = sum((y * torch.arange(y.numel(), dtype=y.dtype).view_as(y).sin()).sum() for y in outputs)
    learned = [w for name in NAMES for w in getattr(attention, name).parameters() if w.requires_grad]
    return list(torch.autograd.grad(total, [x, *learned], allow_unused=True))  # type: ignore[arg-type]


def assert_right(attention: Any, x: Tensor, found: list[Tensor]) -> None:
    expected = [right(getattr(attention, name), x) for name in NAMES]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(slopes(found, attention, x), slopes(expected, attention, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_first_computes_for_all(attention: Any, calls: list[int]) -> None:
    x = states()
    found = all_of(attention, x)
    assert calls == [3]
    assert_right(attention, x, found)


def test_one_of_them_alone_has_a_gradient(attention: Any) -> None:
    x = states()
    found = all_of(attention, x)
    (ours,) = torch.autograd.grad(found[2].sum(), x)
    (theirs,) = torch.autograd.grad(right(attention.v_proj, x).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_other_states_are_computed_alone(attention: Any, calls: list[int]) -> None:
    """Always the same way, as a checkpoint needs it that computes again."""
    x, other = states(), states(1)

    def crossed(x: Tensor) -> Tensor:
        return attention.q_proj(x).sum() + attention.k_proj(other).sum() + attention.v_proj(other).sum()

    for _ in range(2):
        total = checkpoint(crossed, x, use_reentrant=False)
        (slope,) = torch.autograd.grad(total, x)  # type: ignore[arg-type]
        torch.testing.assert_close(slope, torch.autograd.grad(right(attention.q_proj, x).sum(), x)[0])
    assert calls[:3] == [3, 1, 1]


def test_two_sides_are_not_joined() -> None:
    """Queries of a decoder and keys of an encoder, as BART's attentions have them."""
    trained = method_of("lora", dropout=0.0).apply(tiny.model("bart"))
    quicken(trained, ("lora",), CPU)
    assert any(hasattr(part, "q_proj") for part in trained.modules())
    assert not any(TOGETHER in vars(part) for part in trained.modules())


def test_states_of_inference(attention: Any, calls: list[int]) -> None:
    with torch.inference_mode():
        x = states() * 1
        for ours, name in zip(all_of(attention, x), NAMES, strict=True):
            torch.testing.assert_close(ours, right(getattr(attention, name), x))
    assert calls == [1, 1, 1]


@pytest.mark.parametrize("order", [("k_proj", "v_proj", "q_proj"), ("v_proj", "q_proj", "k_proj")])
def test_another_order(attention: Any, order: tuple[str, ...]) -> None:
    x = states()
    found = {name: getattr(attention, name)(x) for name in order}
    assert_right(attention, x, [found[name] for name in NAMES])


def test_the_same_layer_twice(attention: Any, calls: list[int]) -> None:
    x = states()
    found = all_of(attention, x)
    torch.testing.assert_close(attention.k_proj(x), found[1])
    torch.testing.assert_close(attention.q_proj(x), found[0])
    assert calls == [3, 1, 3]


def changed_in_place(attention: Any, x: Tensor) -> None:
    with torch.no_grad():
        x.mul_(2)


def switched_off(attention: Any, x: Tensor) -> None:
    for name in NAMES:
        getattr(attention, name).enable_adapters(False)


def merged(attention: Any, x: Tensor) -> None:
    attention.k_proj.merge()


def scaled(attention: Any, x: Tensor) -> None:
    attention.k_proj.scaling["default"] = 0.1


def replaced(attention: Any, x: Tensor) -> None:
    layer = attention.k_proj.lora_A["default"]
    layer.weight = nn.Parameter(layer.weight.detach() * 3)


def heard(attention: Any, x: Tensor) -> None:
    attention.k_proj.lora_A["default"].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("change", [changed_in_place, switched_off, merged, scaled, replaced, heard])
def test_what_has_changed_between_two_calls(attention: Any, change: Callable[[Any, Tensor], None]) -> None:
    x = states()
    attention.q_proj(x)
    change(attention, x)
    torch.testing.assert_close(attention.k_proj(x), right(attention.k_proj, x))


def test_without_gradients_first(attention: Any) -> None:
    x = states()
    with torch.no_grad():
        attention.q_proj(x)
    assert attention.k_proj(x).requires_grad
    assert_right(attention, x, all_of(attention, x))


def test_computed_a_second_time(attention: Any) -> None:
    x = states()
    found = checkpoint(lambda x: torch.cat(all_of(attention, x), dim=-1), x, use_reentrant=False)
    widths = [right(getattr(attention, name), x).shape[-1] for name in NAMES]
    assert_right(attention, x, list(found.split(widths, dim=-1)))  # type: ignore[union-attr]


def test_nothing_is_kept_behind_the_last(attention: Any) -> None:
    together = vars(attention.q_proj)[TOGETHER]
    x = states()
    attention.q_proj(x)
    assert together._kept is not None
    attention.k_proj(x), attention.v_proj(x)
    assert together._kept is None


def test_off_again(attention: Any) -> None:
    release(attention)
    assert not any({"forward", TOGETHER} & set(vars(getattr(attention, name))) for name in NAMES)


def test_a_copy_has_its_own(attention: Any, calls: list[int]) -> None:
    x = states()
    attention.q_proj(x)
    other = copy.deepcopy(attention)
    with torch.no_grad():
        other.k_proj.lora_B["default"].weight.mul_(2)
    assert_right(other, x, all_of(other, x))
    assert calls == [3, 3]
