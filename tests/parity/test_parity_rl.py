"""Losses and gradients of GRPO and RLOO against TRL's trainers: the same weights, answers and advantages, float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from made_codecs import oracle
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunesmith.core.plugins import build
from tunesmith.core.records import Chat
from tunesmith.generate.engines import Answer
from tunesmith.models.attention import NAME
from tunesmith.models.policy import Policy
from tunesmith.objectives import Losses
from tunesmith.objectives._gradient import PolicyGradient
from tunesmith.objectives._rollout import Group, Question, column, numbered, placed, trees, with_old, with_reference

trl = pytest.importorskip("trl")
QUIET: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "max_completion_length": 16,
}
ANSWERS, LONGEST = 4, 9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


def moved(base: Path, seed: int, far: float = 0.1) -> Any:
    """The model, some way off: what the policy was when it drew, or what it is held to."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * far * weight.std().nan_to_num(0.0))
    return model.eval()


def policy_of(model: nn.Module) -> Policy:
    model.set_attn_implementation(NAME)
    return Policy(model, forest=True, budget=60)


def groups(seed: int = 5, count: int = 3) -> list[Group]:
    """Prompts and answers of uneven lengths, judged by a draw; one answer in four was cut."""
    draw = np.random.default_rng(seed)

    def tokens(length: int) -> np.ndarray:
        return draw.integers(3, tiny.vocabulary(), length).astype(np.int32)

    out = []
    for row in range(count):
        answers = tuple(
            Answer("", tuple(tokens(int(draw.integers(1, LONGEST + 1))).tolist()), "stop") for _ in range(ANSWERS)
        )
        numbers = {
            "length": [float(len(answer.tokens)) for answer in answers],
            "reward": draw.normal(size=ANSWERS).tolist(),
            "cut": [0.0, 0.0, 1.0, 0.0],
        }
        out.append(Group(Question(tokens(int(draw.integers(2, 8))), Chat(()), "", row, ""), answers, numbers))
    return numbered(out)


def objective_of(value: Any) -> PolicyGradient:
    found = build("objective", value)
    assert isinstance(found, PolicyGradient)
    return found


def ours(objective: PolicyGradient, base: Path, seen: list[Group], old: bool) -> tuple[Losses, float, Policy]:
    """The loss of one update over the groups, in several micro-batches."""
    policy = policy_of(moved(base, 0, 0.0))
    drew, held = policy_of(moved(base, 1)), policy_of(moved(base, 2, 0.2))
    policy.reference = held
    batches = trees(seen, policy)
    assert len(batches) > 1
    if old:
        batches = [b.with_extra("old", with_old(drew, b).extras["old"]) for b in batches]
    batches = [with_reference(policy, batch) for batch in batches]
    rewards, _ = objective.worth(policy, column(seen, "reward"), batches)
    gains = objective.advantages(rewards.view(-1, ANSWERS), policy.ranks).flatten()
    ready = objective._weighed(policy, [placed(batch, "advantage", gains) for batch in batches])
    count = sum(objective.count(batch) for batch in ready)
    found = [objective.loss(policy, batch) for batch in ready]
    loss = torch.stack([loss for loss, _ in found]).sum() / count
    loss.backward()
    figures = {name: sum(one[name] for _, one in found) / count for name in found[0][1]}
    return (loss, figures), count, policy


def padded(rows: list[Any], left: bool, filler: float = 0) -> tuple[Tensor, Tensor]:
    """Rows one below the other, and which places of them are filled."""
    longest = max(len(row) for row in rows)
    out = torch.full((len(rows), longest), filler, dtype=torch.tensor(rows[0]).dtype)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        part = slice(longest - len(row), None) if left else slice(0, len(row))
        out[number, part] = torch.tensor(row)
        mask[number, part] = 1
    return out, mask


def inputs_of(seen: list[Group], taken: Any = None) -> dict[str, Tensor]:
    """The rollout as TRL takes it: every answer with its own copy of the prompt."""
    prompts = [group.question.tokens.astype(np.int64) for group in seen for _ in group.answers]
    prompt_ids, prompt_mask = padded(prompts, left=True)
    ids, mask = padded([list(answer.tokens) for group in seen for answer in group.answers], left=False)
    return {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": ids, "completion_mask": mask}


def told(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """[B, T] log-probabilities of the answers' tokens, by transformers alone."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    size = inputs["completion_ids"].shape[1]
    found = logits[:, -size - 1 : -1].log_softmax(-1)
    return found.gather(-1, inputs["completion_ids"][..., None])[..., 0]


def trainer_of(kind: str, base: Path, where: Path, **options: Any) -> Any:
    from datasets import Dataset

    config = getattr(trl, f"{kind}Config")(
        str(where), num_generations=ANSWERS, per_device_train_batch_size=ANSWERS, **{**QUIET, **options}
    )
    tokenizer = oracle()
    tokenizer.padding_side = "left"
    trainer = getattr(trl, f"{kind}Trainer")(
        moved(base, 0, 0.0),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * ANSWERS),
        processing_class=tokenizer,
    )
    trainer.model.eval()
    return trainer


def assert_same(policy: Policy, theirs: nn.Module) -> None:
    own = {name: weight.grad for name, weight in policy.model.named_parameters() if weight.grad is not None}
    other = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    assert own.keys() == other.keys()
    largest = max(float(value.abs().max()) for value in other.values())
    assert largest > 1e-3
    for name, value in own.items():
        assert (value - other[name]).abs().max() <= 1e-5 * max(largest, 1.0), name


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"normalise": "answer"}, {"loss_type": "grpo"}),
    "dapo": ({"normalise": "token", "clip_high": 0.28}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "bnpo": ({"normalise": "token"}, {"loss_type": "bnpo"}),
    "dr_grpo": ({"normalise": "constant", "scale": "none"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "gspo": (
        {"normalise": "answer", "ratio": "sequence", "clip_low": 0.003, "clip_high": 0.004},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.003, "epsilon_high": 0.004},
    ),
    "batch": ({"normalise": "token", "scale": "batch"}, {"loss_type": "bnpo", "scale_rewards": "batch"}),
    "kl": ({"normalise": "token", "beta": 0.3}, {"loss_type": "dapo", "beta": 0.3}),
    "plain kl": (
        {"normalise": "answer", "beta": 0.3, "kl": "plain"},
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    ),
    "masked": ({"normalise": "token", "cut_answers": "mask"}, {"loss_type": "dapo"}),
}


def advantages(seen: list[Group], scale: str) -> Tensor:
    rewards = np.array([group.numbers["reward"] for group in seen])
    lead = rewards - rewards.mean(axis=1, keepdims=True)
    size = {"group": rewards.std(axis=1, ddof=1, keepdims=True), "batch": rewards.std(ddof=1)}.get(scale)
    return torch.tensor((lead if size is None else lead / (size + 1e-4)).flatten(), dtype=torch.float32)


@pytest.mark.parametrize("old", [True, False], ids=["later-update", "first-update"])
@pytest.mark.parametrize("case", CASES)
def test_grpo(case: str, old: bool, base: Path, tmp_path: Path) -> None:
    own, other = CASES[case]
    seen = groups()
    objective = objective_of({"grpo": {"answers": ANSWERS, "sampling": {"max_tokens": 16}, **own}})
    (loss, figures), _, policy = ours(objective, base, seen, old)
    trainer = trainer_of("GRPO", base, tmp_path, **other)
    inputs = inputs_of(seen)
    if own.get("cut_answers") == "mask":
        cut = torch.tensor([value for group in seen for value in group.numbers["cut"]])
        inputs["tool_mask"] = inputs["completion_mask"] * (1 - cut[:, None]).long()
    inputs["num_items_in_batch"] = inputs.get("tool_mask", inputs["completion_mask"]).sum()
    inputs["advantages"] = advantages(seen, other.get("scale_rewards", "group"))
    if old:
        inputs["old_per_token_logps"] = told(moved(base, 1), inputs)
    inputs["ref_per_token_logps"] = told(moved(base, 2, 0.2), inputs)
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    assert_same(policy, trainer.accelerator.unwrap_model(trainer.model))
    clipped = float(figures["clipped"])
    assert (clipped > 0) == old
    if own.get("ratio") == "sequence":
        assert clipped == pytest.approx(trainer._metrics["eval"]["clip_ratio/region_mean"][0])


@pytest.mark.parametrize("old", [True, False], ids=["later-update", "first-update"])
def test_rloo(old: bool, base: Path, tmp_path: Path) -> None:
    seen = groups()
    objective = objective_of({"reinforce": {"answers": ANSWERS, "beta": 0.0}})
    (loss, figures), _, policy = ours(objective, base, seen, old)
    trainer = trainer_of("RLOO", base, tmp_path)
    inputs = inputs_of(seen)
    rewards = torch.tensor([group.numbers["reward"] for group in seen])
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (ANSWERS - 1)
    inputs["advantages"] = (rewards - others).flatten()
    drew = told(moved(base, 1) if old else moved(base, 0, 0.0), inputs)
    inputs["old_logps"] = (drew * inputs["completion_mask"]).sum(1)
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    assert_same(policy, trainer.accelerator.unwrap_model(trainer.model))
    assert (float(figures["clipped"]) > 0) == old
    assert float(figures["clipped"]) == pytest.approx(trainer._metrics["eval"]["clip_ratio/region_mean"][0])
