"""LoRA: a low-rank change beside frozen weights, through PEFT.

    W' = W + s B A,   A [r, in], B [out, r],   s = alpha / r  (rank-stabilised: alpha / sqrt r)

Hu et al., arXiv:2106.09685; rsLoRA arXiv:2312.03732; DoRA arXiv:2402.09353; PiSSA arXiv:2404.02948;
OLoRA arXiv:2406.01775. Starts that change the base (PiSSA, OLoRA) are saved as plain LoRA of twice the rank, whose
base is the untouched model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from pydantic import Field, field_validator, model_validator
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.core.problem import Problem, nearest
from tunesmith.methods import Method, hold_in_float32

STARTS = {"zero": True, "gaussian": "gaussian", "orthogonal": "orthogonal", "pissa": "pissa", "olora": "olora"}
CHANGES_BASE = ("pissa", "olora")


class Lora(Method):
    """A low-rank change beside frozen weights: little memory, a small file, and it can be switched off."""

    changes_base: ClassVar[bool] = False

    rank: Annotated[int, Field(gt=0)] = 8
    """Columns of the change; more can learn more and takes more memory."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Strength of the change: it is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of inputs of the change that is left out at random while training."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers that get a change, by the end of their names, such as `q_proj`; `all-linear` for all but the head."""
    scaling: Literal["classic", "rank_stabilized"] = "classic"
    """alpha / rank, or alpha / sqrt(rank), which keeps large ranks learning."""
    form: Literal["plain", "dora"] = "plain"
    """`dora` learns the length of each column apart from its direction: often better, slower."""
    start: Literal["zero", "gaussian", "orthogonal", "pissa", "olora"] = "zero"
    """First values: a change of zero, or the base's principal (pissa) or orthogonal (olora) directions."""

    @field_validator("targets", mode="before", json_schema_input_type=tuple[str, ...] | str)
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Lora:
        if self.form == "dora" and self.start in CHANGES_BASE:
            problem = Problem("", f"form dora and start {self.start} do not go together", "Choose one of them")
            raise ValueError(problem) from problem
        return self

    @property
    def reversible(self) -> bool:
        return self.start not in CHANGES_BASE

    def apply(self, model: PreTrainedModel) -> nn.Module:
        self._check(model)
        try:
            trained = get_peft_model(model, self._config(model))
        except ValueError as error:
            what = f"PEFT refuses them for {type(model).__name__} ({str(error).splitlines()[0]})"
            raise Problem(
                "method.lora.targets", what, "Name other targets, or use the method freeze or full"
            ) from error
        if self.start in CHANGES_BASE:
            _remember_start(trained)
        hold_in_float32(trained)
        return trained

    def outline(self) -> Method:
        return self.model_copy(update={"start": "zero"})

    def adopt(self, model: PreTrainedModel, adapter: Path) -> nn.Module:
        saved = PeftConfig.from_pretrained(str(adapter))
        if not isinstance(saved, LoraConfig):
            raise Problem(str(adapter), f"is a {saved.peft_type} adapter, not LoRA", "Fold it first: tunesmith fold")
        self._check_adopted(saved)
        saved.lora_dropout = self.dropout
        trained = PeftModel.from_pretrained(model, str(adapter), is_trainable=True, config=saved)
        hold_in_float32(trained)
        return trained

    def off(self, model: nn.Module) -> AbstractContextManager[object]:
        if not self.reversible:
            return super().off(model)
        return _peft(model).disable_adapter()

    def save(self, model: nn.Module, folder: Path) -> None:
        trained = _peft(model)
        start = getattr(trained, "start_folder", None)
        convert = {} if start is None else {"path_initial_model_for_weight_conversion": start.name}
        trained.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False, **convert)
        (folder / "README.md").unlink(missing_ok=True)

    def fold(self, model: nn.Module) -> PreTrainedModel:
        return _peft(model).merge_and_unload()  # type: ignore[return-value]

    def _config(self, model: PreTrainedModel) -> LoraConfig:
        targets = "all-linear" if self.targets == ("all-linear",) else list(self.targets)
        return LoraConfig(
            task_type=TaskType.SEQ_CLS if hasattr(model, "score") else TaskType.CAUSAL_LM,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.scaling == "rank_stabilized",
            use_dora=self.form == "dora",
            init_lora_weights=STARTS[self.start],  # type: ignore[arg-type]
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )

    def _check(self, model: PreTrainedModel) -> None:
        self._check_start(model)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
        ends = {name.rpartition(".")[2] for name in layers}
        for target in self.targets:
            if target == "all-linear":
                continue
            chosen = [module for name, module in model.named_modules() if name == target or name.endswith(f".{target}")]
            if not chosen:
                raise Problem("method.lora.targets", f"no layer's name ends in {target!r}", nearest(target, ends))
            self._check_tied(model, target, chosen)
            for module in chosen:
                self._check_rank(target, module)

    def _check_adopted(self, saved: LoraConfig) -> None:
        """An adapter keeps the shape it was made with; `all-linear` stands for the layers that it has."""
        own = {
            "rank": (self.rank, saved.r),
            "alpha": (self.alpha, float(saved.lora_alpha)),
            "scaling": (self.scaling, "rank_stabilized" if saved.use_rslora else "classic"),
            "form": (self.form, "dora" if saved.use_dora else "plain"),
            "start": (self.start, "zero"),
        }
        if self.targets != ("all-linear",) and not isinstance(saved.target_modules, str):
            own["targets"] = (sorted(self.targets), sorted(saved.target_modules or ()))
        for option, (wanted, found) in own.items():
            if wanted != found:
                raise Problem(
                    f"method.lora.{option}",
                    f"is {wanted}, and the adapter that is gone on with has {found}",
                    f"Set {option}: {found}, or fold the adapter first and train a new one",
                )

    def _check_tied(self, model: PreTrainedModel, target: str, chosen: Sequence[nn.Module]) -> None:
        tied = model.config.get_text_config().tie_word_embeddings
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        if tied and any(module is end for module in chosen for end in ends):
            raise Problem(
                "method.lora.targets",
                f"{target} shares its weights with the other end of the model, so a change of it cannot be folded",
                "Leave it out, or use the method freeze with names",
            )

    def _check_start(self, model: PreTrainedModel) -> None:
        if self.start == "olora" and any(isinstance(module, Conv1D) for module in model.modules()):
            raise Problem(
                "method.lora.start",
                f"olora does not work for {type(model).__name__}, whose layers hold their weights transposed",
                "Use another start, such as pissa",
            )

    def _check_rank(self, target: str, module: nn.Module) -> None:
        weight = getattr(module, "weight", None)
        if weight is not None and self.rank > min(weight.shape):
            raise Problem(
                "method.lora.rank",
                f"{self.rank} is more than {target} can have, a layer of {tuple(weight.shape)}",
                f"Use {min(weight.shape)} or less",
            )


def _peft(model: nn.Module) -> PeftModel:
    if not isinstance(model, PeftModel):
        raise TypeError(f"expected a PEFT model, not {type(model).__name__}")
    return model


def _remember_start(trained: PeftModel) -> None:
    """Keep the first values of a start that moved them out of the base, to save the difference to them later."""
    folder = tempfile.TemporaryDirectory(prefix="tunesmith-start-")
    config = trained.peft_config["default"]
    chosen, config.init_lora_weights = config.init_lora_weights, True  # type: ignore[attr-defined]
    trained.save_pretrained(folder.name, safe_serialization=True)
    config.init_lora_weights = chosen  # type: ignore[attr-defined]
    trained.start_folder = folder  # type: ignore[assignment]
