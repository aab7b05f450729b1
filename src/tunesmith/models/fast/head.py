"""The gradients of a language model's head written out, in the same memory for all chunks (`likelihood`)."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.likelihood import BY_HAND


def pull(model: nn.Module) -> int:
    """Write out the gradients of the model's head; returns whether it has one that is a plain matrix."""
    base = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    layer = None if base is None else base.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return 0
    vars(layer)[BY_HAND] = True
    return 1
