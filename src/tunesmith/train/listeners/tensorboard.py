"""TensorBoard: the run's figures as curves in `RUN/tensorboard`."""

from __future__ import annotations

from typing import Any

from tunesmith.core.events import Event
from tunesmith.core.problem import missing_extra
from tunesmith.core.rundir import RunDir
from tunesmith.train.listeners import Hears, Listener


class Tensorboard(Listener):
    """Write loss, learning rate, gradient norm and validation figures for TensorBoard."""

    folder: str = "tensorboard"
    """Where in the run folder the curves go."""

    def open(self, folder: RunDir) -> Hears:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("trackers", "tensorboard") from error
        return _Writes(SummaryWriter(str(folder.path / self.folder)))


class _Writes(Hears):
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def hear(self, event: Event) -> None:
        if event.kind not in ("step", "validate"):
            return
        group = "train" if event.kind == "step" else "validation"
        for name, value in event.values.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(f"{group}/{name}", value, event.step, walltime=event.time)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
