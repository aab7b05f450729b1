"""What each token of an answer turned out to be worth: rewards of tokens, advantages and returns.

    r_t = - beta (log p_old - log p_ref),  at the last token + what the answer is worth
    d_t = r_t + gamma V_(t+1) - V_t,       V is 0 behind the last token, whether that is an end or not
    A_t = d_t + gamma lambda A_(t+1)       generalised advantages
    R_t = A_t + V_t                        what V is to become

(Ziegler et al., arXiv:1909.08593; Schulman et al., arXiv:1506.02438.)
All in float64 on the CPU: these are a few numbers a token, and sums over long answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tunesmith.models.policy import Ranks


def token_rewards(rows: Tensor, ends: Tensor, gap: Tensor, beta: float) -> Tensor:
    """[M] the reward of each token, in float64.

    rows [M]: the answer each belongs to, rising; ends [R]: what each answer is worth; gap [M]: log p - log p_ref.
    """
    out = -beta * _plain(gap)
    counts = torch.bincount(rows.cpu(), minlength=len(ends))
    out[counts.cumsum(0)[counts > 0] - 1] += _plain(ends)[counts > 0]
    return out


def advantages(rewards: Tensor, values: Tensor, rows: Tensor, gamma: float, decay: float) -> Tensor:
    """[M] generalised advantages of the tokens of answers, in float64.

    rewards, values, rows [M]: as above, token by token; decay: lambda.
    """
    if len(rows) == 0:
        return torch.zeros(0, dtype=torch.float64)
    counts = torch.bincount(rows.cpu())
    r, v = (pad_sequence(list(_plain(each).split(counts.tolist()))) for each in (rewards, values))
    out, later, following = torch.zeros_like(r), torch.zeros_like(r[0]), torch.zeros_like(r[0])
    for step in reversed(range(len(r))):
        later = r[step] + gamma * following - v[step] + gamma * decay * later
        out[step], following = later, v[step]
    return torch.cat([column[:count] for column, count in zip(out.T, counts.tolist(), strict=True)])


def moments(values: Sequence[Tensor], ranks: Ranks) -> tuple[float, float]:
    """Mean and standard deviation of numbers of all ranks together; every rank has to ask."""
    count = max(1.0, ranks.total(float(sum(len(part) for part in values))))
    mean = ranks.total(float(sum(part.sum() for part in values))) / count
    variance = ranks.total(float(sum(((part - mean) ** 2).sum() for part in values))) / count
    return mean, variance**0.5


def steered(beta: float, kl: float, target: float, share: float) -> float:
    """The next weight of the KL penalty: up by as much as a fifth where the KL of answers is above the target.

        beta <- beta (1 + share * clip(kl / target - 1, -0.2, 0.2))

    share: the answers of the round as a share of the horizon. Ziegler et al., arXiv:1909.08593.
    """
    return beta * (1 + min(1.0, share) * min(0.2, max(-0.2, kl / target - 1)))


def _plain(values: Tensor) -> Tensor:
    return values.detach().cpu().double()
