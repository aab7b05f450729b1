"""Rollouts: answers that the policy draws, what they are worth, and the trees they become.

    prompts ─▶ engine ─▶ n answers each ─▶ rewards ─▶ groups ─▶ trees:  prompt ──┬── answer     numbers of each answer
   (Batch.notes)        (as drawn)                                               └── answer     become extras [R]

What is learned are the tokens that were drawn, never their text tokenised anew. A group is whole on one rank; figures
are means over the answers of all ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from tunesmith.core.records import Chat, Message
from tunesmith.core.rows import Piece, TokenRow, Tokens
from tunesmith.generate.engines import Answer, Answers
from tunesmith.generate.sampling import Sampling
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.policy import Policy, Ranks


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A prompt of a step: its tokens, its turns, the key its answers are checked against, its number in the corpus."""

    tokens: Tokens
    ask: Chat
    key: str
    row: int
    note: str


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A question and the answers drawn to it. numbers: by name, one for each answer, such as its reward."""

    question: Question
    answers: tuple[Answer, ...]
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])

    def having(self, **numbers: Sequence[float]) -> Group:
        """The group with more numbers of its answers."""
        return replace(self, numbers={**self.numbers, **numbers})


def questions(batches: Sequence[Batch]) -> list[Question]:
    """The prompts of a step's fresh batches, in their order."""
    out: list[Question] = []
    for batch in batches:
        for leaf, row, note in zip(batch.leaves, batch.rows, batch.notes, strict=True):
            tokens = batch.path(leaf).cpu().numpy().astype(np.int32)
            out.append(Question(tokens, ask_of(note), json.loads(note)["answer"], row, note))
    return out


def ask_of(note: str) -> Chat:
    """What the note of a row asks."""
    known = json.loads(note)
    return Chat(tuple(_message(plain) for plain in known["messages"]), tuple(known["tools"]))


def draw(answers: Answers, asked: Sequence[Question], sampling: Sampling, n: int) -> list[Group]:
    """n answers to each question, with the numbers `length` (tokens), `cut` and `empty` (1 or 0) of each, and
    `distinct`: the share of the group's answers that differ.
    """
    found = answers.answers([question.ask for question in asked], sampling, n)
    return [_described(Group(question, drawn)) for question, drawn in zip(asked, found, strict=True)]


def trees(groups: Sequence[Group], policy: Policy) -> list[Batch]:
    """The groups as micro-batches of at most the policy's budget of tokens, or a single answer with its prompt.

    A group that is longer becomes several trees with the same prompt. Every number of the answers becomes an extra [R].
    """
    parts = [part for group in groups for part in _within(group, policy.budget)]
    places = policy.packed([row for row, _ in parts])
    return [_planted([parts[at] for at in some], policy) for some in places]


def deal(groups: Sequence[Group], parts: int, seed: int, ranks: Ranks) -> list[list[Group]]:
    """This rank's groups in parts, one for each update; all ranks together have as many groups in each, to one.

    A group's part follows from its row and the first rank's seed, however rows were dealt over ranks. There are fewer
    parts where all ranks together have fewer groups.
    """
    seed = int(ranks.gather(torch.tensor([seed]))[0])
    own = torch.tensor([group.question.row for group in groups], dtype=torch.long)
    told = ranks.gather(own)
    rows = torch.cat(told)
    start = sum(len(part) for part in told[: ranks.rank])
    shuffled = torch.randperm(int(rows.max()) + 1, generator=torch.Generator().manual_seed(seed))
    order = shuffled[rows].argsort(stable=True).argsort()
    parts = min(parts, len(rows))
    out: list[list[Group]] = [[] for _ in range(parts)]
    for number, group in enumerate(groups):
        out[int(order[start + number]) * parts // len(rows)].append(group)
    return out


def numbered(groups: Sequence[Group]) -> list[Group]:
    """The groups with `place`, which numbers the answers of this rank."""
    out: list[Group] = []
    start = 0
    for group in groups:
        stop = start + len(group.answers)
        out.append(group.having(place=range(start, stop)))
        start = stop
    return out


def placed(batch: Batch, name: str, values: Tensor) -> Batch:
    """The batch with an extra [R] from a number of every answer of this rank [A], in the order of `place`."""
    own = values[batch.extras["place"].long().cpu()]
    return batch.with_extra(name, own.to(batch.tokens.device, torch.float32))


def gathered(batches: Sequence[Batch], values: Sequence[Tensor], like: Tensor) -> Tensor:
    """Values [R] of each batch as numbers of this rank's answers [A], as `placed` takes them."""
    out = torch.zeros_like(like)
    for batch, some in zip(batches, values, strict=True):
        out[batch.extras["place"].long().cpu()] = some.detach().cpu().to(out.dtype)
    return out


def column(groups: Sequence[Group], name: str) -> Tensor:
    """[A] a number of all answers of this rank, in float64."""
    return torch.tensor([value for group in groups for value in group.numbers[name]], dtype=torch.float64)


def everywhere(values: Tensor, ranks: Ranks) -> Tensor:
    """The values of all ranks, one after the other along the first axis; every rank has to ask."""
    return torch.cat(ranks.gather(values))


def means(columns: Mapping[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """The mean of each column [A] over the answers of all ranks, and `reward_std`, how far their rewards lie apart."""
    everyone = everywhere(torch.stack([values.double() for values in columns.values()], dim=1), ranks)
    found = dict(zip(columns, everyone.mean(dim=0).tolist(), strict=True))
    return {**found, "reward_std": float(everyone[:, list(columns).index("reward")].std(unbiased=False))}


def with_old(policy: Policy, batch: Batch) -> Batch:
    """The batch with `old` [M], the log-probabilities of its targets as the policy is now, without dropout."""
    with torch.no_grad(), policy.still():
        return batch.with_extra("old", policy.logprobs(batch))


def with_reference(policy: Policy, batch: Batch) -> Batch:
    """The batch with `reference` [M], the log-probabilities that the reference gives its targets."""
    return batch.with_extra("reference", policy.reference_logprobs(batch))


def token_means(batch: Batch, values: Tensor) -> Tensor:
    """[R] the mean over each answer's tokens of values [M]."""
    return by_row(batch, values) / batch.extras["length"]


def _message(plain: Mapping[str, object]) -> Message:
    """The message that `Message.plain` gave."""
    known = dict(plain)
    calls = tuple(known.pop("tool_calls", ()))  # type: ignore[arg-type]
    reasoning = known.pop("reasoning_content", None)
    return Message(**known, tool_calls=calls, reasoning=reasoning)  # type: ignore[arg-type]


def _described(group: Group) -> Group:
    answers = group.answers
    distinct = len({answer.tokens for answer in answers}) / len(answers)
    return group.having(
        length=[len(answer.tokens) for answer in answers],
        cut=[float(answer.ended == "length") for answer in answers],
        empty=[float(not answer.text.strip()) for answer in answers],
        distinct=[distinct] * len(answers),
    )


_Part = tuple[TokenRow, Mapping[str, Sequence[float]]]


def _within(group: Group, budget: int) -> list[_Part]:
    """A group as trees within the budget, each with the numbers of its answers."""
    room = budget - len(group.question.tokens)
    cuts, used = [0], 0
    for at, answer in enumerate(group.answers):
        if at > cuts[-1] and used + len(answer.tokens) > room:
            cuts.append(at)
            used = 0
        used += len(answer.tokens)
    return [_tree(group, start, stop) for start, stop in zip(cuts, [*cuts[1:], len(group.answers)], strict=True)]


def _tree(group: Group, start: int, stop: int) -> _Part:
    asked = group.question
    branches = tuple(_piece(answer.tokens, 1.0) for answer in group.answers[start:stop])
    row = TokenRow(_piece(asked.tokens, 0.0), branches, index=asked.row, note=asked.note)
    return row, {name: values[start:stop] for name, values in group.numbers.items()}


def _piece(tokens: Sequence[int] | Tokens, weight: float) -> Piece:
    return Piece(np.asarray(tokens, np.int32), np.full(len(tokens), weight, np.float32))


def _planted(parts: Sequence[_Part], policy: Policy) -> Batch:
    batch = policy.plant([row for row, _ in parts])
    names = parts[0][1]
    extras = {name: torch.tensor([value for _, own in parts for value in own[name]]) for name in names}
    return replace(batch, extras={name: value.float() for name, value in extras.items()}).to(policy.device)
