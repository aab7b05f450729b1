"""The contract of methods, seen at work: every method is trained on a tiny model, and each promise is tried for real.

    python docs/matrix.py          writes docs/methods.md and docs/methods.zh.md anew (a few minutes)

A cell holds what was measured, or the reason that the method itself gave for refusing. No cell is written by hand.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
DOCS = Path(__file__).resolve().parent
PAGES = {"en": DOCS / "methods.md", "zh": DOCS / "methods.zh.md"}
sys.path[:0] = [str(DOCS.parent / "src"), str(DOCS.parent / "tests")]

import tiny  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from peft import PeftModel  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: E402

from tunesmith.core.events import Event  # noqa: E402
from tunesmith.core.plugins import build, find, names  # noqa: E402
from tunesmith.core.problem import Problem  # noqa: E402
from tunesmith.core.rows import Piece, TokenRow  # noqa: E402
from tunesmith.core.run import ModelSpec  # noqa: E402
from tunesmith.generate.opened import put_on  # noqa: E402
from tunesmith.methods import Method  # noqa: E402
from tunesmith.models.load import load, quietly  # noqa: E402
from tunesmith.models.planting import plant  # noqa: E402
from tunesmith.models.policy import Policy  # noqa: E402
from tunesmith.models.probe import choose_attention  # noqa: E402
from tunesmith.objectives import next_token_loss  # noqa: E402
from tunesmith.train.verb import Result, resume, train  # noqa: E402

HEAD = ("method", "learns", "off", "saved = trained", "others load it", "fold", "on nf4", "forest = padded", "resume")
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "bitfit": [{"parts": "norms"}],
    "bottleneck": [{"place": "houlsby"}, {"place": "pfeiffer"}, {"place": "parallel"}],
    "expand": [{"new": 1}],
    "lora": [{}, {"form": "dora"}, {"scaling": "rank_stabilized"}, {"start": "pissa", "rank": 4}, {"start": "eva"}],
    "medusa": [{}, {"base": "learns"}],
    "oft": [{"block_size": 8}],
    "p_tuning": [{"encoder": "mlp"}, {"encoder": "lstm"}],
    "p_tuning_v2": [{"tokens": 8}],
    "prefix": [{"projection": "mlp"}, {"projection": "none"}],
    "peft": [{"type": "hira"}, {"type": "randlora"}],
    "vera": [{"rank": 16}],
}
"""Options of a method that stand in a row of their own; a method that is not named here has its defaults tried."""
STEPS, LR = 12, 1e-2
TOKENS = torch.arange(3, 23).reshape(1, 20)
INTRODUCTIONS = {
    "en": """\
# Methods and what they keep

Every method was trained on a tiny Llama with random weights, and each promise of the contract was tried:

* **learns**: the loss of a task that can be learned by heart, before and after {steps} steps of AdamW;
* **off**: switched off, the model computes what it did before, bit for bit;
* **saved = trained**: largest difference of log-probabilities after saving and opening again;
* **others load it**: PEFT (or transformers, for plain models) loads what was saved; largest difference of logits;
* **fold**: the change melted into plain weights; largest difference of log-probabilities;
* **on nf4**: the loss falls on a base in four bits;
* **forest = padded**: largest difference of log-probabilities between the two ways of computing a batch;
* **resume**: a run that was stopped and resumed is the uninterrupted one, bit for bit.

A dash with a sentence is a refusal, in the words that the method itself gives. Differences are relative to the
largest value. `tunesmith explain NAME` tells what a method is; `tunesmith explain method --on MODEL` what it costs.
[Results](results.md) compares methods on real tasks. This page is written by `python docs/matrix.py`.

""",
    "zh": """\
# 各种方法，以及它们守住什么

每种方法都在一个随机权重的小 Llama 上训练过，约定里的每一条都实际试过：

* **learns**：一个背得下来的任务，AdamW 训练 {steps} 步前后的损失；
* **off**：关掉之后，模型算出的与原来逐比特相同；
* **saved = trained**：保存再打开之后，对数概率的最大差；
* **others load it**：保存的东西能由 PEFT（普通模型则由 transformers）加载；logits 的最大差；
* **fold**：改动融进普通权重之后，对数概率的最大差；
* **on nf4**：在四比特的基座上损失会下降；
* **forest = padded**：同一个批次两种算法之间对数概率的最大差；
* **resume**：停下再续训的运行与未中断的逐比特相同。

横线加一句话表示拒绝，那句话是方法自己给出的。差值都相对于最大的值。`tunesmith explain NAME` 说明一种方法是什么，
`tunesmith explain method --on MODEL` 说明它要花多少。[结果](results.zh.md)在真实任务上比较各种方法。
本页由 `python docs/matrix.py` 写成。

""",
}
CLOSINGS = {"en": ("## What each is", "method", "is"), "zh": ("## 各是什么", "方法", "是什么")}


@dataclass
class Case:
    """A method with its options on a tiny model."""

    name: str
    options: dict[str, Any]
    base: Path
    scratch: Path

    @property
    def label(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"`{self.name}`" + (f" ({told})" if told else "")

    @property
    def method(self) -> Method:
        found = build("method", {self.name: self.options})
        assert isinstance(found, Method)
        return found

    def fresh(self, **options: Any) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.base, **options).eval()

    @cached_property
    def learned(self) -> Learned:
        return learn(self, self.fresh())

    @cached_property
    def saved(self) -> Path:
        folder = self.scratch / "saved"
        folder.mkdir(parents=True)
        self.method.save(self.learned.trained, folder)
        return folder


@dataclass
class Learned:
    """A model under a method, after some steps; losses: before each."""

    model: PreTrainedModel
    trained: nn.Module
    method: Method
    losses: list[float]

    @property
    def policy(self) -> Policy:
        return policy(self.model, self.trained, self.method)


def policy(model: PreTrainedModel, trained: nn.Module, method: Method | None = None, *, forest: bool = True) -> Policy:
    off = (lambda: method.off(trained)) if method is not None and method.reversible else None
    takes = forest and choose_attention(model, "auto").forest
    return Policy(model, forest=takes, trained=trained, off=off)


class Plain:
    """The objective that is learned: next tokens."""

    def count(self, batch: Any) -> float:
        return float(batch.targets.weight.sum())

    def loss(self, of: Policy, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token_loss(of, batch), {}


def learn(case: Case, model: PreTrainedModel, steps: int = STEPS) -> Learned:
    method, batch = case.method, plant(tiny.single_rows(tiny.forest_rows(seed=1)))
    torch.manual_seed(0)
    trained = method.apply(model)
    used = policy(model, trained, method)
    method.begin(used, iter([batch] * steps), steps)
    optimizer = torch.optim.AdamW(method.groups(trained, LR), weight_decay=0.0)
    trained.train()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = method.loss(used, batch, Plain())[0] / Plain().count(batch)
        loss.backward()
        optimizer.step()
        method.after_step(trained, step)
        losses.append(float(loss.detach()))
    trained.eval()
    return Learned(model, trained, method, losses)


def logprobs(of: Policy) -> Tensor:
    with torch.no_grad(), of.still():
        return of.logprobs(tiny.forest(seed=2))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits[:, -TOKENS.shape[1] :]


def apart(found: Tensor, wanted: Tensor) -> str:
    return f"{float((found - wanted).abs().max() / wanted.abs().max()):.0e}"


def refusal(problem: Problem) -> str:
    return f"– {problem.what}"


# One probe a column


def learns(case: Case) -> str:
    losses = case.learned.losses
    if losses[-1] > losses[0] - 0.05:
        raise AssertionError(f"{case.label} does not learn: {losses}")
    start = "" if case.method.starts_at_identity else "; does not start at identity"
    return f"{losses[0]:.2f} → {losses[-1]:.2f}{start}"


def off(case: Case) -> str:
    learned = case.learned
    if not learned.method.reversible:
        try:
            learned.method.off(learned.trained)
        except Problem as problem:
            return refusal(problem)
        raise AssertionError(f"{case.label} cannot be switched off, and does not say so")
    before = logprobs(policy(untouched := case.fresh(), untouched))
    with learned.method.off(learned.trained):
        same = torch.equal(logprobs(learned.policy), before)
    if not same:
        raise AssertionError(f"{case.label}: off is not the untouched model")
    return "bit for bit"


def saved(case: Case) -> str:
    model = case.fresh()
    if (case.saved / "adapter_config.json").is_file():
        trained: nn.Module = put_on(model, case.saved)
    else:
        model = trained = AutoModelForCausalLM.from_pretrained(case.saved)
    return apart(logprobs(policy(model, trained)), logprobs(case.learned.policy))


def others(case: Case) -> str:
    config = case.saved / "adapter_config.json"
    if not config.is_file():
        theirs = AutoModelForCausalLM.from_pretrained(case.saved)
        return f"transformers, {apart(logits(theirs), logits(case.learned.trained))}"
    if '"peft_type"' not in config.read_text():
        return "– PEFT has no such method; tunesmith opens its folder"
    base = case.fresh()
    theirs = PeftModel.from_pretrained(base, str(case.saved))
    ours = case.fresh()
    mine = policy(ours, put_on(ours, case.saved), forest=False)
    return f"PEFT, {apart(by_peft(theirs), by_policy(mine))}"


def by_peft(model: nn.Module) -> Tensor:
    found = logits(model).log_softmax(-1)
    return found[0, :-1].gather(-1, TOKENS[0, 1:, None])[:, 0]


def by_policy(of: Policy) -> Tensor:
    row = TokenRow(Piece(TOKENS[0].numpy().astype("int32"), torch.ones(TOKENS.shape[1]).numpy()))
    with torch.no_grad(), of.still():
        return of.logprobs(plant([row]))


def fold(case: Case) -> str:
    case.saved  # noqa: B018 (saved before the model is changed)
    again = learn(case, case.fresh())
    expected = logprobs(again.policy)
    try:
        folded = again.method.fold(again.trained)
    except Problem as problem:
        return refusal(problem)
    return apart(logprobs(policy(folded, folded)), expected)


def on_nf4(case: Case) -> str:
    loaded = load(ModelSpec(path=str(case.base), dtype="float32", device="cpu", quantize="nf4"))
    held = loaded.held
    if held is not None and (reason := case.method.unfit(held)):
        return f"– {reason}"
    losses = learn(case, loaded.model).losses
    if losses[-1] > losses[0] - 0.02:
        raise AssertionError(f"{case.label} does not learn on nf4: {losses}")
    return f"{losses[0]:.2f} → {losses[-1]:.2f}"


def forest(case: Case) -> str:
    learned = case.learned
    verdict = choose_attention(learned.model, "auto")
    if not verdict.forest:
        return f"– {verdict.reason}"
    padded = Policy(learned.model, forest=False, trained=learned.trained)
    return apart(logprobs(learned.policy), logprobs(padded))


def resumed(case: Case) -> str:
    def run(name: str, hear: Callable[[Event], None]) -> Result:
        options = {"method": {case.name: case.options}, "train": {"epochs": 3}}
        return train(tiny.run_of(case.base, case.scratch / name, **options), hear=hear)

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = run("whole", lambda event: None)
    cut = resume(run("cut", stop).folder.path)
    left, right = (tiny.tensors(result.folder.model) for result in (whole, cut))
    if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
        raise AssertionError(f"{case.label}: the resumed run is another")
    return "bit for bit"


PROBES = (learns, off, saved, others, fold, on_nf4, forest, resumed)


def rows() -> Iterator[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as scratch:
        base = tiny.folder(Path(scratch) / "base")
        for name in names("method"):
            for number, options in enumerate(VARIANTS.get(name, [{}])):
                case = Case(name, options, base, Path(scratch) / f"{name}-{number}")
                yield (case.label, *(probe(case) for probe in PROBES))
                print(case.label, file=sys.__stdout__, flush=True)


def line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def summaries(tongue: str) -> Iterator[str]:
    chinese = yaml.safe_load((DOCS / "zh" / "options.yaml").read_text())["options"]
    for name in names("method"):
        said = (find("method", name).__doc__ or "").strip().partition("\n")[0]
        yield f"| `{name}` | {chinese[f'method.{name}'] if tongue == 'zh' else said} |"


def page(tongue: str, found: list[tuple[str, ...]]) -> str:
    title, name, meaning = CLOSINGS[tongue]
    table = [line(HEAD), line(("---",) * len(HEAD)), *map(line, found)]
    members = ["", title, "", f"| {name} | {meaning} |", "| --- | --- |", *summaries(tongue)]
    return INTRODUCTIONS[tongue].format(steps=STEPS) + "\n".join([*table, *members]) + "\n"


def main() -> None:
    with warnings.catch_warnings(), quietly(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        found = list(rows())
    for tongue, file in PAGES.items():
        file.write_text(page(tongue, found))
        print(file)


if __name__ == "__main__":
    main()
