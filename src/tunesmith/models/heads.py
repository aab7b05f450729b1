"""Heads: which last layer a model has, for which labels, and which of its parts belong to it.

    lm      next tokens                  score   numbers for each row, one a label, or a single one
    states  none, hidden states alone    tags    numbers for each token, one a label

What a language model's head computes is in `likelihood`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tunesmith.models.pooling import Pooling

Kind = Literal["lm", "score", "tags", "states"]
KINDS: dict[Kind, str] = {"score": "ForSequenceClassification", "tags": "ForTokenClassification"}
"""How transformers ends the names of its classes with a head for labels."""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Which last layer a model has.

    kind: `lm` next tokens; `score` numbers for each row (one a label, or a single one); `tags` numbers for each token,
    one a label; `states` no head, hidden states alone. labels: their names in order, empty for a single number;
    several: whether a row may have several labels at once; pooling: how states become vectors, `other` where in a way
    that is not known here, None where nothing is said of it.
    """

    kind: Kind = "lm"
    labels: tuple[str, ...] = ()
    several: bool = False
    pooling: Pooling | Literal["other"] | None = None

    @property
    def outputs(self) -> int:
        """Numbers that a row, or a token, gets."""
        return max(1, len(self.labels))

    @property
    def problem(self) -> str | None:
        """transformers' name for what the numbers stand for."""
        if self.kind != "score":
            return None
        if not self.labels:
            return "regression"
        return "multi_label_classification" if self.several else "single_label_classification"

    def settings(self) -> dict[str, Any]:
        """What transformers' configurations hold of the head; nothing for one without labels or scores."""
        if self.kind not in KINDS:
            return {}
        names = dict(enumerate(self.labels or ("LABEL_0",)))
        ids = {name: number for number, name in names.items()}
        return {"num_labels": self.outputs, "id2label": names, "label2id": ids, "problem_type": self.problem}

    def put_into(self, config: PreTrainedConfig) -> None:
        """Write the head into a model's configuration."""
        for name, value in self.settings().items():
            setattr(config, name, value)

    @classmethod
    def of(cls, model: PreTrainedModel) -> HeadSpec:
        """The head that a model has."""
        kind: Kind | None = next((kind for kind, end in KINDS.items() if type(model).__name__.endswith(end)), None)
        if kind is None:
            return cls("states" if model.get_output_embeddings() is None else "lm")
        return cls.saved(kind, model.config.to_dict())

    @classmethod
    def saved(cls, kind: Kind, config: Mapping[str, Any]) -> HeadSpec:
        """The head of a kind that a configuration, as plain data, tells of.

        Labels without a configuration's word on them are transformers' own: two, by number.
        """
        names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
        labels = tuple(names.get(number, f"LABEL_{number}") for number in range(len(names) or 2))
        several = config.get("problem_type") == "multi_label_classification"
        if kind == "score" and len(labels) == 1 and not several:
            labels = ()
        return cls(kind, labels, several)


def reads_both_ways(config: PreTrainedConfig) -> bool:
    """Whether a model is an encoder alone, as BERT is: it reads a whole text at once and writes none."""
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return masked and not config.is_encoder_decoder and not getattr(config, "is_decoder", False)


def beyond(model: PreTrainedModel) -> dict[str, nn.Module]:
    """What stands in a model after its base, in order, by name: head, and dropout before it."""
    return {name: part for name, part in model.named_children() if part is not model.base_model}


def head_parts(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The parts of a head for labels or scores, by their paths in the model; none in other models.

    An encoder's pooler belongs to them: many files come without one.
    """
    if HeadSpec.of(model).kind not in KINDS:
        return {}
    found = {name: part for name, part in beyond(model).items() if any(True for _ in part.parameters())}
    pooler = getattr(model.base_model, "pooler", None)
    if isinstance(pooler, nn.Module):
        found[f"{model.base_model_prefix}.pooler"] = pooler
    return found
