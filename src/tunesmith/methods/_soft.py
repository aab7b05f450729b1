"""What soft prompts share: n learned vectors before every row, held by PEFT's classes, computed as a common ancestor.

    options ─▶ PEFT's configuration ─▶ encoder of the vectors ─▶ models/ancestor (training, measuring, answers)
                                            └── saved as the vectors themselves: PEFT loads them

The base stays as it is, so base and adapter are served together: the local engine does it, and PEFT's own forward for
one row at a time or rows padded on the right.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from peft import PeftConfig, PeftModel, PeftType, PromptLearningConfig, get_peft_model, load_peft_weights
from peft.utils import set_peft_model_state_dict
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods import Method, hold_in_float32
from tunesmith.methods._through_peft import heeded, task, wrapped
from tunesmith.models.ancestor import unfoldable, without
from tunesmith.models.load import keep_head, load_codec
from tunesmith.models.probe import check_ancestor
from tunesmith.models.source import find

Count = Annotated[int, Field(gt=0)]


class SoftPrompt(Method):
    """A method whose weights are vectors before every row."""

    changes_base: ClassVar[bool] = False
    usual_lr: ClassVar[float] = 1e-2

    tokens: Count = 20
    """Learned vectors before every row; each takes one place of the model's context."""

    @property
    def reversible(self) -> bool:
        return True

    @property
    def starts_at_identity(self) -> bool:
        return False

    @property
    def virtual_tokens(self) -> int:
        return self.tokens

    @abstractmethod
    def _config(self, model: PreTrainedModel) -> PromptLearningConfig:
        """PEFT's configuration for a model."""

    @abstractmethod
    def _gone_on_with(self, saved: PeftConfig) -> bool:
        """Whether the vectors of a saved adapter are what this method learns."""

    def _start(self, trained: PeftModel) -> None:
        """Set first values that are not PEFT's own."""

    def outline(self) -> SoftPrompt:
        return self

    def apply(self, model: PreTrainedModel) -> nn.Module:
        self._check(model)
        try:
            with heeded(self._place):
                trained = get_peft_model(model, self._config(model))
        except ValueError as error:
            raise self._misfit(model, str(error).splitlines()[0]) from error
        assert isinstance(trained, PeftModel)
        hold_in_float32(trained)
        if model.device.type != "meta":
            self._start(trained)
            self._prove(model, trained)
        return trained

    def adopt(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        saved = PeftConfig.from_pretrained(str(adapter))
        if not self._gone_on_with(saved):
            kind = PeftType(saved.peft_type)
            raise Problem(
                str(adapter),
                f"is a {kind.value} adapter, which the method {self.name()} cannot go on with",
                _GOING_ON.get(kind, "Fold it first (tunesmith fold), or name the method that made it"),
            )
        found = saved.num_virtual_tokens  # type: ignore[attr-defined]
        if found != self.tokens:
            raise Problem(
                f"{self._place}.tokens",
                f"is {self.tokens}, and the adapter that is gone on with has {found}",
                f"Set tokens: {found}",
            )
        if self.outline() != self:
            what = "sets first values, and the adapter that is gone on with has values already"
            raise Problem(f"{self._place}.start", what, "Take it out")
        trained = wrapped(self.apply(model))
        try:
            set_peft_model_state_dict(trained, load_peft_weights(str(adapter), device="cpu"))
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise Problem(str(adapter), f"has vectors of another shape ({why})", "Take its own base") from error
        return trained

    def off(self, model: nn.Module) -> AbstractContextManager[object]:
        return without(wrapped(model))

    def save(self, model: nn.Module, folder: Path) -> None:
        with heeded(str(folder)):
            wrapped(model).save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        keep_head(wrapped(model).get_base_model(), folder)  # type: ignore[arg-type]
        (folder / "README.md").unlink(missing_ok=True)

    def fold(self, model: nn.Module) -> PreTrainedModel:
        raise unfoldable(f"method {self.name()}")

    @property
    def _place(self) -> str:
        return f"method.{self.name()}"

    def _common(self, model: PreTrainedModel) -> dict[str, Any]:
        """What every configuration of PEFT says."""
        return {"task_type": task(model), "num_virtual_tokens": self.tokens, "num_transformer_submodules": 1}

    def _check(self, model: PreTrainedModel) -> None:
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and self.tokens >= context:
            raise Problem(
                f"{self._place}.tokens",
                f"is {self.tokens}, and the model's whole context is {context}",
                "Use far fewer, such as 20: the rows need places too",
            )

    def _prove(self, model: PreTrainedModel, trained: PeftModel) -> None:
        if (reason := check_ancestor(model, trained)) is not None:
            raise self._misfit(model, reason)

    def _misfit(self, model: PreTrainedModel, reason: str) -> Problem:
        return Problem(
            self._place,
            f"does not work for {type(model).__name__} ({reason})",
            "Use the method lora, or prompt, whose vectors are input like any other",
        )


_GOING_ON = {
    PeftType.P_TUNING: "Its encoder is not saved, only its vectors: go on with the method prompt",
    PeftType.PREFIX_TUNING: "Go on with the method p_tuning_v2, or prefix with projection: none",
    PeftType.PROMPT_TUNING: "Go on with the method prompt",
}


def text_tokens(model: PreTrainedModel, text: str, count: int, place: str) -> Tensor:
    """[count] the tokens of a text, repeated or cut, by the tokenizer in the model's folder.

    Raises:
        Problem: the model came from no folder, so there is no tokenizer.
    """
    folder = model.config.name_or_path
    if not folder:
        raise Problem(place, "needs the model's tokenizer, and this model came from no folder", "Load it from one")
    tokens = torch.tensor(load_codec(find(folder)).encode_text(text), device=model.device)
    return tokens[torch.arange(count, device=model.device) % len(tokens)]


def vectors_of(trained: PeftModel) -> Tensor:
    """The weight that holds the learned vectors, [n, …]."""
    encoder: Any = trained.prompt_encoder[str(trained.active_adapter)]
    return encoder.embedding.weight
