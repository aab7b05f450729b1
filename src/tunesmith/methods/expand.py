"""Block expansion: new blocks between the old ones, and only these learn (LLaMA Pro, Wu et al., arXiv:2401.02415).

    old   1  2  3  4  5  6            new blocks are copies whose output projections are zero, so each of them
    new   1  2  3  3' 4  5  6  6'     adds nothing to the residual stream before it has learned something

What comes out is a plain, deeper model of the same architecture: its configuration says how deep, and transformers
loads it without anything else. Blocks that are in the model already, such as those a passthrough merge made, can
learn instead of new ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods import Method, hold_in_float32
from tunesmith.methods._blocks import blocks, single_stack
from tunesmith.models.heads import head_parts
from tunesmith.models.quantize import Held

OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "down_proj", "dense_4h_to_h", "fc2", "w2", "output_linear")
"""Names of the layers that write into the residual stream: first those of attention, then those behind it."""
PLAIN = (bool, int, float, str, tuple, type(None))


class Expand(Method):
    """New blocks between the model's own learn what is new, and the old ones keep what they know."""

    changes_base: ClassVar[bool] = False

    new: Annotated[int, Field(gt=0)] = 2
    """So many new blocks, spread evenly: each is a copy of the block before it, with its outputs set to zero."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Numbers of blocks that are in the model already (from 0) and learn instead; then no new ones are made."""

    @property
    def reversible(self) -> bool:
        return not self.blocks

    def unfit(self, held: Held) -> str:
        return "it copies blocks of the base and lets them learn"

    def apply(self, model: PreTrainedModel) -> nn.Module:
        path, stack = single_stack(model, "method.expand")
        learning = self._own(model, stack) if self.blocks else self._grown(model, path, list(stack))
        model.requires_grad_(False)
        for part in (*learning, *head_parts(model).values()):
            part.requires_grad_()
        hold_in_float32(model)
        return model

    def off(self, model: nn.Module) -> AbstractContextManager[object]:
        found = getattr(model, "expansion", None)
        return super().off(model) if found is None else found.undone(model)

    def _own(self, model: PreTrainedModel, stack: nn.ModuleList) -> list[nn.Module]:
        if (last := max(self.blocks)) >= len(stack):
            raise Problem(
                "method.expand.blocks",
                f"names block {last}, and {type(model).__name__} has the blocks 0 to {len(stack) - 1}",
                "Name blocks that it has, or set new",
            )
        return [stack[number] for number in sorted(set(self.blocks))]

    def _grown(self, model: PreTrainedModel, path: str, old: list[nn.Module]) -> list[nn.Module]:
        """Put the new blocks between the old ones; the new ones."""
        if self.new > len(old):
            what = f"is {self.new}, and {type(model).__name__} has {len(old)} blocks to copy"
            raise Problem("method.expand.new", what, f"Use {len(old)} or less")
        before = _Order(path, tuple(old), _per_layer(model, len(old)))
        ends = {round((number + 1) * len(old) / self.new) - 1 for number in range(self.new)}
        sources = [number for number in range(len(old)) for _ in range(1 + (number in ends))]
        made = [number > 0 and sources[number] == sources[number - 1] for number in range(len(sources))]
        modules = [_copied(old[s]) if new else old[s] for s, new in zip(sources, made, strict=True)]
        lists = {name: [values[s] for s in sources] for name, values in before.lists.items()}
        expected = _probe(model)
        _Order(path, tuple(modules), lists).put(model)
        fresh = [module for module, new in zip(modules, made, strict=True) if new]
        _silence(model, fresh)
        _check_reload(model, path)
        _check_same(model, expected)
        vars(model)["expansion"] = _Expansion(before, _Order(path, tuple(modules), lists))
        return fresh


@dataclass(frozen=True)
class _Order:
    """The blocks of a model in their order, and what its configuration says of each."""

    path: str
    modules: tuple[nn.Module, ...]
    lists: Mapping[str, Sequence[Any]]

    def put(self, model: PreTrainedModel) -> None:
        """Make these the model's blocks: the list, the numbers that caches go by, the configuration."""
        parent, _, name = self.path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.ModuleList(self.modules))
        for number, block in enumerate(self.modules):
            for part in block.modules():
                if hasattr(part, "layer_idx"):
                    part.layer_idx = number  # type: ignore[assignment]
        config = model.config.get_text_config()
        config.num_hidden_layers = len(self.modules)
        for key, values in self.lists.items():
            setattr(config, key, list(values))


@dataclass(frozen=True)
class _Expansion:
    """The blocks before and after."""

    before: _Order
    after: _Order

    @contextmanager
    def undone(self, model: nn.Module) -> Iterator[None]:
        """The model as it was."""
        assert isinstance(model, PreTrainedModel)
        self.before.put(model)
        try:
            yield
        finally:
            self.after.put(model)


def _copied(block: nn.Module) -> nn.Module:
    """A copy of a block that shares the model's configuration, so that a change of it, as of attention, is for all."""
    shared = {id(part.config): part.config for part in block.modules() if hasattr(part, "config")}
    return copy.deepcopy(block, dict(shared))


def _per_layer(model: PreTrainedModel, layers: int) -> dict[str, list[Any]]:
    """What the configuration lists layer by layer, such as `layer_types`."""
    own = vars(model.config.get_text_config()).items()
    return {
        key: list(value) for key, value in own if "layer" in key and isinstance(value, list) and len(value) == layers
    }


def _silence(model: PreTrainedModel, fresh: Sequence[nn.Module]) -> None:
    """Set to zero what the new blocks write into the residual stream.

    Raises:
        Problem: the layers that write are not known.
    """
    for block in blocks(model):
        if not any(block.module is module for module in fresh):
            continue
        parts = [*block.attentions, *([block.mlp] if block.mlp is not None else [])]
        found = [_outputs(part) for part in parts]
        if len(parts) < 2 or not all(found):
            raise Problem(
                "method.expand",
                f"the blocks of {type(model).__name__} have output layers whose names are not known",
                f"Known: {', '.join(OUTPUTS)}. Use the method lora or freeze",
            )
        with torch.no_grad():
            for weight in (weight for weights in found for weight in weights):
                weight.zero_()


def _outputs(part: nn.Module) -> list[Tensor]:
    """Weights and biases of the output layers of a part; experts hold theirs in one tensor."""
    return [
        weight
        for name, weight in part.named_parameters()
        if any(word in OUTPUTS or word == "down_proj_bias" for word in name.split("."))
    ]


def _check_reload(model: PreTrainedModel, path: str) -> None:
    """Refuse a model whose configuration would not give the same blocks when it is loaded again.

    Raises:
        Problem: with the first setting that would be another one.
    """
    with torch.device("meta"):
        again = type(model)(copy.deepcopy(model.config))
    ours, theirs = _settings(model.get_submodule(path)), _settings(again.get_submodule(path))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise Problem(
                "method.expand",
                f"{type(model).__name__} cannot be made deeper: loaded again, {name} would be {theirs.get(name)!r} "
                f"and not {ours.get(name)!r}",
                "Use another method, such as lora",
            )


def _settings(stack: nn.Module) -> dict[str, Any]:
    """What the modules of the blocks hold beside weights: numbers, names, switches; by path."""
    return {
        f"{name}.{key}": value
        for name, module in stack.named_modules()
        for key, value in {"class": type(module).__name__, **vars(module)}.items()
        if isinstance(value, PLAIN) and not key.startswith("_") and key not in ("training", "gradient_checkpointing")
    }


def _probe(model: PreTrainedModel) -> Tensor | None:
    """What the decoder computes of a few tokens; None on a model without memory."""
    if model.device.type == "meta":
        return None
    tokens = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    training = model.training
    model.eval()
    with torch.no_grad():
        states = getattr(model, model.base_model_prefix)(input_ids=tokens, use_cache=False).last_hidden_state
    model.train(training)
    return states


def _check_same(model: PreTrainedModel, expected: Tensor | None) -> None:
    """Refuse new blocks that change what the model computes.

    Raises:
        Problem: they do.
    """
    found = _probe(model)
    if expected is not None and found is not None and not torch.equal(found, expected):
        raise Problem(
            "method.expand",
            f"new blocks in {type(model).__name__} change what it computes, though their outputs are zero",
            "Its blocks go by their number, or do more than add to a sum; use another method, such as lora",
        )
