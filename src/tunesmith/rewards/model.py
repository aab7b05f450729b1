"""Reward of a model that was taught what people prefer (Ouyang et al., arXiv:2203.02155):  r = head(state at the end).

    prompt ──┬── answer      rendered by the reward model's own template, tokenised by its own tokenizer, as it was
             ├── answer      trained; answers to a prompt share it where the model takes forests
             └── answer

It is what the objective `reward` makes, or any folder of transformers' `…ForSequenceClassification` with one output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from tunesmith.core.problem import Problem
from tunesmith.core.records import Message, Rated
from tunesmith.core.rows import TokenRow
from tunesmith.core.run import ModelSpec
from tunesmith.data.encode import Rules, encode
from tunesmith.data.report import Rejected
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.opened import DOES, open_model
from tunesmith.models.heads import HeadSpec
from tunesmith.models.policy import Policy
from tunesmith.models.source import find, head_of
from tunesmith.rewards import Asked, Judge, Reward, told

_UNLIMITED = 1 << 30


class Model(Reward):
    """The score of a reward model; it is loaded once, learns nothing, and computes beside the model that is trained."""

    path: str
    """The run folder of a reward model, or a folder or id of one with one output."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of its weights."""
    chat_template: str | None = None
    """A Jinja file, or `chatml`, in place of its own chat template."""
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    """The longest prompt and answer, by default as many as it reads; an answer that goes on is cut there."""
    batch_tokens: Annotated[int, Field(gt=0)] = 8192
    """Tokens computed at once; at least one prompt with its answers."""

    def open(self, beside: Policy | None = None) -> Judge:
        self._check()
        device = "auto" if beside is None else beside.device.type
        spec = {"path": self.path, "device": device, "dtype": self.dtype, "chat_template": self.chat_template}
        opened = open_model(ModelSpec.model_validate(spec), HeadSpec("score"))
        opened.trained.requires_grad_(False)
        policy, codec = opened.policy(), opened.codec
        limit = getattr(opened.model.config.get_text_config(), "max_position_embeddings", None) or _UNLIMITED
        rules = Rules(Rated, max_tokens=min(limit, self.max_tokens or limit), over_long="truncate")

        def judge(asked: Sequence[Asked]) -> list[float]:
            rows = [self._row(number, one, codec, rules) for number, one in enumerate(asked)]
            return _scores(policy, rows, self.batch_tokens)

        return judge

    def _check(self) -> None:
        """Raises: Problem: the model has no head that gives one number."""
        head = head_of(find(self.path))
        if head.kind != "score":
            what = f"this model {DOES[head.kind]}"
            raise Problem(self.path, what, "Train a reward model (objective reward) and name its run folder")
        if head.outputs > 1:
            what = f"gives {head.outputs} numbers ({', '.join(head.labels[:4])}), and a reward model gives one"
            raise Problem(self.path, what, "Name a reward model, not a classifier")

    def _row(self, number: int, asked: Asked, codec: Codec, rules: Rules) -> TokenRow:
        """A prompt as trunk and its answer as branch."""
        rated = Rated(asked.messages, (Message("assistant", asked.text),), True, asked.tools)
        found = encode(rated, codec, rules)
        if isinstance(found, Rejected):
            what = f"{told(number, asked)} cannot be scored by {self.path}: {found.reason} ({found.message})"
            raise Problem("reward model", what, "Shorten the prompts, or take another reward model")
        return found[0]


def _scores(policy: Policy, rows: Sequence[TokenRow], budget: int) -> list[float]:
    """The score of the one answer of each row; what rows have in common, such as their prompt, is computed once."""
    scores = [0.0] * len(rows)
    with torch.no_grad(), policy.still():
        for numbers in policy.packed(rows, budget):
            found = policy.scores(policy.plant([rows[number] for number in numbers])).tolist()
            for number, score in zip(numbers, found, strict=True):
                scores[number] = score
    return scores
