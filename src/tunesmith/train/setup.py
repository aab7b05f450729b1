"""Everything a run works with, made from its choices: data, model, method, optimizer, steps.

Run ─▶ data prepared ─▶ model loaded ─▶ method applied ─▶ optimizer, steps, reference
     (faults of data come first, before any weight is read)
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from tunesmith.core.events import Event
from tunesmith.core.problem import Problem
from tunesmith.core.run import Run
from tunesmith.data.pack import pack
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.store import TokenStore
from tunesmith.data.strangers import strangers
from tunesmith.data.stream import Pace, Stream
from tunesmith.data.tokenizer import Codec
from tunesmith.methods import Method, hold_in
from tunesmith.models.ancestor import KeysAndValues, ancestor_of
from tunesmith.models.device import memory_bytes
from tunesmith.models.fast import described, quicken
from tunesmith.models.forest import Batch
from tunesmith.models.load import Loaded, context_of, fingerprint, load, load_codec, load_config, skeleton, told_of
from tunesmith.models.policy import Policy
from tunesmith.models.quantize import settle
from tunesmith.models.source import Found, find
from tunesmith.objectives import Objective
from tunesmith.optimizers import OptimizerSpec, named
from tunesmith.train.checkpoint import Learned
from tunesmith.train.fit import check_fit, check_head, check_held, check_sides
from tunesmith.train.labels import resolve_labels
from tunesmith.train.reference import check_reference, open_reference, scored
from tunesmith.train.rehearsal import Place
from tunesmith.train.steps import Side, StoredSteps
from tunesmith.train.survey import Shape, survey
from tunesmith.train.world import World

Tell = Callable[[Event], None]
DEFAULT_MAX_TOKENS = 1024
DEFAULT_STEP_TOKENS = 8192
DEFAULT_BATCH_TOKENS, CPU_BATCH_TOKENS = 4096, 2048
"""A processor is as fast with half as many tokens at once, in three quarters of the memory."""
DEFAULT_STEP_PROMPTS = 16
"""Prompts of a step where answers are drawn to them: the tokens of prompts do not say how much a step computes."""
LEAST_STEPS = 16
"""An epoch of little data is cut into so many steps at least, unless a step's size is set."""


@dataclass(frozen=True)
class Inputs:
    """What is known before the model's weights are read: the resolved run, its data, its stream of steps."""

    run: Run
    found: Found
    codec: Codec
    prepared: Prepared
    stream: Stream
    total: int

    @property
    def objective(self) -> Objective:
        return cast(Objective, self.run.objective)

    @property
    def method(self) -> Method:
        return cast(Method, self.run.method)

    @property
    def optimizer(self) -> OptimizerSpec:
        return cast(OptimizerSpec, self.run.optimizer)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row [n], with those that are drawn for it, at most."""
        return self.prepared.train.lengths + self.objective.sampled

    @property
    def budget(self) -> int:
        """Tokens computed at once."""
        return cast(int, self.run.train.tokens_per_batch)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with an answer where one is drawn."""
        return int(self.prepared.train.lengths.max()) + self.objective.rules(self.run.train).room

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of everything that the run reads; found once, since they read all of the base's weights."""
        options = json.dumps({**self.run.plain(), "output": None}, sort_keys=True)
        other = self.objective.other_model
        return {
            **self.prepared.fingerprints,
            "tokenizer": self.codec.fingerprint(),
            "weights": fingerprint(self.found),
            **({} if other is None else {"reference": fingerprint(find(other))}),
            "options": hashlib.sha256(options.encode()).hexdigest(),
        }


@dataclass(frozen=True)
class Ready:
    """A model under its method, with optimizer and steps."""

    loaded: Loaded
    policy: Policy
    trained: nn.Module
    learned: Learned
    optimizer: Optimizer
    steps: StoredSteps


def gather(run: Run, base: Path, tell: Tell) -> Inputs:
    """Resolve what the run leaves open and prepare its data; nothing of the model but its shapes is read.

    Raises:
        Problem: a fault of the data, or settings that do not go together.
    """
    found = find(run.model.path, run.model.revision)
    codec = load_codec(found, run.model.chat_template)
    for text in run.told:
        tell(Event("note", values={"text": text}))
    objective = cast(Objective, run.objective)
    check_sides(run, codec, objective)
    check_head(objective, found)
    run, told = resolve_labels(run, found, base)
    for text in told:
        tell(Event("note", values={"text": text}))
    objective = cast(Objective, run.objective)
    run = _resolve_model(run, found, objective, tell)
    run = _resolve_schedule(run, tell)
    check_fit(run, objective, found)
    check_reference(run, objective, cast(Method, run.method), found, codec)
    prepared = prepare(run, objective.rules(run.train), codec, base, _reading(tell))
    objective.check_rows(prepared.train)
    tell(Event("data", values={"lines": prepared.lines}))
    run = _resolve_step(run, prepared.train, tell)
    stream = _stream(run, prepared)
    total = stream.total_steps(run.train.epochs, run.train.steps)
    return Inputs(run, found, codec, prepared, stream, total)


def build(inputs: Inputs, world: World | None, tell: Tell) -> Ready:
    """Load the model and put the method, the optimizer and the steps on it.

    Raises:
        Problem: the model cannot be loaded, or an option does not fit it.
    """
    run, method, objective = inputs.run, inputs.method, inputs.objective
    _seed(run.train.seed)
    loaded = load(run.model, objective.head, weights=inputs.optimizer.holds if method.changes_base else None)
    tell(Event("note", values={"text": f"attention: {loaded.verdict.reason}"}))
    world = world or World(loaded.choice.device)
    _seed(run.train.seed)
    adapter = loaded.found.adapter
    trained = method.apply(loaded.model) if adapter is None else method.adopt(loaded.model, adapter)
    if run.train.checkpoint_activations == "on":
        _recompute(loaded, trained)
    if text := described(run.model.fast, quicken(trained, run.model.fast, loaded.choice.device)):
        tell(Event("note", values={"text": text}))
    policy = _policy(inputs, loaded, trained, world)
    policy.reference = open_reference(run, objective)
    steps = _steps(inputs, policy, world)
    method.begin(policy, _first_batches(steps, policy.device), inputs.total)
    if not method.starts_at_identity:
        text = (
            f"the method {method.name()} (as it is set) does not start as the untouched model: its first loss is higher"
        )
        tell(Event("note", values={"text": text}))
    hold_in(trained, inputs.optimizer.holds)
    policy.beside = objective.equip(policy)
    learned = Learned.of(trained, method, policy.beside)
    groups = _groups(inputs, trained, policy.beside)
    optimizer = inputs.optimizer.build(groups, run.train.seed)
    return Ready(loaded, policy, trained, learned, optimizer, steps)


def _groups(inputs: Inputs, trained: nn.Module, beside: nn.Module | None) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: the method's, and one for what learns beside the model."""
    lr = inputs.optimizer.lr
    groups = named(inputs.method.groups(trained, lr), trained)
    if beside is None:
        return groups
    return [*groups, *named([{"params": list(beside.parameters()), "lr": lr}], beside)]


def _recompute(loaded: Loaded, trained: nn.Module) -> None:
    """Have activations recomputed in the backward pass.

    Raises:
        Problem: that would lose a prefix, which padded rows get as a cache.
    """
    if not loaded.verdict.forest and isinstance(ancestor_of(trained), KeysAndValues):
        raise Problem(
            "train.checkpoint_activations",
            f"is on, and layers that are recomputed get no keys and values of the method ({loaded.verdict.reason})",
            "Set it to off, or use the method prompt",
        )
    loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    loaded.model.enable_input_require_grads()


def _first_batches(steps: StoredSteps, device: torch.device) -> Iterator[Batch]:
    """All micro-batches of the first steps, those of every rank, so that each rank sees the same."""
    alone = replace(steps, train=steps.train.bare(), rank=0, world=1)
    for step in range(alone.total):
        yield from (batch.to(device) for batch in alone.batches(step))


def _seed(seed: int) -> None:
    """Seed every generator that a checkpoint holds; nothing of tunesmith draws from Python's or NumPy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def shape(inputs: Inputs, checkpointing: bool) -> Shape:
    """What the run's model takes, counted without loading it.

    Raises:
        Problem: the model cannot be built.
    """
    run = inputs.run
    rows = inputs.longest
    place = settle(run.model, inputs.found)
    return survey(
        skeleton(inputs.found, inputs.objective.head),
        inputs.method.outline(),
        inputs.optimizer,
        place=Place(place.choice.device, place.choice.dtype, run.model.attention != "padded", run.model.fast),
        held=place.held,
        tokens=max(rows, min(inputs.budget, int(inputs.lengths.sum()))),
        row=rows,
        answer=_answer_share(inputs),
        checkpointing=checkpointing,
        accumulates=_accumulates(inputs),
    )


def _accumulates(inputs: Inputs) -> bool:
    """Whether a step, of the first few, has more than one micro-batch."""
    lengths, budget = inputs.lengths, inputs.budget
    steps = (inputs.stream.rows_of_step(step) for step in range(min(inputs.total, LEAST_STEPS)))
    taken = ([int(lengths[number]) for number in rows] for rows in steps)
    return any(len(pack(some, budget)) > 1 or (inputs.objective.sampled and max(some) > budget) for some in taken)


def _answer_share(inputs: Inputs) -> float:
    """The share of tokens that is learned."""
    learned = inputs.prepared.train.learned + inputs.objective.sampled
    return float(learned.sum() / inputs.lengths.sum())


def choose_checkpointing(inputs: Inputs, tell: Tell) -> Inputs:
    """Settle `checkpoint_activations: auto`: off, unless memory is short without it."""
    if inputs.run.train.checkpoint_activations != "auto":
        return inputs
    setting = "off"
    free = memory_bytes(torch.device(inputs.run.model.device))
    if memory_may_be_short(inputs) and shape(inputs, checkpointing=False).memory.total > free:
        setting = "on"
        tell(Event("note", values={"text": "checkpoint_activations on: without it the run would not fit in memory"}))
    return _with(inputs, _train(inputs.run, checkpoint_activations=setting))


def _with(inputs: Inputs, run: Run) -> Inputs:
    return Inputs(run, inputs.found, inputs.codec, inputs.prepared, inputs.stream, inputs.total)


def _train(run: Run, **settings: Any) -> Run:
    return run.model_copy(update={"train": run.train.model_copy(update=settings)})


def memory_may_be_short(inputs: Inputs) -> bool:
    """Whether a run may need most of the free memory, by an upper bound from file sizes and widths."""
    config = load_config(inputs.found).get_text_config()
    weights = sum(file.stat().st_size for file in inputs.found.base.glob("*.safetensors"))
    tokens = max(inputs.longest, inputs.budget)
    most = 8 * weights + 160 * tokens * config.hidden_size * config.num_hidden_layers
    return most > 0.8 * memory_bytes(torch.device(inputs.run.model.device))


def _resolve_model(run: Run, found: Found, objective: Objective, tell: Tell) -> Run:
    """Write out device, number type, quantisation and sizes, so that a resumed run has the same."""
    place = settle(run.model, found)
    choice, held = place.choice, place.held
    settled = {"device": choice.device.type, "dtype": str(choice.dtype)[6:]}
    if held is None or not held.own:
        settled["quantize"] = "none" if held is None else held.kind
    spec = run.model.model_copy(update=settled)
    for reason in choice.reasons:
        tell(Event("note", values={"text": reason}))
    if held is None and (why := cast(Method, run.method).needs_quantized_base):
        raise Problem(f"method.{run.method.name()}", f"needs a quantised base ({why})", "Set model.quantize to nf4")
    if held is not None:
        check_held(held, cast(Method, run.method))
        tell(Event("note", values={"text": told_of(found, objective.head, held)}))
    context = context_of(found) or 1 << 30
    taken = cast(Method, run.method).virtual_tokens
    room, wanted = context - taken, run.train.max_tokens
    if wanted is not None and wanted > room:
        vectors = f", of which the method's vectors take {taken}" if taken else ""
        what = f"is {wanted}, and the model's context is {context}{vectors}"
        raise Problem("train.max_tokens", what, f"Use {room} or less")
    batch = run.train.tokens_per_batch or (CPU_BATCH_TOKENS if choice.device.type == "cpu" else DEFAULT_BATCH_TOKENS)
    longest = wanted or min(DEFAULT_MAX_TOKENS, room)
    return _train(run.model_copy(update={"model": spec}), max_tokens=longest, tokens_per_batch=batch)


def _resolve_step(run: Run, rows: TokenStore, tell: Tell) -> Run:
    if run.train.tokens_per_step or run.train.rows_per_step:
        return run
    if cast(Objective, run.objective).sampled:
        prompts = min(DEFAULT_STEP_PROMPTS, max(1, len(rows) // LEAST_STEPS))
        tell(Event("note", values={"text": f"rows_per_step {prompts}: answers are drawn to so many prompts a step"}))
        return _train(run, rows_per_step=prompts)
    tokens = int(rows.lengths.sum())
    size = min(DEFAULT_STEP_TOKENS, max(64, tokens // LEAST_STEPS))
    if size < DEFAULT_STEP_TOKENS:
        text = f"tokens_per_step {size}: an epoch has {tokens:,} tokens, and this gives it {LEAST_STEPS} steps"
        tell(Event("note", values={"text": text}))
    return _train(run, tokens_per_step=size)


def _resolve_schedule(run: Run, tell: Tell) -> Run:
    """Take the schedule that the optimizer needs.

    Raises:
        Problem: the run asks for another one.
    """
    optimizer = cast(OptimizerSpec, run.optimizer)
    needed = optimizer.schedule
    if needed is None or run.train.schedule == needed:
        return run
    if "schedule" in run.train.model_fields_set:
        what = f"is {run.train.schedule}, and the optimizer {optimizer.name()} goes with {needed} alone"
        raise Problem("train.schedule", what, f"Set it to {needed}, or leave it out")
    tell(Event("note", values={"text": f"schedule {needed}: the only one for the optimizer {optimizer.name()}"}))
    return _train(run, schedule=needed)


def _stream(run: Run, prepared: Prepared) -> Stream:
    return Stream(
        prepared.train.lengths,
        Pace(run.train.tokens_per_step, run.train.rows_per_step),
        seed=run.train.seed,
        order=run.train.order,
        sources=prepared.train.sources,
        weights=[spec.weight for spec in run.data],
    )


def _reading(tell: Tell) -> Callable[[int], None]:
    return lambda done: tell(Event("reading", values={"done": done}))


def _policy(inputs: Inputs, loaded: Loaded, trained: nn.Module, world: World) -> Policy:
    method = inputs.method
    return Policy(
        loaded.model,
        forest=loaded.verdict.forest,
        trained=trained,
        off=(lambda: method.off(trained)) if method.reversible else None,
        autocast=loaded.choice.dtype if loaded.choice.dtype != torch.float32 else None,
        neftune=inputs.run.train.neftune,
        codec=inputs.codec,
        ranks=world,
        budget=inputs.budget,
        share=inputs.run.train.share_prefixes and not method.reads_segments,
    )


def _steps(inputs: Inputs, policy: Policy, world: World) -> StoredSteps:
    objective, budget = inputs.objective, inputs.budget
    share = policy.shares and not objective.sampled
    train, held_out = (
        Side(rows, strangers(rows) if objective.needs_strangers and len(rows) else None, share=share)
        for rows in (inputs.prepared.train, inputs.prepared.validation)
    )
    if objective.scores_reference == "precomputed":
        untouched = policy.reference is None and (inputs.found.adapter is not None or not inputs.method.reversible)
        train, held_out = (scored(side, budget, policy, untouched) for side in (train, held_out))
        policy.reference = None
    sampled = objective.sampled
    return StoredSteps(train, held_out, inputs.stream, inputs.total, budget, world.rank, world.size, sampled)
