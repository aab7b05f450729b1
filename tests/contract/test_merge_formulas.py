"""Every merge method by the folder listing against what the maths says: blocks, order, weights, base, docstrings.

Nothing here needs another program: what is compared is written out over whole tensors, in float64.
"""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from typing import Any

import numpy as np
import pytest
from made_merges import merge_in_blocks, method_of, whole_of

from tunesmith.core.plugins import find, names
from tunesmith.core.problem import Problem
from tunesmith.merge.methods import Array, MergeMethod
from tunesmith.merge.ranks import SAMPLE, bands, ranked

SHAPES = ((24, 10), (60,), (6, 5, 8))
VALUES: dict[str, dict[str, Any]] = {
    "linear": {"weight": (0.7, 0.2, 0.4)},
    "slerp": {"t": 0.3},
    "nuslerp": {"weight": (0.7, 0.2)},
    "multislerp": {"weight": (0.7, 0.2, 0.4)},
    "task_arithmetic": {"weight": (0.7, 0.2, 0.4)},
    "ties": {"weight": (0.7, 0.2, 0.4), "density": (0.5, 0.3, 0.8)},
    "dare_linear": {"weight": (0.7, 0.2, 0.4), "density": (0.5, 0.3, 0.8)},
    "dare_ties": {"weight": (0.7, 0.2, 0.4), "density": (0.5, 0.3, 0.8)},
    "della": {"weight": (0.7, 0.2, 0.4), "density": (0.5, 0.3, 0.7)},
    "della_linear": {"weight": (0.7, 0.2, 0.4), "density": (0.5, 0.3, 0.7)},
    "breadcrumbs": {"weight": (0.7, 0.2, 0.4), "density": (0.5, 0.3, 0.8), "gamma": (0.1, 0.05, 0.1)},
    "breadcrumbs_ties": {"weight": (0.7, 0.2, 0.4), "density": (0.5, 0.3, 0.8), "gamma": (0.1, 0.05, 0.1)},
    "model_stock": {},
    "sce": {"select_topk": 0.5},
    "nearswap": {"t": 0.01},
    "arcee_fusion": {},
    "karcher": {},
    "passthrough": {},
    "ram": {"epsilon": 0.005},
    "ramplus_tl": {"epsilon": 0.005},
}
"""Options under which every part of a method has work to do."""
DRAWN = {"dare_linear", "dare_ties", "della", "della_linear"}
ONE_SIDED = {"slerp", "nearswap", "arcee_fusion", "passthrough"}
"""Take one model beside the base, or one at all."""
METHODS = names("merge")


def kind_of(name: str) -> type[MergeMethod]:
    found = find("merge", name)
    assert issubclass(found, MergeMethod)
    return found


def count_of(name: str) -> int:
    _, most = kind_of(name).models
    return 3 if most is None else most


def tensors(name: str, shape: tuple[int, ...] = SHAPES[0], *, spread: float = 0.01) -> list[Array]:
    """A base, where the method has one, and models near it, in float64."""
    draw = np.random.default_rng(3)
    base = draw.normal(scale=0.05, size=shape)
    models = [base + draw.normal(scale=spread, size=shape) for _ in range(count_of(name))]
    return [base, *models] if kind_of(name).base == "required" else models


def merged(name: str, arrays: list[Array], *, rows: int = 5, **values: Any) -> Array:
    has_base = kind_of(name).base == "required"
    return merge_in_blocks(name, arrays, has_base=has_base, values={**VALUES[name], **values}, rows=rows)


def test_every_method_has_options_here() -> None:
    assert set(VALUES) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_says_its_formula_and_its_source(self, name: str) -> None:
        said = inspect.getdoc(sys.modules[kind_of(name).__module__]) or ""
        assert re.search(r"\S = \S|<=|>=", said), "no formula"
        assert re.search(r"arXiv:\d{4}\.\d{5}|SIGGRAPH|as they are", said), "no source"

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_keeps_shape_and_type_and_is_finite(self, name: str, shape: tuple[int, ...]) -> None:
        for kind in (np.float32, np.float64):
            found = merged(name, [array.astype(kind) for array in tensors(name, shape)])
            assert (found.shape, found.dtype) == (shape, kind)
            assert np.isfinite(found).all()

    def test_is_finite_for_equal_models_and_zeros(self, name: str) -> None:
        first = tensors(name)[0]
        for array in (first, np.zeros_like(first)):
            same = [array.astype(np.float32)] * len(tensors(name))
            np.testing.assert_allclose(merged(name, same), same[0], rtol=1e-5, atol=1e-7)

    def test_blocks_do_not_show(self, name: str) -> None:
        if name in DRAWN:
            pytest.skip("draws are made block by block")
        arrays = tensors(name)
        whole = merged(name, arrays, rows=24)
        for rows in (1, 7, 16):
            np.testing.assert_allclose(merged(name, arrays, rows=rows), whole, rtol=1e-9, atol=1e-12)

    def test_float32_is_float64_to_rounding(self, name: str) -> None:
        arrays = tensors(name)
        low = merged(name, [array.astype(np.float32) for array in arrays])
        high = merged(name, [array.astype(np.float32).astype(np.float64) for array in arrays])
        np.testing.assert_allclose(low, high, rtol=0, atol=3e-7)

    def test_order_of_the_models_goes_with_their_values(self, name: str) -> None:
        if name in DRAWN | ONE_SIDED:
            pytest.skip("draws follow from a model's number" if name in DRAWN else "takes one model")
        arrays = tensors(name)
        base = arrays[:1] if kind_of(name).base == "required" else []
        models = arrays[len(base) :]
        expected = merged(name, arrays)
        for order in itertools.permutations(range(len(models))):
            each = {key: tuple(value[n] for n in order) for key, value in VALUES[name].items() if type(value) is tuple}
            found = merged(name, [*base, *(models[number] for number in order)], **each)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    def test_inputs_of_another_scale_scale_the_result(self, name: str) -> None:
        if name in DRAWN | {"nearswap", "arcee_fusion", "ram", "ramplus_tl", "sce"}:
            pytest.skip("draws, or compares with fixed numbers")
        arrays = tensors(name)
        found = merged(name, [array * 4 for array in arrays])
        np.testing.assert_allclose(found, merged(name, arrays) * 4, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in METHODS if "weight" in kind_of(name).model_fields])
class TestWeights:
    def test_one_and_zero_give_the_first(self, name: str) -> None:
        arrays = tensors(name)
        first = arrays[1] if kind_of(name).base == "required" else arrays[0]
        weight = (1.0, *[0.0] * (count_of(name) - 1))
        whole = {"density": (1.0,) * count_of(name)} if "density" in VALUES[name] else {}
        np.testing.assert_allclose(merged(name, arrays, weight=weight, **whole), first, rtol=1e-12, atol=1e-15)

    def test_all_zero_give_the_base_or_are_refused(self, name: str) -> None:
        arrays = tensors(name)
        weight = (0.0,) * count_of(name)
        if kind_of(name).base == "required":
            assert np.array_equal(merged(name, arrays, weight=weight), arrays[0])
        elif name != "nuslerp":
            with pytest.raises((Problem, ValueError), match="add up to 0"):
                merged(name, arrays, weight=weight)


class TestFormulas:
    def test_linear(self) -> None:
        one, two, three = tensors("linear")
        expected = (0.7 * one + 0.2 * two + 0.4 * three) / 1.3
        np.testing.assert_allclose(merged("linear", [one, two, three]), expected, rtol=1e-12)
        assert np.allclose(merged("linear", [one, two, three], normalize=False), expected * 1.3, rtol=1e-12)

    def test_slerp_keeps_the_angle_and_length_of_the_arc(self) -> None:
        base, model = tensors("slerp", spread=0.1)
        model *= np.linalg.norm(base) / np.linalg.norm(model)
        found = merged("slerp", [base, model])
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(base), rel=1e-9)
        whole = np.arccos(np.sum(base * model) / np.linalg.norm(base) ** 2)
        part = np.arccos(np.sum(base * found) / np.linalg.norm(base) ** 2)
        assert part == pytest.approx(0.3 * whole, rel=1e-9)
        assert np.allclose(merged("slerp", [base, model], t=0.0), base, atol=1e-15)
        assert np.allclose(merged("slerp", [base, model], t=1.0), model, atol=1e-15)

    def test_nuslerp_of_equal_weights_is_half_way(self) -> None:
        base, model = tensors("slerp", spread=0.1)
        found = merged("nuslerp", [base, model], weight=(0.4, 0.4))
        np.testing.assert_allclose(found, merged("slerp", [base, model], t=0.5), rtol=1e-9)

    @pytest.mark.parametrize("axis", [0, 1])
    def test_nuslerp_by_rows_and_columns(self, axis: int) -> None:
        one, two = tensors("nuslerp", spread=0.1)
        lengths = [np.linalg.norm(array, axis=axis, keepdims=True) for array in (one, two)]
        angle = np.arccos(np.sum(one * two, axis=axis, keepdims=True) / lengths[0] / lengths[1])
        t = 0.2 / 0.9
        expected = (np.sin((1 - t) * angle) * one + np.sin(t * angle) * two) / np.sin(angle)
        found = merged("nuslerp", [one, two], nuslerp_flatten=False, nuslerp_row_wise=axis == 0)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("name", ["multislerp", "karcher"])
    def test_means_of_two_directions_are_half_way(self, name: str) -> None:
        one, two = (array / np.linalg.norm(array) for array in tensors("nuslerp", spread=0.1))
        values = {"weight": (0.5, 0.5)} if name == "multislerp" else {"tol": 1e-12, "max_iter": 50}
        found = merge_in_blocks(name, [one, two], has_base=False, values=values)
        np.testing.assert_allclose(found, (one + two) / np.linalg.norm(one + two), rtol=1e-6, atol=1e-9)

    def test_karcher_mean_is_where_all_pulls_cancel(self) -> None:
        arrays = tensors("karcher", spread=0.1)
        found = merged("karcher", arrays, tol=1e-14, max_iter=200)
        mean = found / np.linalg.norm(found)
        pull = np.zeros_like(mean)
        for array in arrays:
            unit = array / np.linalg.norm(array)
            angle = np.arccos(np.sum(unit * mean))
            pull += angle / np.sin(angle) * (unit - np.cos(angle) * mean)
        assert np.linalg.norm(pull) < 1e-9
        assert np.linalg.norm(found) == pytest.approx(np.mean([np.linalg.norm(array) for array in arrays]), rel=1e-9)

    def test_task_arithmetic(self) -> None:
        base, *models = tensors("task_arithmetic")
        deltas = [weight * (model - base) for weight, model in zip((0.7, 0.2, 0.4), models, strict=True)]
        expected = base + 0.5 * sum(deltas) / 1.3
        found = merged("task_arithmetic", [base, *models], normalize=True, **{"lambda": 0.5})
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs_ties"])
    def test_thinned_and_agreed(self, name: str) -> None:
        base, *models = tensors(name)
        gammas = VALUES[name].get("gamma", (0.0,) * 3)
        parts = []
        for model, weight, density, gamma in zip(
            models, VALUES[name]["weight"], VALUES[name]["density"], gammas, strict=True
        ):
            delta = (model - base).ravel()
            order = np.argsort(np.abs(delta))
            end = len(order) - int(gamma * len(order))
            thin = np.zeros_like(delta)
            chosen = order[end - int(density * len(order)) : end]
            thin[chosen] = weight * delta[chosen]
            parts.append(thin.reshape(base.shape))
        stack, weights = np.stack(parts), np.reshape(VALUES[name]["weight"], (3, 1, 1))
        if name != "breadcrumbs":
            agree = np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1)
            stack = stack * agree
        expected = stack.sum(0)
        if name == "ties":
            total = (weights * agree).sum(0)
            expected = expected / np.where(total == 0, 1, total)
        np.testing.assert_allclose(merged(name, [base, *models]), base + expected, rtol=1e-12, atol=1e-15)

    def test_model_stock_goes_nowhere_for_opposite_and_all_the_way_for_equal_updates(self) -> None:
        base, model, _, _ = tensors("model_stock")
        there = merge_in_blocks("model_stock", [base, model, model], has_base=True, values={})
        np.testing.assert_allclose(there, model, rtol=1e-9, atol=1e-12)
        back = merge_in_blocks("model_stock", [base, model, 2 * base - model], has_base=True, values={})
        np.testing.assert_allclose(back, base, rtol=1e-9, atol=1e-12)

    def test_nearswap(self) -> None:
        base, model = tensors("nearswap")
        found = merged("nearswap", [base, model])
        near = np.abs(model - base) <= 0.01
        np.testing.assert_allclose(found[near], model[near], rtol=1e-12)
        np.testing.assert_allclose(np.abs(found - base)[~near], 0.01, rtol=1e-9)

    def test_arcee_fusion_takes_elements_whole(self) -> None:
        base, model = tensors("arcee_fusion")
        found = merged("arcee_fusion", [base, model])
        taken = found == model
        assert (taken | (found == base)).all()
        assert 0 < taken.mean() < 0.2
        assert np.abs(model - base)[taken].mean() > 1.5 * np.abs(model - base).mean()

    def test_ram_adds_what_is_alone_and_averages_what_is_shared(self) -> None:
        base = np.zeros((2, 2))
        one, two = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[0.0, 2.0], [1.0, 0.0]])
        found = merge_in_blocks("ram", [base, one, two], has_base=True, values={})
        assert np.array_equal(found, [[1.0, 2.0], [2.0, 0.0]])
        plus = merge_in_blocks("ramplus_tl", [base, one, two], has_base=True, values={"r": 0.5, "alpha": 0.4})
        np.testing.assert_allclose(plus, [[1.2, 2.4], [2.0, 0.0]])

    def test_sce_weighs_models_by_their_energy(self) -> None:
        base = np.zeros((1, 4))
        one, two = np.array([[1.0, 1.0, 1.0, 1.0]]), np.array([[2.0, 2.0, 2.0, -2.0]])
        found = merge_in_blocks("sce", [base, one, two], has_base=True, values={})
        np.testing.assert_allclose(found, [[1.8, 1.8, 1.8, -2.0]])


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "values", "fault"),
        [
            ("linear", {"weight": (1.0, -1.0)}, "add up to 0"),
            ("multislerp", {"weight": (1.0, -1.0)}, "add up to 0"),
            ("nuslerp", {"weight": (1.0, 1.0), "nuslerp_row_wise": True}, "has no effect while nuslerp_flatten"),
            ("della", {"weight": (1.0,), "density": (0.1,)}, "leaves the range"),
            ("ties", {"weight": (1.0,), "density": (1.5,)}, "less than or equal to 1"),
            ("task_arithmetic", {"weight": (1.0,), "density": (0.5,)}, "density"),
            ("nearswap", {"t": -1.0}, "greater than or equal to 0"),
        ],
    )
    def test_options_that_cannot_be_honoured(self, name: str, values: dict[str, Any], fault: str) -> None:
        with pytest.raises(ValueError, match=fault):
            method_of(name, len(values.get("weight", (1,))), values)

    def test_directions_that_cancel(self) -> None:
        draw = np.random.default_rng(0).normal(size=(4, 4))
        arrays = [draw, -draw, draw, -draw]
        with pytest.raises(Problem, match="cancel"):
            merge_in_blocks("multislerp", arrays, has_base=False, values={"weight": (1.0,) * 4})


class TestRanks:
    """Order statistics over blocks against a sort."""

    @pytest.mark.parametrize("steps", [None, 3, 1], ids=["distinct", "ties", "all equal"])
    def test_a_band_has_the_wanted_elements(self, steps: int | None) -> None:
        values = np.random.default_rng(1).normal(size=(300, 1000)).astype(np.float32)
        if steps:
            values = np.abs(np.round(values * steps / 4)).astype(np.float32) if steps > 1 else np.ones_like(values)
        assert values.size > SAMPLE
        whole = whole_of([values], None, 16)
        for start, stop in ((0, 10), (1000, 200_000), (299_999, 300_000), (250_000, 300_000)):
            (band,) = bands(whole, lambda block: block.tensors, [(start, stop)])
            assert band is not None
            masks = [band.mask(block.tensors[0], block.number) for block in whole]
            found = values[np.concatenate(masks)]
            np.testing.assert_array_equal(np.sort(found), np.sort(values, axis=None)[start:stop])

    def test_equal_elements_are_spread_evenly(self) -> None:
        whole = whole_of([np.ones((300, 1000), np.float32)], None, 10)
        (band,) = bands(whole, lambda block: block.tensors, [(200_000, 300_000)])
        assert band is not None
        counts = [int(band.mask(block.tensors[0], block.number).sum()) for block in whole]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == 100_000

    def test_a_sample_that_misleads_costs_time_only(self) -> None:
        values = np.zeros((300, 1000), np.float32)
        values.reshape(-1)[1::3] = np.arange(1, 100_001)  # every third element, which the sample's step passes over
        whole = whole_of([values], None, 16)
        ((low, high),) = ranked(whole, lambda block: block.tensors, [[200_005, 299_999]])
        assert (low.value, high.value) == (6, 100_000)
        assert (low.less, sum(low.equal)) == (200_005, 1)

    def test_values_that_are_not_finite_are_told(self) -> None:
        whole = whole_of([np.full((20, 20), np.nan, np.float32)], None, 5)
        with pytest.raises(Problem, match="not finite"):
            ranked(whole, lambda block: block.tensors, [[5]])
