"""Prefix tuning: every layer's attention finds n learned keys and values before those of the text.

    attention(q, [P_K; K], [P_V; V]),   [P_K, P_V] of all layers = W₂ tanh(W₁ e + b₁) + b₂   or free

Li & Liang, arXiv:2101.00190. Through the MLP (the paper's way) few numbers steer all layers, which trains more steadily
and takes a matrix of hidden x layers x 2 x width while training; only the keys and values are saved, as PEFT's
PREFIX_TUNING, which PEFT loads; vLLM and other servers of LoRA adapters do not. PEFT's prefix crashes with recomputed
activations (train.checkpoint_activations); here it works on forests.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig
from pydantic import model_validator
from transformers import DynamicCache, PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods._deep import DeepPrompt
from tunesmith.methods._soft import Count, text_tokens, vectors_of

HIDDEN = 512


class Prefix(DeepPrompt):
    """Learned keys and values in every layer, made by a small network while training."""

    projection: Literal["mlp", "none"] = "mlp"
    """`mlp` makes keys and values from small vectors while training; with `none` they learn themselves."""
    hidden: Count = HIDDEN
    """Width of the MLP."""
    start: Literal["random", "text"] = "random"
    """First values: random numbers, or with projection none the keys and values of `text` as the base reads it."""
    text: str = ""
    """With start text: what the prefix begins as, best the task in words; repeated or cut to `tokens`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Prefix:
        faults = {
            "start text needs the projection none: the mlp has values of its own": self.start == "text"
            and self.projection == "mlp",
            "start text and text go together": (self.start == "text") != bool(self.text.strip()),
            "hidden is for the projection mlp": self.projection == "none" and self.hidden != HIDDEN,
        }
        for fault, found in faults.items():
            if found:
                problem = Problem("", fault, "Change one of the two")
                raise ValueError(problem) from problem
        return self

    def outline(self) -> Prefix:
        return self.model_copy(update={"start": "random", "text": ""}) if self.start == "text" else self

    def _config(self, model: PreTrainedModel) -> PrefixTuningConfig:
        projected = {"prefix_projection": True, "encoder_hidden_size": self.hidden}
        return self._prefix(model, **(projected if self.projection == "mlp" else {}))

    def _gone_on_with(self, saved: PeftConfig) -> bool:
        return super()._gone_on_with(saved) and self.projection == "none"

    def _start(self, trained: PeftModel) -> None:
        if self.start != "text":
            return
        model: PreTrainedModel = trained.get_base_model()  # type: ignore[assignment]
        tokens = text_tokens(model, self.text, self.tokens, f"{self._place}.text")
        with torch.no_grad():
            cache = DynamicCache()
            model(input_ids=tokens[None], past_key_values=cache, use_cache=True)
            read: list[Any] = [part for key, value, _ in cache for part in (key, value)]
            vectors_of(trained).copy_(torch.cat([part[0].transpose(0, 1).flatten(1) for part in read], dim=1))
