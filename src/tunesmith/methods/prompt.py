"""Prompt tuning: learned vectors stand before the embedded text, and nothing else learns.

    input = [ v₁ … v_n ; embed(text) ],   v_i in R^d

Lester et al., arXiv:2104.08691. The vectors are saved as PEFT's PROMPT_TUNING, which PEFT loads; vLLM and other
servers of LoRA adapters do not.
"""

from __future__ import annotations

from typing import Literal

import torch
from peft import PeftConfig, PeftModel, PeftType, PromptTuningConfig
from pydantic import model_validator
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods._soft import SoftPrompt, text_tokens, vectors_of


class Prompt(SoftPrompt):
    """Learned vectors before the text: the smallest adapter of all, best with large models."""

    start: Literal["vocabulary", "random", "text"] = "vocabulary"
    """First values: the embeddings of tokens drawn from the vocabulary or of `text`, or random numbers."""
    text: str = ""
    """With start text: what the vectors begin as, best the task in words; repeated or cut to `tokens`."""

    @model_validator(mode="after")
    def _text_with_its_start(self) -> Prompt:
        if (self.start == "text") != bool(self.text.strip()):
            what = (
                "start is text, and there is no text" if self.start == "text" else f"start {self.start} takes no text"
            )
            problem = Problem("", what, "Set both, start: text and text, or neither")
            raise ValueError(problem) from problem
        return self

    def outline(self) -> Prompt:
        return self.model_copy(update={"start": "random", "text": ""}) if self.start == "text" else self

    def _config(self, model: PreTrainedModel) -> PromptTuningConfig:
        start = "SAMPLE_VOCAB" if self.start == "vocabulary" else "RANDOM"
        return PromptTuningConfig(prompt_tuning_init=start, **self._common(model))

    def _gone_on_with(self, saved: PeftConfig) -> bool:
        return saved.peft_type in (PeftType.PROMPT_TUNING, PeftType.P_TUNING)

    def _start(self, trained: PeftModel) -> None:
        if self.start != "text":
            return
        model: PreTrainedModel = trained.get_base_model()  # type: ignore[assignment]
        tokens = text_tokens(model, self.text, self.tokens, f"{self._place}.text")
        with torch.no_grad():
            vectors_of(trained).copy_(model.get_input_embeddings()(tokens))
