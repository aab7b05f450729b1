"""Whether a run's choices go together: checked on names and shapes, before any weight or row is read."""

from __future__ import annotations

from typing import cast

from tunesmith.core.problem import Problem
from tunesmith.core.run import Run
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.opened import DOES
from tunesmith.methods import Method
from tunesmith.models.device import choose
from tunesmith.models.heads import reads_both_ways
from tunesmith.models.load import load_config, skeleton
from tunesmith.models.quantize import Held
from tunesmith.models.source import Found, head_of
from tunesmith.objectives import Objective
from tunesmith.optimizers import OptimizerSpec, named


def check_sides(run: Run, codec: Codec, objective: Objective) -> None:
    """Refuse an objective or an attention that is for the other kind of model.

    Raises:
        Problem: the model has no encoder, or has one.
    """
    if objective.needs_encoder and not codec.encoder_decoder:
        what = f"{objective.name()} is for models with an encoder, and {run.model.path} has a decoder only"
        raise Problem("objective", what, "Use sft")
    if codec.encoder_decoder and run.model.attention == "forest":
        what = "is forest, and a model with an encoder and a decoder takes none"
        raise Problem("model.attention", what, "Set it to auto or padded")


def check_head(objective: Objective, found: Found) -> None:
    """Refuse a model whose last layer is gone, and an adapter that was trained under another one.

    Raises:
        Problem: with the model to start from instead.
    """
    own, wanted = head_of(found).kind, objective.head.kind
    if own == wanted or (found.adapter is None and wanted != "lm"):
        return
    if found.adapter is None and reads_both_ways(load_config(found)):
        return  # an encoder never had one that writes; its shapes are refused in these words
    part = "model" if found.adapter is None else "adapter"
    hint = "Fold it first (tunesmith fold), and start from the folded model"
    if wanted == "lm":
        hint = "Start from the model that it was made from"
    what = f"this {part} {DOES[own]}, and {objective.name()} needs one that {DOES[wanted]}"
    raise Problem("model.path", what, hint)


def check_held(held: Held, method: Method) -> None:
    """Refuse a method over a base that is quantised where it cannot stand on one.

    Raises:
        Problem: with the base or the method to use instead.
    """
    if held.still:
        hint = "Train on a GPU, or start from the plain model with model.quantize: nf4"
        raise Problem("model.path", f"nothing trains over this base: {held.still}", hint)
    if why := method.unfit(held):
        over = "its files are quantised" if held.own else f"model.quantize is {held.kind}"
        raise Problem(
            f"method.{method.name()}",
            f"needs a plain base ({why}), and {over}",
            "Start from the plain model" if held.own else "Set model.quantize to none, or use the method lora",
        )


def check_fit(run: Run, objective: Objective, found: Found) -> None:
    """Put method and optimizer on the model's shapes, without its weights: what does not fit is refused early.

    Raises:
        Problem: an option does not fit this model, or this machine.
    """
    method, optimizer = cast(Method, run.method), cast(OptimizerSpec, run.optimizer)
    choice = choose(run.model.device, run.model.dtype)
    optimizer.check(choice.device, choice.dtype)
    if optimizer.of_base and not method.changes_base:
        raise Problem(
            f"optimizer.{optimizer.name()}",
            f"is for the base's own weights, and the method {method.name()} learns others beside them",
            "Use the method full, or the optimizer adamw",
        )
    if found.adapter is None:
        trained = method.outline().apply(skeleton(found, objective.head))
        optimizer.build(named(method.groups(trained, optimizer.lr), trained))
