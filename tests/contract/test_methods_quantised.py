"""What every method keeps over a base in few bits: it learns as over the same base written out, or it is refused.

The oracle is the base's own plain twin: each matrix held in few bits is written out once and multiplied by torch. Over
both, a method must give the same losses, gradients and weights; an evaluation between two steps may change nothing;
and switching the method off must give the untouched base, bit for bit.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunesmith.core.plugins import build, names
from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.methods import Method, trainable
from tunesmith.models.forest import Batch
from tunesmith.models.load import Loaded, load
from tunesmith.models.planting import plant
from tunesmith.models.policy import Policy
from tunesmith.models.quantize import is_held, write_out
from tunesmith.objectives import Objective
from tunesmith.train.setup import gather

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra quantize)")

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "lora": [
        {},
        {"form": "dora"},
        {"scaling": "rank_stabilized", "start": "gaussian"},
        {"start": "eva", "rank": 4},
        {"start": "pissa", "rank": 4},
        {"start": "olora", "rank": 4},
    ],
    "peft": [
        *({"type": name} for name in ("deft", "gralora", "hira", "randlora", "unilora")),
        {"type": "miss", "options": {"r": 8}},
        {"type": "shira", "options": {"r": 2}},
        {"type": "waveft", "options": {"n_frequency": 20}},
    ],
    "mixture_of_depths": [{}, {"learns": "routers"}],
    "expand": [{"new": 1}],
    "vera": [{"rank": 4}],
    "oft": [{"block_size": 8}],
}
"""Options to try; a method that is not named here has its defaults tried."""
TRANSPOSED = ("lora", "vera", "bottleneck", "peft")
"""Methods that are tried on GPT-2 too, whose layers hold their weights transposed."""
CASES = [
    pytest.param(name, options, kind, family, id=f"{name}-{json.dumps(options, sort_keys=True)}-{kind}-{family}")
    for name in names("method")
    for options in VARIANTS.get(name, [{}])
    for kind, family in (("nf4", "llama"), ("int8", "llama"), ("nf4", "gpt2"))
    if family == "llama" or name in TRANSPOSED
]
TOKENS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: tiny.folder(folder / family, family) for family in ("llama", "gpt2")}


@pytest.mark.parametrize(("name", "options", "kind", "family"), CASES)
def test_learns_over_few_bits_as_over_the_same_base_written_out_or_is_refused(
    name: str, options: dict[str, Any], kind: str, family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    if kind == "int8":
        pytest.importorskip("torchao", reason="torchao is not installed (extra quantize)")
    method = build("method", {name: options})
    assert isinstance(method, Method)
    held = opened(bases[family], kind).held
    assert held is not None
    if method.unfit(held) or not fits(method, family):
        run = tiny.run_of(bases[family], tmp_path, method={name: options}, model={"quantize": kind})
        with pytest.raises(Problem, match=f"method.{name}"):
            gather(run, Path(), lambda event: None)
        return
    ours = learned(method, bases[family], kind, written=False)
    theirs = learned(method, bases[family], kind, written=True)
    assert ours.names == theirs.names
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.losses[-1] < ours.losses[0]
    for left, right in zip(ours.gradients, theirs.gradients, strict=True):
        assert float((left - right).norm()) <= 1e-5 * float(right.norm())


def fits(method: Method, family: str) -> bool:
    """Whether the method takes the architecture at all."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(tiny.config(family))
    try:
        method.outline().apply(skeleton)
    except Problem:
        return False
    return True


@dataclass
class Learned:
    """What some steps gave. gradients: one flat tensor a step."""

    names: list[str]
    losses: list[float]
    gradients: list[Tensor]


def learned(method: Method, base: Path, kind: str, *, written: bool) -> Learned:
    """Two steps of a method over a base in few bits, with an evaluation before each gradient but the first."""
    loaded = opened(base, kind)
    model = copy.deepcopy(loaded.model)
    if written:
        write_out(model)
    assert is_held(model) is not written
    untouched, before = logits(model), frozen(model)
    torch.manual_seed(0)
    trained = method.apply(model)
    policy = Policy(model, forest=loaded.verdict.forest, trained=trained)
    method.begin(policy, iter([rows(seed) for seed in range(4)]), 8)
    out = Learned(sorted(trainable(trained)), [], [])
    optimizer = torch.optim.AdamW(method.groups(trained, 5e-3), weight_decay=0.0)
    trained.train()
    for step in range(2):
        first = gradient(method, policy, optimizer, out.losses)
        evaluate(policy)
        again = gradient(method, policy, optimizer, [])
        assert torch.equal(first, again), "an evaluation changed the gradient"
        out.gradients.append(first)
        optimizer.step()
        method.after_step(trained, step)
    if method.reversible:
        with method.off(trained):
            assert torch.equal(logits(trained), untouched)
    after = frozen(model)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name in after)
    return out


@functools.cache
def opened(base: Path, kind: str) -> Loaded:
    return load(ModelSpec(path=str(base), quantize=kind, device="cpu", dtype="float32"))  # type: ignore[arg-type]


def gradient(method: Method, policy: Policy, optimizer: torch.optim.Optimizer, losses: list[float]) -> Tensor:
    formula = build("objective", "sft")
    assert isinstance(formula, Objective)
    optimizer.zero_grad()
    batch = rows(1)
    torch.manual_seed(7)
    loss, _ = method.loss(policy, batch, formula)
    (loss / formula.count(batch)).backward()  # type: ignore[no-untyped-call]
    losses.append(float(loss.detach()))
    parts = [weight.grad for _, weight in sorted(trainable(policy.trained).items())]
    return torch.cat([part.flatten() for part in parts if part is not None])


def evaluate(policy: Policy) -> None:
    with torch.no_grad(), policy.still():
        policy.logprobs(rows(5))


def rows(seed: int) -> Batch:
    return plant(tiny.single_rows(tiny.forest_rows(seed=seed)))


def logits(model: nn.Module) -> Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        out = model(input_ids=TOKENS, use_cache=False).logits
    model.train(training)
    return out


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """The codes of each matrix in few bits, by the name of its layer."""
    return dict(codes(model))


def codes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            yield name.replace(".base_layer", ""), weight.data.clone()
