"""Recipes of experts, in the YAML of mergekit-moe: a base, experts with the prompts that are theirs, and a few choices.

base_model: A
gate_mode: hidden
experts:
  - {source_model: B, positive_prompts: ["Translate this"], negative_prompts: ["Write code"]}
  - {source_model: C, positive_prompts: ["Write code"]}

Every fault of a file is reported at once, each with its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field

from tunesmith.core.options import Options, parse
from tunesmith.core.problem import Problem, Problems, raise_all
from tunesmith.core.yaml_file import Places, parse_yaml, read_text
from tunesmith.merge.names import Name, read_name
from tunesmith.merge.recipe import TYPES, placed

RANDOM = ("random", "uniform_random")
"""Ways to routers that read no prompts."""


def _name(value: Any) -> Any:
    try:
        return read_name(value, "")
    except Problem as problem:
        raise ValueError(problem) from problem


def _all(value: Any) -> Any:
    """What stands for no prompts, and for one."""
    return () if value is None else (value,) if isinstance(value, str) else value


ModelName = Annotated[Name, BeforeValidator(_name)]
Prompts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_all)]


class ExpertSpec(Options):
    """One expert: the model whose MLPs it is, and what its router answers to."""

    source_model: ModelName
    """The model, or MODEL+ADAPTER."""
    positive_prompts: Prompts = ()
    """Prompts that belong to this expert."""
    negative_prompts: Prompts = ()
    """Prompts that do not belong to it; their direction is taken off the router's."""
    residual_scale: float | None = None
    """Multiply what the expert adds (its down projection) by this number."""
    noise_scale: Annotated[float, Field(ge=0)] | None = None
    """Add normal noise of this standard deviation to the expert's weights, so that training can tell equal experts
    apart."""


class Mixture(Options):
    """A mixture of experts to be made of dense models."""

    base_model: ModelName
    """The model that gives configuration, tokenizer and, unless `rest` says otherwise, all that is no MLP."""
    experts: Annotated[tuple[ExpertSpec, ...], Field(min_length=1)]
    """The experts, in their order."""
    shared_experts: tuple[ExpertSpec, ...] = ()
    """One expert that every token goes through, in Qwen2's layout."""
    gate_mode: Literal["hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"] = "hidden"
    """What routers are made from: the last token's hidden state of each prompt (`hidden`, `hidden_last`), the mean over
    its tokens (`hidden_avg`), its token embeddings (`cheap_embed`), or chance."""
    experts_per_token: Annotated[int, Field(ge=1)] = 2
    """How many experts each token goes through."""
    dtype: str | None = None
    """Number type of the result; by default that of each tensor's models."""
    architecture: str | None = None
    """Which layout the result has: `mixtral`, `qwen`, `qwen3`; by default the first that takes these models."""
    rest: Literal["base", "mean"] = "base"
    """Attention, norms, embeddings and head: those of the base model, or the mean of the experts'."""


@dataclass(frozen=True)
class MixtureRecipe:
    """A mixture as a file says it. where: the file, for faults; text: as it is written; lines: of its places."""

    where: str
    text: str
    lines: Places
    mixture: Mixture

    @property
    def sources(self) -> tuple[ExpertSpec, ...]:
        """All experts, the shared ones last."""
        return (*self.mixture.experts, *self.mixture.shared_experts)

    @property
    def models(self) -> tuple[Name, ...]:
        """Every model once, the base first."""
        return tuple(dict.fromkeys((self.mixture.base_model, *(expert.source_model for expert in self.sources))))

    @property
    def stored(self) -> str | None:
        """The number type of the result as safetensors files name it."""
        return TYPES.get((self.mixture.dtype or "").removeprefix("torch."))

    def refuse(self, found: Sequence[Problem]) -> None:
        """Raise faults, if there are any, with their lines.

        Raises:
            Problem: there are.
        """
        raise_all(self.where, [placed(fault, self.where, self.lines) for fault in found])


def is_mixture(path: Path) -> bool:
    """Whether a file is a recipe of experts; one that is no YAML, or several documents, is none.

    Raises:
        Problem: it cannot be read.
    """
    text = read_text(path)
    try:
        value, _ = parse_yaml(text, str(path))
    except Problem:  # told with its place by whoever reads it as another recipe
        return False
    return isinstance(value, Mapping) and "experts" in value


def read_mixture(path: Path) -> MixtureRecipe:
    """The recipe in a file.

    Raises:
        Problem: the file cannot be read; `Problems` with every fault of it and its line.
    """
    text = read_text(path)
    value, lines = parse_yaml(text, str(path))
    if isinstance(value, Mapping) and "merge_method" in value:
        what = "a recipe has either a merge_method or experts"
        raise placed(
            Problem("merge_method", what, "Merge in one file, and name the result in another"), str(path), lines
        )
    try:
        recipe = MixtureRecipe(str(path), text.strip() + "\n", lines, parse(Mixture, cast("Any", value), ""))
    except Problem as fault:
        parts = fault.parts if isinstance(fault, Problems) else (fault,)
        found = [Problem(part.where.lstrip("."), part.what, part.hint) for part in parts]
        raise_all(str(path), [placed(part, str(path), lines) for part in found])
        raise
    recipe.refuse(list(_faults(recipe.mixture)))
    return recipe


def _faults(mixture: Mixture) -> Iterator[Problem]:
    """What the choices say against each other."""
    count = len(mixture.experts)
    if mixture.experts_per_token > count:
        what = f"is {mixture.experts_per_token}, and there are {count} experts"
        yield Problem("experts_per_token", what, f"Set it to {count} or less, or add experts")
    if mixture.dtype is not None and mixture.dtype.removeprefix("torch.") not in TYPES:
        what = f"{mixture.dtype!r} is no number type of weights"
        yield Problem("dtype", what, f"Choose one of {', '.join(TYPES)}")
    for place, experts in (("experts", mixture.experts), ("shared_experts", mixture.shared_experts)):
        for number, expert in enumerate(experts):
            yield from _prompt_faults(f"{place}.{number}", expert, mixture.gate_mode)
    prompts = [(expert.positive_prompts, expert.negative_prompts) for expert in mixture.experts]
    if mixture.gate_mode not in RANDOM and count > 1 and len(set(prompts)) == 1:
        what = "all have the same prompts, so no router could tell them apart"
        yield Problem("experts", what, "Give each the prompts that are its own, or set gate_mode: random")


def _prompt_faults(place: str, expert: ExpertSpec, mode: str) -> Iterator[Problem]:
    if mode not in RANDOM and not expert.positive_prompts:
        what = f"is empty, and gate_mode {mode} makes the router from prompts"
        yield Problem(f"{place}.positive_prompts", what, "Write some that belong to this expert")
    for name in ("positive_prompts", "negative_prompts"):
        if mode in RANDOM and getattr(expert, name):
            yield Problem(f"{place}.{name}", f"has no effect with gate_mode {mode}", "Take it out")
