"""P-tuning v2: deep prompts, free keys and values in every layer, without a network that makes them.

    attention(q, [P_K; K], [P_V; V])   in each layer, P learned directly

Liu et al., arXiv:2110.07602. What sets it apart from prefix tuning: no reparametrisation, longer prompts for hard
tasks, and for understanding a head on the last state instead of words to choose from. That head comes with an
objective that has one (`reward`); it learns and is saved with the prompt. Saved as PEFT's PREFIX_TUNING, which PEFT
loads; vLLM and other servers of LoRA adapters do not.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from peft import PrefixTuningConfig
from transformers import PreTrainedModel

from tunesmith.methods._deep import DeepPrompt
from tunesmith.methods._soft import Count


class PTuningV2(DeepPrompt):
    """Learned keys and values in every layer, each on its own: made for smaller models and for classifying."""

    usual_lr: ClassVar[float] = 3e-2

    tokens: Count = 64
    """Learned vectors before every row; each takes one place of the context. Easy tasks need 20, hard ones 100."""
    start: Literal["random", "zero"] = "random"
    """First values: random numbers, or zeros, which at first only draw a part of the attention off the text."""

    def _config(self, model: PreTrainedModel) -> PrefixTuningConfig:
        return self._prefix(model, init_weights="zero" if self.start == "zero" else None)
