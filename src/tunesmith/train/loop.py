"""The training loop, once for all objectives.

    for each step:   gather its micro-batches; the objective makes a round of them, one group for each update
    for each group:  count   what the objective counts, over micro-batches and ranks
                     sum     loss / count backward, micro-batch by micro-batch; gradients summed over ranks
                     check   that loss and gradient are finite, before anything is changed
                     step    clip, learning rate, optimizer, method
                     tell    listeners; validate, checkpoint, stop where it is time

Dividing once by the whole count makes the step independent of how its rows were cut into micro-batches and dealt
over ranks. Every random draw of a micro-batch follows from (seed, step, update, number), and a round that was begun is
kept in the checkpoint, so a resumed run is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tunesmith.core.events import Event
from tunesmith.core.problem import Problem
from tunesmith.core.run import TrainSpec
from tunesmith.methods import Method
from tunesmith.models.forest import Batch
from tunesmith.models.policy import Policy
from tunesmith.objectives import Objective, Round, added_up
from tunesmith.optimizers import OptimizerSpec
from tunesmith.train.schedule import factor, steps_of
from tunesmith.train.signals import Wish
from tunesmith.train.world import World

UPDATE, ROUND = 1 << 32, 1 << 48
"""How far apart the numbers are from which the draws of updates, and those of rounds, follow."""


class Steps(Protocol):
    """Where micro-batches come from."""

    @property
    def total(self) -> int:
        """How many steps the run has."""
        ...

    def batches(self, step: int) -> Sequence[Batch]:
        """This rank's micro-batches of a step."""
        ...

    def validation(self) -> Sequence[Batch]:
        """This rank's validation batches; empty where there are none."""
        ...

    def places(self, step: int) -> str:
        """Where the rows of a step stand in the user's files, for a person."""
        ...


class Saver(Protocol):
    """What keeps a run's weights."""

    def checkpoint(self, state: State) -> None: ...
    def best(self, state: State) -> None: ...
    def rollback(self) -> State: ...


@dataclass
class State:
    """The loop's own numbers; with weights, optimizer and these a run can go on.

    step: steps done; tokens: those of the rows; best: lowest validation loss and its step; stale: validations since;
    told: the figures of each update that is done of the step begun, whose round is `round`; carried: the objective's
    numbers.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = -1
    stale: int = 0
    skipped: list[int] = field(default_factory=list[int])
    told: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    carried: dict[str, float] = field(default_factory=dict[str, float])
    round: Round | None = field(default=None, repr=False)

    def plain(self) -> dict[str, Any]:
        """All but the round, which is tensors."""
        own = asdict(replace(self, round=None))
        del own["round"]
        return {**own, "best": None if math.isinf(self.best) else self.best}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> State:
        """The state that `plain` gave.

        Raises:
            Problem: it is of another loop.
        """
        try:
            return cls(**{**plain, "best": math.inf if plain["best"] is None else plain["best"]})
        except (KeyError, TypeError) as error:
            raise Problem("checkpoint", f"its numbers are not those of this loop ({error!r})") from error


@dataclass(frozen=True)
class Parts:
    """All that a loop works with."""

    spec: TrainSpec
    policy: Policy
    objective: Objective
    method: Method
    weights: Mapping[str, nn.Parameter]
    stepping: OptimizerSpec
    optimizer: Optimizer
    steps: Steps
    saver: Saver
    world: World
    tell: Callable[[Event], None]


class NonFinite(Exception):
    """A loss or gradient that is not finite; `what` says which."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Loop:
    """One run of steps, from a state to the end, a stop or a wish to stop."""

    def __init__(self, parts: Parts, state: State, wish: Wish) -> None:
        self.parts = parts
        self.state = state
        self.wish = wish
        parts.policy.carried = state.carried
        self.before = dict(state.carried)
        self.weights = list(parts.weights.values())
        self.base_lrs = [group["lr"] for group in parts.optimizer.param_groups]
        total = parts.steps.total
        self.validate_every = steps_of(parts.spec.validate_every, total)
        self.checkpoint_every = steps_of(parts.spec.checkpoint_every, total)

    def run(self) -> str:
        """Train until the end; returns why it ended: `done`, `stalled` or `preempted`."""
        parts, state = self.parts, self.state
        parts.policy.trained.train()
        if state.step == 0 and state.best_step < 0:
            self._validate()
            if parts.spec.on_nonfinite == "rollback":
                parts.saver.checkpoint(state)
        while state.step < parts.steps.total:
            before = state.step
            if not self._one_step():
                return self._preempted()
            if state.step <= before:
                continue
            at_end = state.step == parts.steps.total
            if at_end or state.step % self.validate_every == 0:
                self._validate()
            if parts.spec.patience is not None and state.stale >= parts.spec.patience:
                parts.saver.checkpoint(state)
                return "stalled"
            if at_end or state.step % self.checkpoint_every == 0:
                parts.saver.checkpoint(state)
        return "done"

    def _one_step(self) -> bool:
        """Do the next step; False if a wish to stop came before it was done."""
        if self.state.step in self.state.skipped:
            self.state.step += 1
            return True
        start = time.perf_counter()
        try:
            figures = self._update()
        except NonFinite as fault:
            self._not_finite(fault)
            return True
        if figures is None:
            return False
        self.state.step += 1
        self.state.tokens += int(figures["tokens"])
        self.state.seconds += time.perf_counter() - start
        self._tell("step", {**figures, "seconds": time.perf_counter() - start, "total_tokens": self.state.tokens})
        return True

    def _update(self) -> dict[str, float] | None:
        """The optimizer updates of one step; its figures, or None if a wish to stop came first."""
        parts, state = self.parts, self.state
        self.optimizer_lr(state.step)
        made = state.round or self._make_round()
        updates = parts.world.most(len(made.groups))
        while len(state.told) < updates:
            number = len(state.told)
            parts.optimizer.zero_grad(set_to_none=True)
            parts.stepping.before_step(parts.optimizer, state.step)
            sums = self._gradients(made.groups[number] if number < len(made.groups) else [])
            if parts.world.any(bool(self.wish)):
                return None
            state.told.append(self._apply(sums))
        figures = {**_together(state.told), **made.figures}
        state.told, state.round = [], None
        return figures

    def _make_round(self) -> Round:
        """Let the objective make what the step learns from; where that was sampled, it is kept until it is learned."""
        parts, state = self.parts, self.state
        fresh = [batch.to(parts.policy.device) for batch in parts.steps.batches(state.step)]
        self.before = dict(state.carried)
        seed = _mix(parts.spec.seed, state.step, ROUND + parts.world.rank)
        torch.manual_seed(seed)
        made = parts.objective.round(parts.policy, fresh, seed)
        for text in made.notes:
            self._tell("note", {"text": text})
        if parts.objective.online:
            state.round = made
        return made

    def optimizer_lr(self, step: int) -> None:
        """Set the learning rates of a step."""
        scale = factor(step, self.parts.steps.total, self.parts.spec)
        for group, lr in zip(self.parts.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * scale

    def _gradients(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Fill the gradients with those of loss / count; returns sums over all ranks."""
        parts = self.parts
        count = parts.world.total(sum(parts.objective.count(batch) for batch in batches))
        told: list[Mapping[str, Tensor]] = []
        tokens = 0
        for number, batch in enumerate(batches):
            if self.wish:
                break
            place = len(self.state.told) * UPDATE + number * parts.world.size + parts.world.rank
            torch.manual_seed(_mix(parts.spec.seed, self.state.step, place))
            loss, figures = parts.method.loss(parts.policy, batch, parts.objective)
            (loss / max(count, 1e-9)).backward()  # type: ignore[no-untyped-call]
            told.append({name: value.detach() for name, value in {"loss": loss, **figures}.items()})
            tokens += batch.row_tokens
        sums = parts.world.totals({**added_up(told), "tokens": float(tokens)} if told else {})
        parts.world.sum_gradients(self.weights)
        return {name: value if name == "tokens" else value / max(count, 1e-9) for name, value in sums.items()}

    def _apply(self, figures: dict[str, float]) -> dict[str, float]:
        """Check, clip and step.

        Raises:
            NonFinite: before anything was changed.
        """
        parts = self.parts
        norm = float(_norm(self.weights))
        if not math.isfinite(figures["loss"]):
            raise NonFinite(f"the loss is {figures['loss']}")
        if not math.isfinite(norm):
            raise NonFinite(f"the gradient's norm is {norm}")
        if parts.spec.clip_norm is not None and norm > parts.spec.clip_norm:
            found = _gradients_of(self.weights)
            torch._foreach_mul_(found, parts.spec.clip_norm / norm)  # pyright: ignore[reportPrivateImportUsage]
        parts.optimizer.step()
        parts.method.after_step(parts.policy.trained, self.state.step)
        return {**figures, "grad_norm": norm, "lr": parts.optimizer.param_groups[0]["lr"]}

    def _not_finite(self, fault: NonFinite) -> None:
        """Stop, skip or go back, as the run says; the rows are named.

        Raises:
            Problem: the run says stop.
        """
        parts, step = self.parts, self.state.step
        rows = parts.steps.places(step)
        parts.optimizer.zero_grad(set_to_none=True)
        skipped = [*self.state.skipped, step]
        if parts.spec.on_nonfinite == "rollback":
            vars(self.state).update(vars(parts.saver.rollback()))
        self.state.told, self.state.round = [], None
        self._tell("nonfinite", {"what": fault.what, "rows": rows, "then": parts.spec.on_nonfinite, "at": step})
        if parts.spec.on_nonfinite == "stop":
            raise Problem(
                f"step {step + 1}",
                f"{fault.what}, so nothing was changed; its rows: {rows}",
                "Look at the rows, lower optimizer lr, or set train.on_nonfinite to skip or rollback",
            )
        self.state.skipped = skipped

    def _validate(self) -> None:
        """Measure the validation loss, tell it, and keep the weights if it is the lowest so far."""
        with self.parts.stepping.still(self.parts.optimizer):
            figures = validate(self.parts)
            if not figures:
                return
            better = figures["loss"] < self.state.best
            if better:
                self.state.best, self.state.best_step, self.state.stale = figures["loss"], self.state.step, 0
                if self.parts.spec.keep == "best":
                    self.parts.saver.best(self.state)
        if not better:
            self.state.stale += 1
        self._tell("validate", {**figures, "best": self.state.best, "best_step": self.state.best_step})

    def _preempted(self) -> str:
        """Keep the state; a round that is not kept with it is made again, from the same numbers."""
        self.parts.optimizer.zero_grad(set_to_none=True)
        if self.state.round is None:
            self.state.carried.clear()
            self.state.carried.update(self.before)
        self.parts.saver.checkpoint(self.state)
        return "preempted"

    def _tell(self, kind: str, values: dict[str, Any]) -> None:
        self.parts.tell(Event(kind, self.state.step, values))


def validate(parts: Parts) -> dict[str, float]:
    """The objective's figures over the validation rows, without gradients or dropout; empty without rows."""
    policy = parts.policy
    batches = [batch.to(policy.device) for batch in parts.steps.validation()]
    kept = dict(policy.carried)
    with torch.no_grad(), policy.still():
        sums, count = parts.objective.measure(
            policy, batches, lambda batch: parts.method.loss(policy, batch, parts.objective)
        )
    policy.carried.clear()
    policy.carried.update(kept)
    sums, count = parts.world.totals(sums), parts.world.total(count)
    return {name: value / count for name, value in sums.items()} if count else {}


def _together(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of a step from those of its updates: tokens in all, the last learning rate, means of the others."""
    names = {name: None for figures in told for name in figures}
    out = {name: sum(found) / len(found) for name in names if (found := [f[name] for f in told if name in f])}
    return {**out, "tokens": sum(figures["tokens"] for figures in told), "lr": told[-1]["lr"]} if told else out


def _gradients_of(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def _norm(weights: Sequence[nn.Parameter]) -> Tensor:
    """The norm of all gradients together [], in float32; on a GPU in a few kernels, not one a weight."""
    found = _gradients_of(weights)
    if not found:
        return torch.zeros(())
    norms = torch._foreach_norm(found, 2, dtype=torch.float32)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms).norm()


def _mix(seed: int, step: int, number: int) -> int:
    """One seed for each (seed, step, micro-batch), far from its neighbours (SplitMix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB + 1) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return (value ^ (value >> 31)) % 2**63
