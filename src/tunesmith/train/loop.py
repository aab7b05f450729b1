"""The training loop, once for all objectives.

    for each step:   gather its micro-batches
                     count   what the objective counts, over micro-batches and ranks
                     sum     loss / count backward, micro-batch by micro-batch; gradients summed over ranks
                     check   that loss and gradient are finite, before anything is changed
                     step    clip, learning rate, optimizer, method
                     tell    listeners; validate, checkpoint, stop where it is time

Dividing once by the whole count makes the step independent of how its rows were cut into micro-batches and dealt
over ranks. Every random draw of a micro-batch follows from (seed, step, number), so a resumed run is the
uninterrupted one, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from tunesmith.objectives import Objective
from tunesmith.optimizers import OptimizerSpec
from tunesmith.train.schedule import factor, steps_of
from tunesmith.train.signals import Wish
from tunesmith.train.world import World


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

    step: steps done; tokens: tokens computed; best: lowest validation loss and its step; stale: validations since.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = -1
    stale: int = 0
    skipped: list[int] = field(default_factory=list[int])

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "best": None if math.isinf(self.best) else self.best}

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
        """One optimizer step; its figures, or None if a wish to stop came first."""
        parts, step = self.parts, self.state.step
        self.optimizer_lr(step)
        fresh = iter([[batch.to(parts.policy.device) for batch in parts.steps.batches(step)]])
        figures: dict[str, float] = {}
        for batches in parts.objective.updates(parts.policy, fresh):
            parts.optimizer.zero_grad(set_to_none=True)
            parts.stepping.before_step(parts.optimizer, step)
            sums = self._gradients(batches)
            if parts.world.any(bool(self.wish)):
                return None
            figures = self._apply(sums)
        return figures

    def optimizer_lr(self, step: int) -> None:
        """Set the learning rates of a step."""
        scale = factor(step, self.parts.steps.total, self.parts.spec)
        for group, lr in zip(self.parts.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * scale

    def _gradients(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Fill the gradients with those of loss / count; returns sums over all ranks."""
        parts = self.parts
        count = parts.world.total(sum(parts.objective.count(batch) for batch in batches))
        sums: dict[str, float] = {}
        for number, batch in enumerate(batches):
            if self.wish:
                break
            torch.manual_seed(_mix(parts.spec.seed, self.state.step, number * parts.world.size + parts.world.rank))
            loss, figures = parts.method.loss(parts.policy, batch, parts.objective)
            (loss / max(count, 1e-9)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss, **figures}.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            sums["tokens"] = sums.get("tokens", 0.0) + len(batch)
        sums = parts.world.totals(sums)
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
            for weight in self.weights:
                if weight.grad is not None:
                    weight.grad.mul_(parts.spec.clip_norm / norm)
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
        self.parts.optimizer.zero_grad(set_to_none=True)
        self.parts.saver.checkpoint(self.state)
        return "preempted"

    def _tell(self, kind: str, values: dict[str, Any]) -> None:
        self.parts.tell(Event(kind, self.state.step, values))


def validate(parts: Parts) -> dict[str, float]:
    """The objective's figures over the validation rows, without gradients or dropout; empty without rows."""
    sums: dict[str, float] = {}
    count = 0.0
    with torch.no_grad(), parts.policy.still():
        for batch in _prepared(parts):
            loss, figures = parts.method.loss(parts.policy, batch, parts.objective)
            count += parts.objective.count(batch)
            for name, value in {"loss": loss, **figures}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    sums, count = parts.world.totals(sums), parts.world.total(count)
    return {name: value / count for name, value in sums.items()} if count else {}


def _prepared(parts: Parts) -> Iterator[Batch]:
    for batch in parts.steps.validation():
        yield parts.objective.prepare(parts.policy, batch.to(parts.policy.device))


def _norm(weights: Sequence[nn.Parameter]) -> Tensor:
    norms = [weight.grad.norm(dtype=torch.float32) for weight in weights if weight.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _mix(seed: int, step: int, number: int) -> int:
    """One seed for each (seed, step, micro-batch), far from its neighbours (SplitMix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB + 1) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return (value ^ (value >> 31)) % 2**63
