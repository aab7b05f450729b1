"""Policy: a model as objectives see it, log-probabilities of targets and scores of answers.

    Batch ─▶ decoder ─▶ hidden states ─▶ head at targets ─▶ logprobs [M]
                                      └▶ score at the ends ─▶ scores [R]

Whether the decoder runs over the forest or over padded rows is decided here and nowhere else, and so is that a soft
prompt stands above them (`ancestor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.core.rows import TokenRow
from tunesmith.data.pack import pack
from tunesmith.data.prefixes import pack_rows
from tunesmith.data.tokenizer import Codec
from tunesmith.models import encoder_decoder
from tunesmith.models.ancestor import ancestor_of
from tunesmith.models.attention import no_mask
from tunesmith.models.divergence import Compared, Divergence, Side, compare
from tunesmith.models.forest import Batch
from tunesmith.models.heads import beyond, reads_both_ways
from tunesmith.models.likelihood import Head
from tunesmith.models.planting import plant
from tunesmith.models.pooling import Pooling, pooled, read_at

Off = Callable[[], AbstractContextManager[object]]


class Ranks(Protocol):
    """The processes that train together, as objectives see them."""

    rank: int
    size: int

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in the order of ranks; their first axes may differ."""
        ...

    def total(self, value: float) -> float:
        """The sum of a number over ranks."""
        ...


class Alone:
    """One process by itself."""

    rank = 0
    size = 1

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def total(self, value: float) -> float:
        return value


class Policy:
    """A model, with or without a method on it, and the way to switch the method off."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        forest: bool,
        trained: nn.Module | None = None,
        off: Off | None = None,
        autocast: torch.dtype | None = None,
        neftune: float = 0.0,
        codec: Codec | None = None,
        ranks: Ranks | None = None,
        budget: int = 4096,
        share: bool = True,
    ) -> None:
        """
        model: the transformers model, whose modules a method may have changed in place; forest: whether it takes
        forests; trained: the module that holds the method, if that is another; off: context without the method;
        autocast: number type of products, None for that of the weights; neftune: noise alpha while training;
        codec: its tokenizer and template, for objectives that sample and for pairs; ranks: those that train together;
        budget: tokens computed at once, for objectives that make batches of their own; share: whether what rows have
        in common may be computed once.
        """
        self.model = model
        self.trained = model if trained is None else trained
        self.forest = forest
        self.autocast = autocast
        self.neftune = neftune
        self._codec = codec
        self.ranks: Ranks = ranks or Alone()
        self.budget = budget
        self._share = share
        self.opened: dict[str, Any] = {}
        """What an objective opened once for the whole run, by name, such as an engine."""
        self.reference: Policy | None = None
        """Another model to be held to or learned from; None for this one without its method."""
        self.beside: nn.Module | None = None
        """What the objective has learn beside the model."""
        self.carried: dict[str, float] = {}
        """Numbers that the objective carries from step to step; checkpoints hold them."""
        self._off = off

    @property
    def codec(self) -> Codec:
        """The tokenizer and chat template of the model."""
        if self._codec is None:
            raise ValueError("this policy was made without a tokenizer")
        return self._codec

    @property
    def second_type(self) -> int:
        """The type of the tokens of a pair's second text, for encoders that are told of it; 0 for others."""
        known = getattr(self.model.config, "type_vocab_size", None) or 0
        own = 0 if self._codec is None or not reads_both_ways(self.model.config) else self._codec.second_type
        return own if own < known else 0

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def shares(self) -> bool:
        """Whether context that rows have in common is computed once; NEFTune's noise depends on a row's length."""
        return self._share and self.forest and not self.model.config.is_encoder_decoder and self.neftune == 0

    def plant(self, rows: Sequence[TokenRow]) -> Batch:
        """The batch of some rows, on the policy's device."""
        return plant(rows, share=self.shares).to(self.device)

    def packed(self, rows: Sequence[TokenRow], budget: int | None = None) -> list[list[int]]:
        """The numbers of rows in micro-batches of at most `budget` tokens (the policy's own), as it computes them."""
        budget = self.budget if budget is None else budget
        if self.forest:
            return pack_rows(rows, budget, share=self.shares).rows
        return pack([row.answers * row.depth for row in rows], budget)

    @property
    def decoder(self) -> nn.Module:
        """The model without its last layer."""
        return getattr(self.model, self.model.base_model_prefix, self.model)

    def states(self, batch: Batch) -> Tensor:
        """[M, d] the hidden state that each target is predicted from."""
        with self._precision():
            return self.hidden(batch, batch.targets.source, batch.targets.row)

    def logprobs(self, batch: Batch, smoothing: float = 0.0, states: Tensor | None = None) -> Tensor:
        """[M] log-probability of each target, in float32.

        smoothing: the share of each target that is spread over all tokens; states: those of `states`, where they are
        known already.
        """
        states = self.states(batch) if states is None else states
        with self._precision():
            return Head.of(self.model, smoothing).logprobs(states, batch.targets.token)

    def total(self, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """[] the sum of the log-probabilities of targets times their weights, in float32; smoothing as in `logprobs`.

        Cheaper than the sum over `logprobs` where the head learns: what each target counts is known beforehand.
        """
        states = self.states(batch)
        with self._precision():
            return Head.of(self.model, smoothing).total(states, batch.targets.token, batch.targets.weight)

    def compared(self, batch: Batch, divergence: Divergence, *, likelihood: bool) -> Compared:
        """The model beside its reference, another model, at each target; no gradient or dropout there.

        likelihood: whether the log-probabilities of the right tokens have a gradient, beside the divergence.
        """
        other = self.reference
        if other is None:
            raise ValueError("this policy has no other model to be compared with")
        with torch.no_grad(), other.still():
            theirs = Side(Head.of(other.model), other.states(batch))
        ours = Side(Head.of(self.model), self.states(batch))
        with self._precision():
            return compare(ours, theirs, batch.targets.token, divergence, likelihood=likelihood)

    def scores(self, batch: Batch) -> Tensor:
        """[R] the number that a score head gives each answer, in float32."""
        return self.class_scores(batch).squeeze(-1)

    def class_scores(self, batch: Batch) -> Tensor:
        """[R, C] the numbers that a score head gives each answer, one a label, in float32.

        A decoder's are read at the last token; an encoder knows itself where it reads them.
        """
        with self._precision():
            if "score" in beyond(self.model):
                rows = torch.arange(batch.answers, device=batch.tokens.device)
                return self._labelled(self.hidden(batch, batch.ends, rows))
            return self.model(**self._padded(batch)).logits.float()

    def tag_scores(self, batch: Batch) -> Tensor:
        """[K, C] the numbers that a head for tags gives each mark, one a label, in float32."""
        with self._precision():
            return self._labelled(self.hidden(batch, batch.marks, batch.mark_rows))

    def embeddings(self, batch: Batch, pooling: Pooling) -> Tensor:
        """[R, d] a vector of length 1 for each answer, in float32."""
        source, row = read_at(batch, pooling)
        with self._precision():
            states = self.hidden(batch, source, row)
        return pooled(states, row, batch.answers)

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """[M] what the reference gives each target: another model, or this one without the method.

        No gradient, no dropout.
        """
        if self.reference is not None:
            with torch.no_grad(), self.reference.still():
                return self.reference.logprobs(batch)
        if self._off is None:
            raise ValueError("this policy has no reference: its method cannot be switched off")
        with torch.no_grad(), self.still(), self._off():
            return self.logprobs(batch)

    def hidden(self, batch: Batch, source: Tensor, row: Tensor) -> Tensor:
        """[K, d] hidden states after the last layer at tokens `source` [K] of answers `row` [K]."""
        ancestor = ancestor_of(self.trained)
        if self.model.config.is_encoder_decoder:
            return encoder_decoder.hidden(self.model, batch, source, row, self._inputs, ancestor)
        if self.forest:
            layout = ancestor.layout(batch.layout)
            states = self.decoder(
                **ancestor.inputs(self.model, self._inputs(batch.tokens[None], batch.tree_lengths()[None])),
                attention_mask=no_mask(len(layout.positions), batch.tokens.device),
                position_ids=layout.positions[None],
                layout=layout,
                use_cache=False,
            ).last_hidden_state
            return states[0, source + ancestor.states]
        states = self.decoder(**self._padded(batch)).last_hidden_state
        return states[row, batch.positions[source] + ancestor.states]

    @contextmanager
    def still(self) -> Iterator[None]:
        """The model in evaluation mode: no dropout, no noise."""
        training = self.trained.training
        self.trained.eval()
        try:
            yield
        finally:
            self.trained.train(training)

    def _labelled(self, hidden: Tensor) -> Tensor:
        """[K, d] to [K, C] in float32, through all that stands after the model's base: dropout, then the head."""
        for part in beyond(self.model).values():
            hidden = part(hidden)
        return hidden.float()

    def _padded(self, batch: Batch) -> dict[str, object]:
        """What a model takes to read the rows of a batch one below the other, under its ancestor."""
        padded = batch.padded(self.model.config.get_text_config().pad_token_id or 0)
        lengths = padded.mask.sum(dim=1, keepdim=True).expand_as(padded.mask)
        ancestor = ancestor_of(self.trained)
        rows = ancestor.rows(self.model, self._inputs(padded.tokens, lengths), padded.mask)
        if not reads_both_ways(self.model.config):
            return {**rows, "use_cache": False}
        if self.second_type:
            types = self.second_type * _second(batch, padded.tokens.shape[1])
            rows["token_type_ids"] = F.pad(types, (ancestor.states, 0))
        return rows

    def _inputs(self, tokens: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Tokens [B, N], or while training with NEFTune their embeddings and noise alpha / sqrt(length * width)."""
        if self.neftune == 0 or not self.trained.training:
            return {"input_ids": tokens}
        embedded = self.model.get_input_embeddings()(tokens)
        size = self.neftune / (lengths * embedded.shape[-1]).to(embedded.dtype).sqrt()
        return {"inputs_embeds": embedded + (torch.rand_like(embedded) * 2 - 1) * size.unsqueeze(-1)}

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)


def _second(batch: Batch, width: int) -> Tensor:
    """[R, width] 1 from where the second text of a pair begins, as encoders are told that they read two."""
    leaves = [batch.segments[leaf] for leaf in batch.leaves]
    starts = [width if leaf.parent is None else int(batch.positions[leaf.start]) for leaf in leaves]
    places = torch.arange(width, device=batch.tokens.device)
    return (places >= torch.tensor(starts, device=places.device)[:, None]).long()
