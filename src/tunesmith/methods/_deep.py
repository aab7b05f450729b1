"""What prefix tuning and P-tuning v2 share: learned keys and values in every layer's attention, as PEFT holds them."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftType, PrefixTuningConfig
from transformers import PreTrainedModel

from tunesmith.methods._soft import SoftPrompt

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


class DeepPrompt(SoftPrompt):
    """A method whose vectors are keys and values."""

    def _prefix(self, model: PreTrainedModel, **more: Any) -> PrefixTuningConfig:
        return PrefixTuningConfig(**self._common(model), **more)

    def _gone_on_with(self, saved: PeftConfig) -> bool:
        return saved.peft_type == PeftType.PREFIX_TUNING

    def _check(self, model: PreTrainedModel) -> None:
        super()._check(model)
        if model.config.is_encoder_decoder:
            raise self._misfit(model, "PEFT's form of it leaves half of an encoder-decoder's keys and values unused")
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
        if other := sorted(kinds - ATTENTION):
            raise self._misfit(
                model, f"its layers of the kind {', '.join(other)} keep other things than keys and values"
            )
