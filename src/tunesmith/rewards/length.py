"""Reward of a length, in tokens; 0 where it is right, falling to -1:

    r = -min(1, e / slack) - [cut],   e = max(0, L - tokens)   at most
                                      e = |L - tokens|         about as many

`at_most` is the soft overlong punishment of DAPO (Yu et al., arXiv:2503.14476, eq. 13), whose L_max is tokens + slack
and whose L_cache is slack.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.rewards import Asked
from tunesmith.rewards._rule import Rule


class Length(Rule):
    """0 for an answer of the right length, down to -1 for one that is too long, or too short."""

    side: Literal["at_most", "about"] = "at_most"
    """Answers of at most so many tokens are right, or only those of about so many."""
    tokens: Annotated[int, Field(gt=0)] = 256
    """The right length, in tokens, the end token among them."""
    slack: Annotated[int, Field(gt=0)] = 64
    """How many tokens beyond that cost 1; fewer cost their share of it."""
    cut: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """What an answer costs beside that was cut before its end, however long it is."""

    def value(self, asked: Asked) -> float:
        beyond = asked.tokens - self.tokens
        excess = max(0, beyond) if self.side == "at_most" else abs(beyond)
        cut = self.cut if asked.ended == "length" else 0.0
        return 0.0 - min(1.0, excess / self.slack) - cut
