"""Every adapter of PEFT that is offered by its name, against PEFT's own use of it; LoRA+ against PEFT's groups."""

from __future__ import annotations

import json
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.optimizers import create_loraplus_optimizer
from peft.utils.peft_types import PeftType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunesmith.core.plugins import build
from tunesmith.core.problem import Problem
from tunesmith.generate.opened import put_on
from tunesmith.methods import Method, trainable
from tunesmith.methods.peft import FIRST, NOT_AT_IDENTITY, Type
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.objectives import next_token_loss

SMALL: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 200},
    "gralora": {"r": 8},
    "hira": {"r": 8},
    "miss": {"r": 8},
    "peanut": {"r": 8},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "vblora": {"vector_length": 8, "num_vectors": 16},
    "waveft": {"n_frequency": 200},
}
"""Options that fit layers of 32 numbers, where PEFT's defaults do not."""
TYPES = typing.get_args(Type)
NO_FOLD = ("beft",)
"""A bias cannot be folded into a layer that has none."""
TOKENS = torch.arange(3, 43).reshape(2, 20)


def method_of(kind: str) -> Method:
    found = build("method", {"peft": {"type": kind, "options": SMALL.get(kind, {})}})
    assert isinstance(found, Method)
    return found


def logits(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def moved(model: nn.Module) -> None:
    """Move what learns, so that every part of an adapter matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in trainable(model).values():
            weight.add_(0.05 * torch.randn_like(weight))


def size(values: Tensor) -> float:
    return float(values.abs().max())


@pytest.mark.parametrize("kind", TYPES)
class TestType:
    def test_computes_what_peft_computes(self, kind: str) -> None:
        """The same configuration put on by PEFT alone, with the same seed and the same moves."""
        method, ours, theirs = method_of(kind), tiny.model(), tiny.model()
        torch.manual_seed(0)
        trained = method.apply(ours)
        options = {**FIRST.get(kind, {}), **SMALL.get(kind, {})}
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind.upper())](
                task_type="CAUSAL_LM", target_modules="all-linear", **options
            )
            expected = get_peft_model(theirs, config)
        assert set(trainable(trained)) == set(trainable(expected))
        moved(trained)
        moved(expected)
        assert torch.equal(logits(trained), logits(expected))

    def test_starts_at_identity_where_it_says_so(self, kind: str) -> None:
        model, method = tiny.model(), method_of(kind)
        before = logits(model)
        off = size(logits(method.apply(model)) - before) / size(before)
        assert (off <= 1e-5) is method.starts_at_identity
        assert method.starts_at_identity is (kind not in NOT_AT_IDENTITY)

    def test_rows_do_not_see_each_other(self, kind: str) -> None:
        """Losses and gradients of a forest are those of its rows, one at a time."""
        model, method = tiny.model(), method_of(kind)
        trained = method.apply(model)
        moved(trained)
        trained.eval()
        rows = tiny.single_rows(tiny.forest_rows())
        found = []
        for cut in ([plant(rows)], [plant([row]) for row in rows]):
            trained.zero_grad()
            losses = [next_token_loss(Policy(model, forest=False, trained=trained), batch) for batch in cut]
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            grads = [weight.grad.flatten() for weight in trainable(trained).values() if weight.grad is not None]
            found.append(torch.cat(grads))
        assert float((found[0] - found[1]).norm()) <= 1e-4 * float(found[1].norm())

    def test_is_saved_switched_off_gone_on_with_and_folded(self, kind: str, tmp_path: Path) -> None:
        model, method = tiny.model(), method_of(kind)
        before = logits(model)
        trained = method.apply(model)
        moved(trained)
        after = logits(trained)
        with method.off(trained):
            assert torch.equal(logits(trained), before)
        method.save(trained, tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert size(logits(PeftModel.from_pretrained(tiny.model(), str(tmp_path))) - after) <= 1e-5 * size(after)
        assert size(logits(put_on(tiny.model(), tmp_path)) - after) <= 1e-5 * size(after)
        again = method.adopt(tiny.model(), tmp_path)
        assert set(trainable(again)) == set(trainable(trained))
        assert size(logits(again) - after) <= 1e-5 * size(after)
        if kind in NO_FOLD:
            with pytest.raises(Problem, match="cannot be folded"):
                method.fold(trained)
            return
        assert size(logits(method.fold(trained)) - after) <= 2e-5 * size(after)

    def test_is_tried_without_memory(self, kind: str) -> None:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(tiny.config("llama"))
        outlined = {name: weight.shape for name, weight in trainable(method_of(kind).apply(skeleton)).items()}
        real = {name: weight.shape for name, weight in trainable(method_of(kind).apply(tiny.model())).items()}
        assert outlined == real


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"type": "hra", "options": {"rank": 4}}, ["options.rank", "no setting of hra", "Known:"]),
        ({"type": "hra", "options": {"aply_GS": True}}, ["options.aply_GS", "apply_GS"]),
        ({"type": "hra", "options": {"target_modules": ["q_proj"]}}, ["is set by tunesmith"]),
        ({"type": "hra", "options": {"modules_to_save": []}}, ["is set by tunesmith"]),
        ({"type": "road", "options": {"variant": "road_9"}}, ["peft.options", "road_9", "road_4"]),
        ({"type": "xlora"}, ["type"]),
    ],
)
def test_options_that_peft_does_not_have_are_refused_when_the_run_file_is_read(
    options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(Problem) as caught:
        build("method", {"peft": options})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_does_not_fit_the_layers_is_refused_in_pefts_words() -> None:
    method = build("method", {"peft": {"type": "fourierft", "options": {"n_frequency": 4000}}})
    assert isinstance(method, Method)
    with pytest.raises(Problem, match="n_frequency"):
        method.apply(tiny.model())


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["all-linear"], ["v_proj", "embed_tokens"]])
def test_the_groups_of_lora_plus_are_those_of_peft(targets: list[str]) -> None:
    method = build("method", {"lora_plus": {"targets": targets, "ratio": 7.0, "embedding_lr": 3e-6}})
    assert isinstance(method, Method)
    trained = method.apply(tiny.model())
    names = {id(weight): name for name, weight in trained.named_parameters()}
    theirs = create_loraplus_optimizer(
        trained, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=7.0, loraplus_lr_embedding=3e-6
    )
    ours, expected = (
        {names[id(weight)]: group["lr"] for group in groups for weight in group["params"]}
        for groups in (method.groups(trained, 1e-3), theirs.param_groups)
    )
    assert ours.keys() == expected.keys()
    assert all(ours[name] == pytest.approx(expected[name]) for name in ours)
    assert len(set(ours.values())) == (3 if "embed_tokens" in json.dumps(targets) else 2)
