"""Settings of an evaluation, with the help that the command line and the pages show."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tunesmith.core.options import Options
from tunesmith.core.plugins import Member, Plugin
from tunesmith.core.run import DataSpec
from tunesmith.generate.sampling import Sampling

Positive = Annotated[int, Field(gt=0)]


class Settings(Options):
    """What is measured, on how many rows, and how. The defaults give the same figures every time."""

    max_rows: Positive = 500
    """At most so many rows of named data are measured, drawn by the seed; a run's own validation rows all are."""
    generate: Annotated[int, Field(ge=0)] = 0
    """Answers to generate and score, for at most so many rows; 0 for none."""
    metrics: tuple[Annotated[Plugin, Member("metric")], ...] = Field(
        default=("exact_match", "chrf", "rouge"), validate_default=True
    )
    """What generated answers are scored by; the first sorts the samples."""
    rewards: tuple[Annotated[Plugin, Member("reward")], ...] = ()
    """What answers to prompts are judged by; by default as in the run. A chat is asked without its last answer, which
    is then the key."""
    sampling: Sampling = Sampling()
    """How answers are drawn; greedy by default."""
    labels: Literal["auto", "probability", "per_token", "none"] = "auto"
    """Choose among labels where answers are few: by the probability of the whole answer (`auto`, `probability`), by
    its mean over the tokens, or not at all."""
    training: tuple[DataSpec, ...] = ()
    """Rows that the model learned from, for the baselines and the set of labels; a run knows its own."""
    against: Literal["base", "nothing"] = "base"
    """Measure a tuned model beside its base, or alone."""
    beside: tuple[str, ...] = ()
    """Further runs, adapters or models that are measured on the same rows, a column each."""
    samples: Annotated[int, Field(ge=0)] = 5
    """How many of the best and of the worst rows are shown."""
    tokens_per_batch: Positive = 8192
    """Tokens computed at once; memory follows from it, results do not."""
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None
    """Where to compute; by default as in the run, or what the machine has."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Number type of the weights; by default as in the run, or what is fast and safe here."""
    quantize: Literal["auto", "none", "nf4", "fp4", "int8"] | None = None
    """In how many bits the base is held; by default as in the run, or as its files came."""
    weights: Literal["plain", "int8", "int4"] = "plain"
    """On a CPU, measure the model with the base's matrices rounded to 8 or 4 bits, as the engine `local` can hold
    them."""
    seed: int = 0
    """Which rows are drawn, and how intervals are."""

    @field_validator("metrics", "rewards", "beside", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, dict)) else value
