"""LoRA adapters side by side on one base, through PEFT: rows of a batch choose one each, or several are added up.

    row 0 ── legal      y = W x + s B A x  of its own adapter
    row 1 ── (none)     y = W x
    all   ── legal+terse  y = W x + Σ s_i B_i A_i x

Only adapters whose whole change is such a sum can be here; of the others it is said why not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer, MultiheadAttention, ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from tunesmith.models.twin import twin

FROM_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of LoRA that take something out of the base's weights, by how PEFT's names of them begin."""
NO_ADAPTER = "__base__"
"""What PEFT calls a row without an adapter."""


class Loras:
    """A base with LoRA adapters on it, as a value: adding and leaving out give another one over the same weights.

    keys: PEFT's name of each adapter, which no name that a person gives can collide with.
    """

    def __init__(self, base: PreTrainedModel, model: PeftModel | None = None, keys: Mapping[str, str] = {}) -> None:
        self.base = base
        self.model = model
        self.keys = keys

    def joined(self, name: str, adapter: PeftModel, number: int) -> Loras:
        """With one more adapter, taken from a model that wears it alone; number: one that no other adapter has."""
        # fixed width, since PEFT finds an adapter's weights by the beginning of its name
        key = f"adapter{number:06d}"
        config = copy.copy(cast(LoraConfig, adapter.active_peft_config))
        config.init_lora_weights = True  # the values follow, and other starts compute long or change the base
        if self.model is None:
            model = type(adapter)(twin(self.base), config, adapter_name=key)
        else:
            model = twin(self.model)
            model.add_adapter(key, config)
        learned = get_peft_model_state_dict(adapter, save_embedding_layers=False)
        set_peft_model_state_dict(model, learned, adapter_name=key)
        model.requires_grad_(False)
        return Loras(self.base, model.eval(), {**self.keys, name: key})

    def without(self, name: str) -> Loras:
        """Without an adapter, if it is here."""
        if name not in self.keys:
            return self
        keys = {other: key for other, key in self.keys.items() if other != name}
        if not keys:
            return Loras(self.base)
        model = twin(cast(PeftModel, self.model))
        model.set_adapter(next(iter(keys.values())), inference_mode=True)
        model.delete_adapter(self.keys[name])
        return Loras(self.base, model, keys)

    @cached_property
    def running(self) -> PeftModel:
        """A model to answer with; this value's own one never runs, so that it can be copied at any time."""
        return twin(cast(PeftModel, self.model))

    def renewed(self) -> Loras:
        """The same with another model to answer with."""
        return Loras(self.base, self.model, self.keys)


def sum_refused(model: nn.Module) -> str | None:
    """Why an adapter is not a sum of low-rank changes that others can stand beside; None if it is."""
    if not isinstance(model, PeftModel):
        return "its change is no sum of low-rank products (it has modules of its own)"
    config: Any = model.active_peft_config
    if config.peft_type != "LORA":
        return f"its change is no sum of low-rank products (it is {config.peft_type.value})"
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    reasons = {
        "DoRA scales the base's weight together with its own change": config.use_dora,
        "it has trained biases of the base": config.bias != "none",
        "it replaces whole layers": config.modules_to_save,
        "it has trained embeddings of single tokens": config.trainable_token_indices,
        "it repeats layers of the base": config.layer_replication,
        "it is a variant of LoRA with a rule of its own": any(layer.lora_variant for layer in layers),
        "it changes layers whose rows PEFT cannot tell apart": any(
            isinstance(layer, MultiheadAttention | ParamWrapper) for layer in layers
        ),
    }
    return next((reason for reason, found in reasons.items() if found), None)
