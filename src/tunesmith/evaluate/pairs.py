"""Pairs: how often a model puts the better answer above the worse one.

    score head           score(chosen) > score(rejected)
    language model       log p(chosen) > log p(rejected)
    with an adapter too  log p/p_base of chosen > that of rejected, the reward that DPO learns

Equal scores count as a miss. (Rafailov et al. 2023 for the implicit reward)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.rows import TokenRow
from tunesmith.evaluate.figures import share
from tunesmith.evaluate.outcome import Measure, Outcome
from tunesmith.evaluate.scoring import Floats, Scorer, unweighted

SCORE = "pairs ranked by score"
LIKELIHOOD = "pairs ranked by likelihood"
REWARD = "pairs ranked by reward against the base"


def by_score(scorer: Scorer, rows: Sequence[TokenRow]) -> Outcome:
    """Pairs ranked by a score head."""
    return _outcome({SCORE: _margins(scorer.scores(rows, "pairs"))})


def by_likelihood(own: Sequence[Floats], reference: Sequence[Floats] | None = None) -> Outcome:
    """Pairs ranked by log-probabilities [2] each, and by the reward where those of the base are known too."""
    margins = _margins(own)
    found = {LIKELIHOOD: margins}
    if reference is not None:
        found[REWARD] = margins - _margins(reference)
    return _outcome(found)


def pair_logprobs(scorer: Scorer, rows: Sequence[TokenRow]) -> list[Floats]:
    """For each pair the log-probabilities [2] of chosen and rejected."""
    return scorer.logprobs([unweighted(row) for row in rows], "pairs")


def _margins(values: Sequence[Floats]) -> NDArray[np.float64]:
    return np.array([chosen - rejected for chosen, rejected in values])


def _outcome(margins: dict[str, NDArray[np.float64]]) -> Outcome:
    measures = [
        Measure(name, share(int((values > 0).sum()), len(values)), "percent", gains=(values > 0).astype(np.float64))
        for name, values in margins.items()
    ]
    return Outcome(tuple(measures), list(margins.values())[-1])
