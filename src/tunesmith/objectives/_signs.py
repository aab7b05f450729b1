"""Signs of trouble while a model learns from its own answers, by name, each told in words when it sets in.

    figures of a round ─▶ which signs they bear ─▶ level of each, 0 to 1, over rounds ─▶ a sentence, once

A level moves by 0.3 of the way to 1 with each round that bears the sign, and to 0 with each that does not. Above 0.6,
after three such rounds in a row, the sign is told; it may be told again once its level has been below 0.05. Levels and
what the first rounds were like are carried from step to step, and with them in checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PACE, TOLD_ABOVE, AGAIN_BELOW = 0.3, 0.6, 0.05
FIRST_ROUNDS = 3
"""Rounds whose mean is what later ones are compared with."""
EQUAL, EMPTY, CUT = 0.9, 0.1, 0.5
"""Shares of groups, and of answers, from which on there is trouble."""
FEW = 0.25
"""The share of a group's answers that differ, and"""
SURE = 0.05
"""the nats of entropy a token, below which sampling finds nothing new."""
DRIFT = 2.0
"""The factor by which answers grow or shrink while the reward rises,"""
NOISE = 1.3
"""the factor by which their entropy grows while it does,"""
FAR = 0.5
"""the nats a token that the model moves away from the reference while it does, and"""
MOVED = 0.25
"""the share of itself by which one reward rises while another falls: each may mean that the reward is gamed."""


@dataclass(frozen=True)
class Watch:
    """What is known of a run beside its figures: answers a prompt, and the weight of each reward by name."""

    answers: int
    weights: Mapping[str, float] = field(default_factory=dict[str, float])


def signs(figures: Mapping[str, float], carried: dict[str, float], watch: Watch) -> tuple[str, ...]:
    """Sentences for the signs that set in with this round; `carried` is brought up to date.

    figures: means over the answers of the round: reward, reward_NAME, length, cut, empty, equal, distinct, and where
    they are known entropy and kl; those that are absent bear no sign.
    """
    seen = _Seen(figures, carried, watch)
    found = dict(_found(seen))
    seen.remember()
    return tuple(text for name in NAMES if (text := _told(name, found.get(name), carried)))


NAMES = ("nothing", "equal", "empty", "cut", "few", "sure", "length", "noise", "kl", "parts")
"""The signs, as they stand in `carried`."""


class _Seen:
    """The figures of a round beside those of the first rounds."""

    def __init__(self, figures: Mapping[str, float], carried: dict[str, float], watch: Watch) -> None:
        self.figures, self.carried, self.watch = figures, carried, watch
        self.rounds = carried.get("rounds", 0.0)

    def __getitem__(self, name: str) -> float:
        """A figure of this round; 0 where there is none."""
        return self.figures.get(name, 0.0)

    def start(self, name: str) -> float | None:
        """A figure as it was in the first rounds; None while these go on."""
        return self.carried.get(f"start.{name}") if self.rounds >= FIRST_ROUNDS else None

    def change(self, name: str) -> float:
        """How far a reward has moved, as a share of itself; above 0 for the better."""
        start, now = self.start(name), self[name]
        size = max(abs(start or 0.0), abs(now))
        if start is None or size == 0:
            return 0.0
        return (now - start) / size * (1 if self.watch.weights[name.removeprefix("reward_")] > 0 else -1)

    @property
    def rising(self) -> bool:
        """Whether the reward is above that of the first rounds."""
        start = self.start("reward")
        return start is not None and self["reward"] > start

    def remember(self) -> None:
        """Count the round, and take its figures into those of the first rounds while these go on."""
        if self.rounds < FIRST_ROUNDS:
            for name, value in self.figures.items():
                key = f"start.{name}"
                self.carried[key] = (self.carried.get(key, 0.0) * self.rounds + value) / (self.rounds + 1)
        self.carried["rounds"] = min(self.rounds + 1, FIRST_ROUNDS)


def _found(seen: _Seen) -> Iterator[tuple[str, str]]:
    """The signs that a round bears, each with its sentence."""
    nothing = seen["reward"] == 0 and seen["reward_std"] == 0
    if nothing:
        yield "nothing", "every answer is worth 0, so there is nothing to learn; the task may be too hard"
    elif seen["equal"] >= EQUAL:
        yield "equal", f"in {seen['equal']:.0%} of the groups all answers are worth the same, which teaches nothing"
    if seen["empty"] >= EMPTY:
        yield "empty", f"{seen['empty']:.0%} of the answers are empty"
    if seen["cut"] >= CUT:
        yield "cut", f"{seen['cut']:.0%} of the answers are cut by sampling.max_tokens, before what they lead to"
    yield from _collapse(seen)
    yield from _gamed(seen)


def _collapse(seen: _Seen) -> Iterator[tuple[str, str]]:
    n = seen.watch.answers
    if n > 1 and seen.figures.get("distinct", 1.0) <= max(FEW, 1.5 / n):
        text = f"collapse: of {n} answers to a prompt only {n * seen['distinct']:.1f} differ, so little new is tried"
        yield "few", f"{text}; that is an end only if the reward is as high as it can be"
    if seen.figures.get("entropy", 1.0) <= SURE:
        yield "sure", f"collapse: the model's entropy is down to {seen['entropy']:.3f} nats a token"


def _gamed(seen: _Seen) -> Iterator[tuple[str, str]]:
    """Signs that the reward rises for another reason than it was meant for."""
    before, now = seen.start("length"), seen["length"]
    if seen.rising and before and not before / DRIFT < now < before * DRIFT:
        yield "length", f"the reward rises while answers went from {before:.0f} to {now:.0f} tokens; is it gamed?"
    ordered = seen.start("entropy")
    if seen.rising and ordered and seen["entropy"] >= NOISE * ordered:
        text = f"the reward rises while answers become noise ({ordered:.1f} to {seen['entropy']:.1f} nats a token)"
        yield "noise", f"{text}; is it gamed? Read some answers"
    if seen.rising and seen["kl"] >= FAR:
        yield "kl", f"the reward rises far from the reference ({seen['kl']:.2f} nats a token); read some answers"
    moved = {name: seen.change(f"reward_{name}") for name, weight in seen.watch.weights.items() if weight}
    if moved and max(moved.values()) >= MOVED and min(moved.values()) <= -MOVED:
        up, down = max(moved, key=moved.__getitem__), min(moved, key=moved.__getitem__)
        yield "parts", f"the reward {up} becomes better while {down} becomes worse; look at their weights"


def _told(name: str, text: str | None, carried: dict[str, float]) -> str:
    """The sentence of a sign if it sets in now, else nothing; its level moves."""
    key, told = f"sign.{name}", f"told.{name}"
    level = carried.get(key, 0.0) + PACE * ((text is not None) - carried.get(key, 0.0))
    carried[key] = level
    if level < AGAIN_BELOW:
        carried[told] = 0.0
    if text is None or level < TOLD_ABOVE or carried.get(told):
        return ""
    carried[told] = 1.0
    return text
