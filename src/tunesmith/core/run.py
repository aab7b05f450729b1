"""Run: all choices of one experiment, as one frozen value and one YAML file.

    model:     {path: builtin:seedling}
    data:      [{path: pairs.jsonl}]
    objective: {dpo: {beta: 0.1}}
    method:    {lora: {rank: 16}}
    optimizer: {adamw: {lr: 5.0e-5}}
    train:     {epochs: 3, tokens_per_step: 8192}

The docstring of a field is its help everywhere: in `tunesmith new`, in the JSON schema, in the docs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from tunesmith.core.aliases import expand
from tunesmith.core.options import Options, faults
from tunesmith.core.plugins import Member, Plugin
from tunesmith.core.problem import Problem, Problems, raise_all
from tunesmith.core.yaml_file import Places, assign, read_yaml

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Listener = Annotated[Plugin, Member("listener")]

NOT_HELD = {
    "int4": "torchao's 4-bit integers have no CPU kernel, and PEFT puts no adapter on them on a GPU",
    "int2": "no library here trains an adapter over 2-bit weights",
    "fp8": "8-bit floating point is for products of new GPUs, and no adapter trains over it here",
}
"""Widths that one may ask for, and why the base cannot be held in them."""


Lever = Literal["head", "int8", "lora", "mlp", "norm", "rotary", "attention", "fused", "compile"]


class ModelSpec(Options):
    """Which model to start from, and how it is held."""

    path: str
    """A local folder, a Hugging Face id, `modelscope:ID`, the folder of a run or adapter, or a model that ships:
    `builtin:seedling`, `builtin:seedling-chat`."""
    revision: str | None = None
    """Branch, tag or commit of a model on a hub."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; `auto` takes what the machine has and prints why."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights while training; `auto` takes what is fast and safe here and prints why."""
    quantize: Literal["auto", "none", "nf4", "fp4", "int8"] = "auto"
    """Hold a frozen base in 4 bits (`nf4`, `fp4`) or 8 (`int8`); `auto`: as the run or the files it comes from do."""
    attention: Literal["auto", "forest", "padded"] = "auto"
    """`forest` computes no padding and no prompt twice; `padded` is its slow twin; `auto` checks and falls back."""
    fast: Literal["auto", "long", "off"] | tuple[Lever, ...] = "auto"
    """Pieces computed faster while training, by name; `auto`: those that pay on the device; `long`: on a processor with
    a C++ compiler what is between products too, compiled, for runs of minutes and more; `off`: their slow twins."""
    chat_template: str | None = None
    """A Jinja file, or `chatml`, that replaces the tokenizer's own chat template; it is saved with the result."""

    @field_validator(
        "fast", mode="before", json_schema_input_type=Literal["auto", "long", "off"] | tuple[Lever, ...] | Lever
    )
    @classmethod
    def _one_lever_is_a_list(cls, value: Any) -> Any:
        """YAML reads `off` as false."""
        if isinstance(value, bool):
            return "auto" if value else "off"
        return (value,) if isinstance(value, str) and value not in ("auto", "long", "off") else value

    @field_validator("quantize", mode="before")
    @classmethod
    def _can_be_held(cls, value: Any) -> Any:
        if value in NOT_HELD:
            problem = Problem("", f"{value} cannot be had: {NOT_HELD[value]}", "Use nf4 (4 bits) or int8")
            raise ValueError(problem) from problem
        return "none" if value is None else value


class DataSpec(Options):
    """One source of rows: a file, a folder, or a data set on a hub."""

    path: str
    """A file, a folder, a Hugging Face id, `modelscope:ID`, or `FILE/dataset_info.json:NAME`."""
    format: str | None = None
    """How rows are read (`tunesmith explain` lists the formats); by default it is found, with the reason printed."""
    columns: dict[str, str] = {}
    """Which column plays which part, as {part: column}; only what is named is renamed."""
    tags: dict[str, str] = {}
    """Names of keys and roles in sharegpt rows, as in LLaMA-Factory's `tags`."""
    split: str | None = None
    """Which split of a data set on a hub; default `train`."""
    subset: str | None = None
    """Which configuration of a data set on a hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set on a hub."""
    prompt: str | None = None
    """For labelled rows taught as chats: the user's turn, with `{text}` where the text goes."""
    system: str | None = None
    """A system turn for rows that have none."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often the source is seen an epoch: 2 twice, 0.5 every other row; the choice follows from the seed."""
    limit: Positive | None = None
    """At most so many rows, the first ones."""
    on_bad_row: Literal["stop", "quarantine"] = "quarantine"
    """A row that cannot be used either stops the run or is listed in the rejects file with its reason."""


def sources(value: Any) -> Any:
    """Sources as a list of options, whichever way they are written."""
    if isinstance(value, (str, dict)):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return value
    return [{"path": each} if isinstance(each, str) else each for each in cast("list[Any]", value)]


Sources = Annotated[
    tuple[DataSpec, ...],
    BeforeValidator(sources, json_schema_input_type=tuple[DataSpec | str, ...] | DataSpec | str),
]
"""One source or several; a path where there is no more to say."""


class ValidationSpec(Options):
    """What the validation loss is measured on; no row may stand on both sides."""

    fraction: Share = 0.05
    """Share of the training rows set aside, chosen by a hash of their content; 0 for none."""
    data: Sources = ()
    """Sources of their own for validation; then nothing is set aside."""
    max_rows: Positive = 500
    """At most so many rows are measured."""


class TrainSpec(Options):
    """How long, in which portions, and what is kept."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """How often every row is seen."""
    steps: Positive | None = None
    """Stop after so many steps, whatever the epochs say."""
    tokens_per_step: Positive | None = None
    """Tokens of one optimizer step (the global batch); whole rows are taken until it is full. Default 8192."""
    rows_per_step: Positive | None = None
    """Rows of one optimizer step, instead of `tokens_per_step`."""
    tokens_per_batch: Positive | None = None
    """Tokens computed at once; memory follows from it, results do not. Default: 2048 on a processor, else 4096."""
    share_prefixes: bool = True
    """Compute context that rows of a micro-batch begin with, such as a system prompt, once for all of them: the same
    losses and gradients. Without effect where a model takes no forest, with NEFTune and with mixture_of_depths."""
    max_tokens: Positive | None = None
    """The longest row, in tokens. Default: 1024, or the model's context where that is shorter."""
    over_long: Literal["auto", "refuse", "drop", "truncate", "split"] = "auto"
    """What happens to longer rows; each choice but `refuse` is counted and listed. `auto`: plain text is split, all
    else dropped."""
    learn: Literal["answers", "last", "all"] = "answers"
    """Which turns of a chat are learned: every assistant turn, the last one, or all tokens."""
    order: Literal["shuffled", "given"] = "shuffled"
    """The order of rows; shuffled follows from (seed, epoch, index) alone."""
    seed: int = 0
    """Every random choice of the run follows from it."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up. `wsd` (warm-up, stable, decay) stays up until the cool-down, so
    a run can be made longer or shorter while it stays up."""
    cooldown: Annotated[float, Field(gt=0)] = 0.2
    """Cool-down of `wsd`, in a straight line: a share of all steps if below 1, else a number of steps."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Warm-up: a share of all steps if below 1, else a number of steps."""
    final_lr: Share = 0.0
    """Share of the learning rate that is left at the end of the schedule."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; longer gradients are scaled down. null for none."""
    checkpoint_activations: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass: less memory, a third more time. `auto` asks the plan."""
    neftune: Annotated[float, Field(ge=0)] = 0.0
    """NEFTune: uniform noise of this alpha on the embeddings while training (arXiv:2310.05914)."""
    validate_every: Annotated[float, Field(gt=0)] = 0.1
    """Validation: a share of all steps if below 1, else a number of steps. Start and end are always measured."""
    patience: Positive | None = None
    """Stop when the validation loss has not fallen for so many measurements."""
    keep: Literal["best", "last"] = "best"
    """Which weights the run ends with: those of the lowest validation loss, or the last."""
    checkpoint_every: Annotated[float, Field(gt=0)] = 0.25
    """Checkpoints: a share of all steps if below 1, else a number of steps."""
    keep_checkpoints: Positive = 2
    """How many checkpoints stay on disk, beside the best."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """A loss or gradient that is not finite: stop, skip the step and count it, or go back to the last checkpoint."""
    listeners: tuple[Listener, ...] = Field(default=cast(Any, ("plot",)), validate_default=True)
    """Who is told of events beside the run folder: `plot`, `tensorboard` …; none of them can stop training."""

    @field_validator("listeners", mode="before", json_schema_input_type=tuple[Listener, ...] | Listener)
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, dict)) else value

    @field_validator(
        "checkpoint_activations", mode="before", json_schema_input_type=Literal["auto", "on", "off"] | bool
    )
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_size_of_step(self) -> TrainSpec:
        if self.tokens_per_step and self.rows_per_step:
            problem = Problem(
                "",
                "tokens_per_step and rows_per_step are both set, and a step has one size",
                "Take one of them out",
            )
            raise ValueError(problem) from problem
        return self


class Run(Options):
    """All choices of one experiment."""

    model: ModelSpec
    """The model to start from."""
    data: Sources = Field(min_length=1)
    """Where the rows come from; several sources are mixed by their weights."""
    objective: Annotated[Plugin, Member("objective")] = Field(default="sft", validate_default=True)  # type: ignore[assignment]
    """What to get better at."""
    method: Annotated[Plugin, Member("method")] = Field(default="lora", validate_default=True)  # type: ignore[assignment]
    """What may change in the model."""
    optimizer: Annotated[Plugin, Member("optimizer")] = Field(default="adamw", validate_default=True)  # type: ignore[assignment]
    """How a gradient becomes an update."""
    validation: ValidationSpec = ValidationSpec()
    """What the validation loss is measured on."""
    train: TrainSpec = Field(default_factory=TrainSpec)
    """How long, in which portions, and what is kept."""
    output: str | None = None
    """The run folder; by default `runs/` with the run file's name and the time."""

    _told: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _aliases_written_out(cls, value: Any, handler: ModelWrapValidatorHandler[Run]) -> Run:
        if not isinstance(value, dict):
            return handler(value)
        try:
            plain, told = expand(cast("dict[str, Any]", value))
        except Problem as problem:
            raise ValueError(problem) from problem
        run = handler(plain)
        run._told = tuple(told)
        return run

    @field_validator("model", mode="before", json_schema_input_type=ModelSpec | str)
    @classmethod
    def _path_is_enough(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @property
    def told(self) -> tuple[str, ...]:
        """What names in the run file stood for, where they were not those of an option or plug-in."""
        return self._told

    def plain(self) -> dict[str, Any]:
        """The run as plain data, every option written out: what `run.yaml` of a run folder holds."""
        return self.model_dump(mode="json")


def read_run(path: Path, changes: tuple[str, ...] = ()) -> Run:
    """Read a run file, with `a.b=value` changes from the command line.

    Raises:
        Problem: the file cannot be read; `Problems` with every fault of it and its line.
    """
    value, places = read_yaml(path)
    value = _long_forms(value)
    for change in changes:
        assign(value, change)
    return parse_run(value, str(path), places)


def _long_forms(value: Any) -> Any:
    """Paths that stand for a model or for sources written out, so that changes can name their parts."""
    if not isinstance(value, dict):
        return value
    out = dict(cast("dict[str, Any]", value))
    if isinstance(out.get("model"), str):
        out["model"] = {"path": out["model"]}
    if "data" in out:
        out["data"] = sources(out["data"])
    if "validation" in out:
        out["validation"] = _long_forms(out["validation"])
    return out


def parse_run(value: Any, where: str, places: Places | None = None) -> Run:
    """A Run from plain data; every fault is reported, each with its line if `places` knows it.

    Raises:
        Problem: the value is no run.
    """
    if not isinstance(value, dict):
        raise Problem(where, f"a run file holds options by name; the value seen is {value!r}")
    try:
        return Run.model_validate(value)
    except ValidationError as error:
        found = [_placed(fault, where, places) for fault in faults(error, "", Run)]
        raise_all(where, found)
        raise


def _placed(fault: Problem, where: str, places: Places | None) -> Problem:
    dotted = fault.where.strip(".")
    line = places.line(dotted) if places else 0
    file = f"{where}:{line}" if line else where
    if isinstance(fault, Problems):
        return Problems(file, [_placed(part, where, places) for part in fault.parts])
    return Problem(f"{file}: {dotted}" if dotted else file, fault.what, fault.hint)
