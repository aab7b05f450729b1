"""Heads: the last layer of a model. What kind it is and for which labels (`HeadSpec`), and the arithmetic of the
language-model head (`Head`), computed only at targets and in chunks: the logits of a batch never exist at once.

    log p(token | hidden) = (z - logsumexp z)[token],   z = cap * tanh((scale * W h + bias) / cap)

(as the architecture has them: Granite, Cohere and T5 scale, BART adds a bias, Gemma 2 caps.) With label smoothing e the
right token counts (1 - e) and all V tokens together e:  (1 - e) log p(token) + e / V * sum_v log p(v)
(Szegedy et al., arXiv:1512.00567).

Where the head is frozen, the gradient of each log-probability with respect to its hidden state is found in the
forward pass, chunk by chunk, so the backward pass is one product of rows by scalars; rows are independent of each
other, so the sum's gradient holds every row's own. A head that learns is recomputed chunk by chunk instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tunesmith.models.pooling import Pooling

CHUNK_NUMBERS = 1 << 25
"""Logits that may exist at once; 128 MiB in float32."""
Rooms = tuple[Tensor, Tensor]
"""Memory for logits and log-probabilities [targets, V], used again and again."""
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


class Head:
    """The last layer of a language model with the scale, bias and cap its architecture puts on logits."""

    def __init__(
        self,
        layer: nn.Module,
        scale: float = 1.0,
        cap: float | None = None,
        *,
        bias: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        """bias: added to the logits, broadcast to [V]; smoothing: share of each target spread over all tokens."""
        self.layer = layer
        self.scale = scale
        self.cap = cap
        self.bias = bias
        self.smoothing = smoothing

    @classmethod
    def of(cls, model: PreTrainedModel, smoothing: float = 0.0) -> Head:
        """The head of a transformers model, with what its configuration says about logits."""
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        if _scaled_by_width(model):
            scale *= config.d_model**-0.5
        layer = model.get_output_embeddings()
        if layer is None:
            raise TypeError(f"{type(model).__name__} has no language-model head")
        bias = getattr(model, "final_logits_bias", None)
        return cls(layer, scale, getattr(config, "final_logit_softcapping", None), bias=bias, smoothing=smoothing)

    @property
    def learns(self) -> bool:
        """Whether any weight of the head may change."""
        return any(weight.requires_grad for weight in self.layer.parameters())

    @property
    def entries(self) -> int:
        """V, how many tokens it gives a number."""
        return int(self.layer.weight.shape[0])  # type: ignore[union-attr, arg-type]

    def logits(self, hidden: Tensor) -> Tensor:
        """[…, d] to [..., V] in float32."""
        logits = self.layer(hidden).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.bias is not None:
            logits = logits + self.bias.view(-1)
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits

    def logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """log p of each token [M] given its hidden state [M, d], in float32."""
        if len(tokens) == 0:
            return hidden.sum(dim=-1).float()
        if not torch.is_grad_enabled():
            return self._chunked(hidden, tokens)
        if self.learns:
            parts = [checkpoint(self._logprobs, h, t, use_reentrant=False) for h, t in self.chunks(hidden, tokens)]
            return torch.cat(parts)  # type: ignore[arg-type]
        return _FrozenHead.apply(hidden, tokens, self)  # type: ignore[no-any-return]

    def _logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = self.logits(hidden)
        return self._picked(logits, tokens) - logits.logsumexp(dim=-1)

    def _picked(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """[M] the logit of each right token, with smoothing mixed with the mean of all."""
        picked = logits.gather(-1, tokens[:, None])[:, 0]
        return torch.lerp(picked, logits.mean(dim=-1), self.smoothing) if self.smoothing else picked

    def with_slopes(self, hidden: Tensor, tokens: Tensor, rooms: Rooms | None = None) -> tuple[Tensor, Tensor]:
        """log p of each token [M], and its gradient by its hidden state [M, d]; rooms: those of `rooms`."""
        if rooms is not None:
            return self._in_rooms(hidden, tokens, rooms)
        if type(self.layer) is nn.Linear:
            return self._written_out(hidden, tokens)
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            value = self._logprobs(leaf, tokens)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope

    def rooms(self, hidden: Tensor) -> Rooms | None:
        """Room for the logits of a chunk of `hidden` [M, d] and what becomes of them, for all its chunks in turn.

        New memory for each chunk costs a processor a quarter of the head's time. None where logits have a cap, or are
        of a type that is not the weights': there each chunk takes its own.
        """
        if self.cap is not None or type(self.layer) is not nn.Linear or torch.is_autocast_enabled(hidden.device.type):
            return None
        if hidden.dtype != self.layer.weight.dtype or hidden.dtype not in (torch.float32, torch.float64):
            return None
        shape = min(len(hidden), self.chunk), self.entries
        return hidden.new_empty(shape), hidden.new_empty(shape)

    def _in_rooms(self, hidden: Tensor, tokens: Tensor, rooms: Rooms) -> tuple[Tensor, Tensor]:
        """The same in memory that is there: the gradient by the state is W[token] - softmax(z) W."""
        layer = cast(nn.Linear, self.layer)
        logits = torch.mm(hidden, layer.weight.T, out=rooms[0][: len(tokens)])
        if layer.bias is not None:
            logits.add_(layer.bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.bias is not None:
            logits.add_(self.bias.view(-1))
        known = torch.log_softmax(logits, dim=-1, out=rooms[1][: len(tokens)])  # type: ignore[call-overload]
        picked = self._picked(known, tokens)
        aim = layer.weight[tokens]
        if self.smoothing:
            aim = torch.lerp(aim, layer.weight.mean(dim=0), self.smoothing)
        slope = aim.addmm_(known.exp_(), layer.weight, alpha=-1.0)
        return picked.float(), slope.mul_(self.scale) if self.scale != 1.0 else slope

    def _written_out(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The same by hand, in one buffer of logits: the gradient by z is onehot - softmax z, then caps and scales."""
        logits = self.logits(hidden)
        bend = None if self.cap is None else 1 - (logits / self.cap) ** 2
        top = logits.amax(dim=-1, keepdim=True)
        picked = self._picked(logits, tokens) - top[:, 0]
        shares = logits.sub_(top).exp_()
        total = shares.sum(dim=-1, keepdim=True)
        slope = shares.div_(total).neg_()
        slope.scatter_add_(1, tokens[:, None], slope.new_full((len(tokens), 1), 1 - self.smoothing))
        if self.smoothing:
            slope.add_(self.smoothing / slope.shape[1])
        if bend is not None:
            slope.mul_(bend)
        weight = cast(nn.Linear, self.layer).weight
        return picked - total.log()[:, 0], self.scale * (slope.to(weight.dtype) @ weight)

    def _chunked(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([self._logprobs(h, t) for h, t in self.chunks(hidden, tokens)])

    def chunks(self, hidden: Tensor, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Hidden states and tokens in parts whose logits may exist at once."""
        return list(zip(hidden.split(self.chunk), tokens.split(self.chunk), strict=True))

    @property
    def chunk(self) -> int:
        """How many targets' logits may exist at once."""
        return max(16, CHUNK_NUMBERS // self.entries)


def _scaled_by_width(model: PreTrainedModel) -> bool:
    """Whether states are scaled by 1 / sqrt(d_model) before the head, as T5 does where its embeddings are tied."""
    config = model.config
    tied_only = config.model_type in ("umt5", "switch_transformers") and config.tie_word_embeddings
    return bool(getattr(config, "scale_decoder_outputs", tied_only))


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities whose gradient by hidden states is found on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, tokens: Tensor, head: Head) -> Tensor:
        logprobs, slopes = [], []
        rooms = head.rooms(hidden)
        for part, wanted in head.chunks(hidden.detach(), tokens):
            value, slope = head.with_slopes(part, wanted, rooms)
            logprobs.append(value)
            slopes.append(slope)
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (grads[0][:, None] * slopes).to(slopes.dtype), None, None
