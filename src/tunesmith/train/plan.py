"""The plan of a run: steps, tokens, memory by component, disk and time, before any weight is loaded.

Run ─▶ gather (data, stream) ─▶ survey (shapes, memory) ─▶ Plan, or a refusal of what cannot fit
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.run import Run
from tunesmith.models.device import choose
from tunesmith.train.setup import Inputs, choose_checkpointing, gather, shape
from tunesmith.train.survey import Shape, check_disk, check_fits, gigabytes, products_per_second
from tunesmith.train.tell import Hear

SHARE_OF_PEAK = 0.5
"""Share of the speed of large matrix products that a training step is taken to reach."""

Line = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """What a run will take: lines of (component, figure) by section, and the bytes they stand for."""

    sections: dict[str, list[Line]]
    memory_bytes: int
    disk_bytes: int
    seconds: float
    steps: int

    @property
    def lines(self) -> list[Line]:
        return [line for section in self.sections.values() for line in section]


def plan(run: Run, *, base: Path = Path(), hear: Hear = lambda event: None) -> Plan:
    """Count what a run will take.

    Raises:
        Problem: a fault of the run or its data, or a run that cannot fit in memory or on the disk.
    """
    inputs = choose_checkpointing(gather(run, base, hear), hear)
    counted = shape(inputs, inputs.run.train.checkpoint_activations == "on")
    choice = choose(inputs.run.model.device, inputs.run.model.dtype)
    check_fits(counted.memory, choice.device, "plan")
    disk = _disk(inputs, counted)
    check_disk(Path(run.output or "runs"), disk)
    tokens = _tokens(inputs)
    rate = products_per_second(choice.device, choice.dtype)
    seconds = _operations(inputs, counted) * tokens / (rate * SHARE_OF_PEAK)
    sections = {
        "data and steps": _data_lines(inputs, tokens),
        "model": _model_lines(counted),
        "memory": [*counted.memory.lines(), ("in all", gigabytes(counted.memory.total))],
        "disk": _disk_lines(inputs, counted, disk),
        "time": [
            ("matrix products here", f"{rate / 1e9:,.0f} GFLOP/s (measured)"),
            *_time_lines(inputs, seconds),
        ],
    }
    return Plan(sections, counted.memory.total, disk, seconds, inputs.total)


def _time_lines(inputs: Inputs, seconds: float) -> list[Line]:
    if not inputs.objective.sampled:
        return [("training, roughly", _duration(seconds))]
    drawing = "beside that, one token after the other; not reckoned here"
    return [("learning, roughly, at most", _duration(seconds)), ("drawing answers", drawing)]


def _tokens(inputs: Inputs) -> int:
    """Tokens that the run learns from, each as often as it does; those that are drawn are as many as may be."""
    each = sum(int(inputs.lengths[inputs.stream.rows_of_step(step)].sum()) for step in range(inputs.total))
    return each * inputs.objective.passes


def _operations(inputs: Inputs, counted: Shape) -> float:
    """Floating-point operations a token: 2 a weight forward, 2 for the gradient by inputs, 2 by weights that learn.

    A token of an encoder-decoder meets one of two sides, about half of the weights.
    """
    forwards = 2 if inputs.run.train.checkpoint_activations == "on" else 1
    whole = 2.0 * counted.all * (forwards + 1) + 2.0 * counted.trainable
    return whole / 2 if inputs.codec.encoder_decoder else whole


def _data_lines(inputs: Inputs, tokens: int) -> list[Line]:
    train, drawn = inputs.prepared.train, inputs.objective.sampled
    learned = f"of which {int(train.learned.sum()):,} are learned"
    if drawn:
        learned = f"and at most {drawn * len(train):,} drawn in answers"
    return [
        ("rows to learn from", f"{len(train):,}"),
        ("rows for validation", f"{len(inputs.prepared.validation):,}"),
        ("tokens of an epoch", f"{int(train.lengths.sum()):,}, {learned}"),
        ("longest row", f"{inputs.longest:,} tokens" + (" with its answer" if drawn else "")),
        ("steps", f"{inputs.total:,}, {inputs.stream.steps_per_epoch:,} an epoch"),
        ("tokens learned from, at most" if drawn else "tokens of all steps", f"{tokens:,}"),
    ]


def _model_lines(counted: Shape) -> list[Line]:
    share = counted.trainable / counted.all
    return [
        ("parameters", f"{counted.all:,}"),
        ("of these or beside them, learned", f"{counted.trainable:,} ({share:.2%})"),
        *((f"in {part}", f"{number:,}") for part, number in counted.parts.items()),
    ]


def _result_bytes(inputs: Inputs, counted: Shape) -> int:
    """Bytes of the model or adapter that is saved."""
    if not inputs.method.changes_base:
        return 4 * counted.trainable
    return sum(file.stat().st_size for file in inputs.found.base.glob("*.safetensors"))


def _disk(inputs: Inputs, counted: Shape) -> int:
    """Checkpoints (one more while it is written), the best weights, the result."""
    checkpoint = counted.memory.learns + counted.memory.optimizer
    whole = (inputs.run.train.keep_checkpoints + 1) * checkpoint
    return whole + 2 * counted.memory.learns + _result_bytes(inputs, counted)


def _disk_lines(inputs: Inputs, counted: Shape, disk: int) -> list[Line]:
    checkpoint = counted.memory.learns + counted.memory.optimizer
    return [
        ("one checkpoint", gigabytes(checkpoint)),
        ("the result", gigabytes(_result_bytes(inputs, counted))),
        ("at most in all", gigabytes(disk)),
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:,.0f} seconds"
    return f"{seconds / 60:,.0f} minutes" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"
