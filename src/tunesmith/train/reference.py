"""What an objective compares the learning model with: the model itself without its method, or another model.

reference_model named ─▶ another model, loaded beside this one
live                  ─▶ the method is switched off in each step
precomputed           ─▶ every answer is scored once before training; another model is let go again
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec, Run
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.opened import open_model
from tunesmith.methods import Method
from tunesmith.models.fast import quicken
from tunesmith.models.forest import Batch, by_row
from tunesmith.models.load import load_codec
from tunesmith.models.policy import Policy
from tunesmith.models.source import Found, find
from tunesmith.objectives import Objective
from tunesmith.train.steps import Side


def reference_spec(run: Run, objective: Objective) -> ModelSpec | None:
    """How the other model that an objective names is loaded: on the run's device and in its type; None without one."""
    path = objective.other_model
    if path is None:
        return None
    return run.model.model_copy(update={"path": path, "revision": None, "chat_template": None, "attention": "auto"})


def check_reference(run: Run, objective: Objective, method: Method, found: Found, codec: Codec) -> None:
    """Refuse another model that reads other tokens, and a live reference where the method cannot be switched off.

    Raises:
        Problem: with what to do instead.
    """
    spec = reference_spec(run, objective)
    if spec is not None:
        _check_vocabulary(spec.path, codec, objective)
        return
    if objective.scores_reference != "live" or (method.reversible and found.adapter is None):
        return
    why = f"the method {method.name()} (as it is set) cannot be switched off"
    if found.adapter is not None:
        why = "the run goes on with an adapter, and switching it off gives the model before that adapter"
    if objective.online:
        hint = "Name another model as reference_model, such as the one it starts from, or set beta to 0"
        raise Problem(f"objective.{objective.name()}.beta", f"is above 0, and {why}", hint)
    raise Problem(
        f"objective.{objective.name()}.reference",
        f"live does not work here: {why}",
        "Set it to precomputed, or name another model as reference_model",
    )


def open_reference(run: Run, objective: Objective) -> Policy | None:
    """The other model that an objective names, as a policy that nothing learns in.

    Raises:
        Problem: it cannot be loaded, or writes no text.
    """
    spec = reference_spec(run, objective)
    if spec is None:
        return None
    opened = open_model(spec)
    opened.trained.requires_grad_(False)
    quicken(opened.trained, run.model.fast, opened.loaded.choice.device)
    return opened.policy()


def scored(side: Side, budget: int, policy: Policy, untouched: bool) -> Side:
    """The side with the reference's log-probabilities of its answers.

    untouched: whether the policy itself is the reference, since nothing in it has changed yet.
    """
    logprobs: Callable[[Batch], Tensor] = policy.logprobs if untouched else policy.reference_logprobs

    def score(batch: Batch) -> Tensor:
        batch = batch.to(policy.device)
        return by_row(batch, logprobs(batch))

    with torch.no_grad(), policy.still():
        return side.scored(budget, score) if len(side.rows) else side


def _check_vocabulary(path: str, codec: Codec, objective: Objective) -> None:
    theirs = load_codec(find(path))
    where = f"objective.{objective.name()}"
    if theirs.encoder_decoder != codec.encoder_decoder:
        what = f"is compared with {path}, and one of the two models has an encoder"
        raise Problem(where, what, "Name a model of the same kind")
    differing = codec.vocabulary.items() ^ theirs.vocabulary.items()
    if differing:
        sizes = f"{len(theirs.vocabulary):,} tokens beside {len(codec.vocabulary):,}"
        unlike = len({text for text, _ in differing})
        what = f"is compared with {path}, whose vocabulary differs ({sizes}, {unlike:,} of them unlike)"
        raise Problem(where, what, "Name a model with the same tokenizer")
