"""The checkpoints that a mixture can become: names of tensors and settings, as transformers and vLLM load them.

    mixtral     from Llama and Mistral                   block_sparse_moe.experts.E.w1|w3|w2, block_sparse_moe.gate
    qwen2_moe   from Qwen2, Llama, Mistral, with one     mlp.experts.E.gate_proj|up_proj|down_proj, mlp.gate,
                shared expert behind a gate of its own   mlp.shared_expert.…, mlp.shared_expert_gate
    qwen3_moe   from Qwen3                               mlp.experts.E.gate_proj|up_proj|down_proj, mlp.gate

Each expert stands in tensors of its own, which is how these models are published. transformers 5 joins them into one
tensor in memory and takes them apart again when it saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.core.problem import Problem, nearest
from tunesmith.merge.experts.recipe import Mixture
from tunesmith.merge.inputs import Model

MLP = ("gate_proj", "up_proj", "down_proj")
KEPT = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
BIASES = tuple(f"self_attn.{name}_proj.bias" for name in "qkv")
BUFFER = "rotary_emb.inv_freq"
"""What old checkpoints hold and every model computes anew."""


@dataclass(frozen=True)
class Checkpoint:
    """One layout. title: as mergekit-moe calls it; takes: dense architectures; block: before an expert's number; parts:
    the names of its three projections; kept: names in a layer that are taken as they are; shared: whether it has a
    shared expert; sizes: settings that hold the width of an MLP."""

    title: str
    model_type: str
    architecture: str
    takes: tuple[str, ...]
    block: str
    parts: Mapping[str, str]
    kept: tuple[str, ...]
    settings: Mapping[str, Any]
    sizes: tuple[str, ...]
    shared: bool = False

    @property
    def biased(self) -> bool:
        """Whether attention must have biases; they are zero where the dense model has none."""
        return self.shared

    def config(self, base: Model, mixture: Mixture) -> dict[str, Any]:
        """config.json: all that the base's says in words of this layout, defaults written out, and the experts.

        Raises:
            Problem: the base has a setting that this layout cannot express.
        """
        from transformers import CONFIG_MAPPING, PreTrainedConfig

        said = {key: part for key, part in base.config.items() if key not in ("torch_dtype", "auto_map", "dtype")}
        if said.get("use_sliding_window"):
            what = f"has windows on some of its layers (use_sliding_window), which {self.title} layouts do not express"
            raise Problem(str(base), what, "Set it to false in its config.json if texts are shorter than the window")
        old = CONFIG_MAPPING[str(base.config["model_type"])](**said).to_dict()
        known = {*CONFIG_MAPPING[self.model_type]().to_dict(), "head_dim"}
        kept = {key: part for key, part in old.items() if key in known and part is not None}
        width = dict.fromkeys(self.sizes, old["intermediate_size"])
        made = {**self.settings, **width, "num_experts_per_tok": mixture.experts_per_token}
        made["num_local_experts" if self.model_type == "mixtral" else "num_experts"] = len(mixture.experts)
        names = {"architectures": [self.architecture], "model_type": self.model_type}
        general = {*NOT_CARRIED, *PreTrainedConfig().to_dict()}
        return {key: part for key, part in kept.items() if key not in general} | made | names

    def faults(self, base: Model, mixture: Mixture) -> Iterator[Problem]:
        """Why these models cannot become this layout."""
        if self.shared and len(mixture.shared_experts) != 1:
            what = f"names {len(mixture.shared_experts)} models, and the {self.title} layout has one shared expert"
            yield Problem("shared_experts", what, "Name one; residual_scale: 0 keeps it silent until it is trained")
        if not self.shared and mixture.shared_experts:
            yield Problem("shared_experts", f"the {self.title} layout has none", "Take it out")
        allowed = {*self.kept, *BIASES} if self.biased else {*self.kept}
        rests = {rest for number in range(base.stack.count) for rest in base.layer(number)}
        mlp = {f"mlp.{part}.weight" for part in MLP}
        if lost := sorted(rest for rest in rests - allowed - mlp if not rest.endswith(BUFFER)):
            yield Problem("base_model", f"the {self.title} layout has no place for its {', '.join(lost[:3])}")
        if missing := sorted(mlp - rests):
            yield Problem("base_model", f"its layers have no {', '.join(missing)}", "Take a dense model")


NOT_CARRIED = ("layer_types", "max_window_layers", "transformers_version")
"""Settings that the new architecture finds by itself."""

SPARSE: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
PLAIN = {part: part for part in MLP}

CHECKPOINTS = (
    Checkpoint(
        "Mixtral",
        "mixtral",
        "MixtralForCausalLM",
        ("llama", "mistral"),
        "block_sparse_moe",
        {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        KEPT,
        {},
        (),
    ),
    Checkpoint(
        "Qwen MoE",
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        ("qwen2", "llama", "mistral"),
        "mlp",
        PLAIN,
        KEPT,
        {**SPARSE, "qkv_bias": True},
        ("moe_intermediate_size", "shared_expert_intermediate_size"),
        shared=True,
    ),
    Checkpoint(
        "Qwen3 MoE",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        ("qwen3",),
        "mlp",
        PLAIN,
        (*KEPT, "self_attn.q_norm.weight", "self_attn.k_norm.weight"),
        SPARSE,
        ("moe_intermediate_size",),
    ),
)
"""In the order in which they are tried."""


def checkpoint_for(base: Model, mixture: Mixture) -> Checkpoint:
    """The layout that a mixture over this base becomes.

    Raises:
        Problem: there is none, or the one that is asked for takes other models.
    """
    kind = str(base.config.get("model_type"))
    wanted = (mixture.architecture or "").lower()
    named = [each for each in CHECKPOINTS if each.title.lower().startswith(wanted) or each.model_type == wanted]
    if not named:
        titles = [each.title.lower() for each in CHECKPOINTS]
        raise Problem("architecture", f"there is no layout {mixture.architecture!r}", nearest(wanted, titles))
    fitting = [each for each in named if kind in each.takes]
    if not fitting:
        takes = ", ".join(f"{each.title} from {', '.join(each.takes)}" for each in named)
        raise Problem("base_model", f"is a {kind} model, and experts are made so: {takes}", "Take another base")
    with_shared = [each for each in fitting if each.shared == bool(mixture.shared_experts)]
    return (with_shared or fitting)[0]
