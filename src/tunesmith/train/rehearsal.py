"""One micro-batch rehearsed on tensors that have shapes only: what it holds, counted as each tensor comes and goes.

    weights as shapes ─▶ forward ─▶ loss ─▶ backward        the model's own code, on the device's own kernels' shapes
                            │ kept                 │ most
    ledger:  every storage is added when it is made and taken off when nothing refers to it any more

Fake tensors name a device, so attention counts as the kernel that the device would choose, and number types as
autocast gives them. What a kernel allocates inside itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

from tunesmith.methods import Losses, Method, trainable
from tunesmith.models.attention import NAME
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.policy import Policy

CPU, META = torch.device("cpu"), torch.device("meta")


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Bytes that a micro-batch holds beside the weights.

    kept: activations, from the forward pass to the backward; gradients: those there when the most is held; passing:
    what else is there then, such as logits of a chunk and gradients of activations.
    """

    kept: int
    gradients: int
    passing: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where and in which number type a model computes; forest: whether forests may be tried; fast: its levers."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    forest: bool = True
    fast: str | tuple[str, ...] = "auto"


def rehearse(
    model: PreTrainedModel, trained: nn.Module, method: Method, batch: Batch, place: Place, *, accumulates: bool = True
) -> Rehearsed:
    """Count the forward and backward pass of a batch; afterwards the model's weights are fake ones.

    model: on the meta device; trained: with the method on it; accumulates: whether gradients of earlier micro-batches
    of the step are held already. What does not take a forest is counted as padded rows, and what looks into numbers
    on plain shapes, where attention's scores count too.
    """
    own = model.config._attn_implementation
    if getattr(model.config, "_experts_implementation", None):
        # which expert a token meets is in no shape; this way each token takes a copy of its experts, so it is a bound
        model.config._experts_implementation = "batched_mm"
    for forest in (True, False) if place.forest and not model.config.is_encoder_decoder else (False,):
        model.config._attn_implementation = NAME if forest else own
        with FakeTensorMode(allow_non_fake_inputs=True):
            try:
                _imagine(trained, place.device)
                policy = Policy(model, forest=forest, trained=trained)
                return _passes(policy, method, batch.to(place.device), place, accumulates)
            except Exception:  # as in the probe: whatever an architecture raises means that it cannot be done so
                continue
    _imagine(trained, META)
    return _passes(Policy(model, forest=False, trained=trained), method, batch.to(META), place, accumulates)


def _passes(policy: Policy, method: Method, batch: Batch, place: Place, accumulates: bool) -> Rehearsed:
    weights = list(trainable(policy.trained).values())
    for weight in weights:
        weight.grad = torch.empty_like(weight) if accumulates else None
    policy.autocast = None if place.dtype == torch.float32 else place.dtype
    before = _bytes_of(weights) if accumulates else 0
    there = (
        *policy.trained.parameters(),
        *policy.trained.buffers(),
        *(weight.grad for weight in weights),
        batch.tokens,
        batch.positions,
    )
    own = {tensor.untyped_storage()._cdata for tensor in there if tensor is not None}
    with _Ledger(own) as ledger:
        hooks = [weight.register_post_accumulate_grad_hook(ledger.gradient) for weight in weights]
        loss, _ = method.loss(policy, batch, _Likelihood())
        kept = ledger.now
        loss.backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    late = 0 if accumulates else ledger.gradients_then
    return Rehearsed(kept, before + late, max(0, ledger.most - kept - late))


def _bytes_of(tensors: list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _imagine(model: nn.Module, device: torch.device) -> None:
    """Put fake weights on a device in the place of those without any; tied ones stay tied."""
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            made[id(tensor)] = empty, tensor
        return made[id(tensor)][0]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})  # type: ignore[arg-type]


class _Likelihood:
    """The plainest objective: the log-likelihood of what is learned, or the scores, labels or states of the answers."""

    def count(self, batch: Batch) -> float:
        return float(len(batch.targets))

    def loss(self, policy: Policy, batch: Batch) -> Losses:
        head, rows = HeadSpec.of(policy.model).kind, torch.arange(batch.answers, device=batch.tokens.device)
        if head == "score":
            return policy.class_scores(batch).sum(), {}
        if head == "tags":
            return policy.tag_scores(replace(batch, marks=batch.ends, mark_rows=rows)).sum(), {}
        if head == "states":
            return policy.hidden(batch, batch.ends, rows).float().sum(), {}
        return -policy.total(batch), {}


class _Ledger(TorchDispatchMode):
    """Adds up the bytes of all storages that are alive, and keeps the most there ever were."""

    def __init__(self, own: set[int]) -> None:
        """own: storages that are not counted, those of the weights and the batch."""
        super().__init__()
        self._own = own
        self.now = self.most = self.gradients = self.gradients_then = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return made

    def gradient(self, weight: Tensor) -> None:
        """Note that a weight has its gradient now."""
        self.gradients += weight.numel() * weight.element_size()

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or key in self._own:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        if self.now > self.most:
            self.most, self.gradients_then = self.now, self.gradients
        weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size
