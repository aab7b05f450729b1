"""P-tuning: the vectors before the text are made by a small network, which learns with them.

    [ v₁ … v_n ] = MLP(e₁ … e_n)   or   MLP(BiLSTM(e₁ … e_n)),   input = [ v₁ … v_n ; embed(text) ]

Liu et al., arXiv:2103.10385. The network is for training: only the vectors that it made are saved, as PEFT's P_TUNING,
which PEFT loads; vLLM and other servers of LoRA adapters do not. Whoever goes on with them uses the method prompt.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from peft import PeftConfig, PromptEncoderConfig
from pydantic import model_validator
from transformers import PreTrainedModel

from tunesmith.core.problem import Problem
from tunesmith.methods._soft import Count, SoftPrompt

LSTM_LAYERS = 2


class PTuning(SoftPrompt):
    """Vectors before the text, made by a small network while training: steadier than learning them one by one."""

    usual_lr: ClassVar[float] = 1e-3

    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network: three linear layers for each vector alone, or an LSTM over all of them, both ways."""
    hidden: Count = 128
    """Width of the network."""
    layers: Count = LSTM_LAYERS
    """Layers of the LSTM."""

    @model_validator(mode="after")
    def _layers_of_an_lstm(self) -> PTuning:
        if self.encoder == "mlp" and self.layers != LSTM_LAYERS:
            problem = Problem("layers", "is for the encoder lstm; the mlp always has three", "Take it out")
            raise ValueError(problem) from problem
        return self

    def _config(self, model: PreTrainedModel) -> PromptEncoderConfig:
        return PromptEncoderConfig(
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.hidden,
            encoder_num_layers=self.layers,
            **self._common(model),
        )

    def _gone_on_with(self, saved: PeftConfig) -> bool:
        return False
