"""What the figures of a run of preferences say when it ends, in words: its first steps beside its last ones.

unlikelier    what should become likelier has become less likely than the reference gives it, while the lead grew:
              probability went to answers of neither kind   (Razin et al., arXiv:2410.08847)
told apart    better and worse are told apart almost from the start, so there was little to learn
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Steps = Sequence[Mapping[str, float]]

LEAST = 8
"""Steps below which nothing is said."""
FALLEN = 0.1
"""The part of the lead by which the reward of what is better must have fallen."""
SURE = 0.99
"""The accuracy from which on answers count as told apart."""


def unlikelier(steps: Steps, better: str) -> tuple[str, ...]:
    """Whether the reward called `better`, which starts at 0, fell while the lead grew; the sentence, or none."""
    reward, lead = (_mean(_last(steps), name) for name in (better, "lead"))
    if len(steps) < LEAST or lead <= 0 or reward > -FALLEN * lead:
        return ()
    return (
        f"the {better} answers became less likely, too: their reward went from 0 to {reward:.3g}, though they lead by "
        f"{lead:.3g}. Read some of the model's answers; a larger beta or a lower lr holds it back, and so does "
        "sft_weight where there is one",
    )


def told_apart(steps: Steps) -> tuple[str, ...]:
    """Whether the accuracy was near 1 in the first quarter of the steps, the very first left out; or none."""
    early = _mean(steps[1 : max(2, len(steps) // 4)], "accuracy")
    if len(steps) < LEAST or early < SURE:
        return ()
    return (
        f"better and worse answers were told apart almost from the start (accuracy {early:.2f}), so they may differ in "
        "something simple, such as their length or form; look at some pairs",
    )


def _last(steps: Steps) -> Steps:
    return steps[-max(1, len(steps) // 4) :]


def _mean(steps: Steps, name: str) -> float:
    """The mean of a figure over the steps that have it; 0 where none has."""
    found = [step[name] for step in steps if name in step]
    return float(np.mean(found)) if found else 0.0
