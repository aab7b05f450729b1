"""Merge: one file of recipes into one model.

    recipes ─▶ each stage: open models ─▶ layout (all faults) ─▶ engine ─▶ proof ─▶ card ─▶ renamed
               └ a recipe of several stages is rehearsed first, so that no fault comes after hours of work

Nothing stands under the output's name before it is complete and proven.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.core.rundir import write_atomic, write_json
from tunesmith.merge.card import card, digests
from tunesmith.merge.child import RECORD, Child
from tunesmith.merge.engine import Engine, Progress, silent
from tunesmith.merge.inputs import Model, open_models
from tunesmith.merge.layout import Layout
from tunesmith.merge.output import Staging, check_room, held, shard_files
from tunesmith.merge.plan import Plan, plan_of
from tunesmith.merge.proof import PROMPTS, Proof, prove_files, prove_model
from tunesmith.merge.recipe import Recipe, read_recipes
from tunesmith.merge.tokens.build import vocabulary
from tunesmith.models.source import read_json

SHARD_BYTES = 4_000_000_000
FORMAT = 1
"""Changes whenever the same recipe over the same models would come out otherwise."""


@dataclass(frozen=True)
class How:
    """How a merge is done, whatever the recipe says.

    seed: what random pruning follows from; threads: 0 for all cores; shard: largest file in bytes; proof: what is
    checked at the end.
    """

    seed: int = 0
    threads: int = 0
    shard: int = SHARD_BYTES
    proof: Literal["full", "files"] = "full"

    @property
    def workers(self) -> int:
        """How many threads work."""
        return self.threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(2))


@dataclass(frozen=True)
class Merged:
    """A merged model: its folder, what was proven, and the files that were kept of an earlier start."""

    folder: Path
    proof: Proof
    kept: Sequence[str]


def merge(file: Path, output: Path, how: How = How(), listen: Progress = silent) -> Merged:
    """Merge the models of a recipe into a new folder.

    Raises:
        Problem: faults of the recipe, models that do not fit together, no room on the disk, an output that exists, or
            a result that is not proven.
    """
    output = output.expanduser().absolute()
    recipes = read_recipes(file)
    with held(output) as folder:
        if len(recipes) > 1:
            _rehearse(recipes, output, how)
        stages: dict[str, Path] = {}
        for recipe in recipes[:-1]:
            stages[str(recipe.stage)] = _stage(recipe, folder / "stages" / str(recipe.stage), stages, how, listen)
        return _merge(recipes[len(recipes) - 1], output, stages, how, listen)


def plan(file: Path, output: Path, how: How = How()) -> tuple[Plan, ...]:
    """What a merge would read and write, each stage after the other; nothing is written.

    Raises:
        Problem: as `merge`, as far as it can be known before.
    """
    return _rehearse(read_recipes(file), output.expanduser().absolute(), how)


def _stage(recipe: Recipe, folder: Path, stages: Mapping[str, Path], how: How, listen: Progress) -> Path:
    """The result of an earlier stage; one that is finished from an earlier start is kept."""
    if (folder / RECORD).is_file():
        with _opened(recipe, stages) as child:
            if read_json(folder / RECORD).get("key") == _key(child, how):
                return folder
        shutil.rmtree(folder)
    with held(folder):
        return _merge(recipe, folder, stages, how, listen).folder


def _merge(recipe: Recipe, output: Path, stages: Mapping[str, Path], how: How, listen: Progress) -> Merged:
    with _opened(recipe, stages) as child:
        layout = child.layout
        config = child.config()
        key = _key(child, how)
        staging = Staging(output, key, child.pieces, how.shard)
        kept = staging.resume()
        check_room(staging)
        Engine(layout.models, layout.vocabulary, how.seed, listen).run(staging, how.workers)
        staging.write_index()
        write_json(staging.folder / "config.json", config)
        child.write(staging.folder)
        proof = _prove(staging, how)
        hashes = digests(child, staging.folder, staging.shards) if how.proof == "full" else {}
        write_json(staging.folder / RECORD, child.record(key, how.seed, hashes))
        text = card(child, output.name, hashes, how.seed, proof)
        write_atomic(staging.folder / "README.md", text.encode())
        staging.publish()
        return Merged(output, proof, kept)


def _prove(staging: Staging, how: How) -> Proof:
    tensors = prove_files(staging.folder, staging.shards)
    if how.proof == "files":
        return Proof(tensors, 0)
    return Proof(tensors, len(PROMPTS), prove_model(staging.folder))


@contextmanager
def _opened(recipe: Recipe, stages: Mapping[str, Path]) -> Generator[Child]:
    """A recipe over its open models, laid out in full."""
    models = open_models(recipe.models, stages)
    try:
        yield _child(recipe, models)
    finally:
        for model in models:
            model.weights.close()


def _child(recipe: Recipe, models: Sequence[Model]) -> Child:
    names, folders = [str(model) for model in models], [model.tokenizer for model in models]
    base = recipe.models.index(recipe.base) if recipe.base else None
    rows = [model.tokens for model in models]
    layout = Layout(recipe, models, vocabulary(recipe.tokenizer, names, folders, base, rows))
    return Child(layout, layout.pieces())


def _key(child: Child, how: How) -> str:
    """What tells this very merge from another: recipe, seed, files, and the inputs' sizes and times of change."""
    layout = child.layout
    inputs = [[str(file.path), *file.mark] for model in layout.models for file in model.weights.files]
    adapters = [str(model.adaption.folder) for model in layout.models if model.adaption]
    value = [FORMAT, layout.recipe.text, how.seed, how.shard, inputs, adapters]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _rehearse(recipes: Sequence[Recipe], output: Path, how: How) -> tuple[Plan, ...]:
    """Lay out every stage; what a later one takes is there as headers over files without content."""
    plans: list[Plan] = []
    with tempfile.TemporaryDirectory() as scratch:
        stages: dict[str, Path] = {}
        for recipe in recipes:
            with _opened(recipe, stages) as child:
                folder = Path(scratch) / str(len(stages))
                shards = shard_files(folder, child.pieces, how.shard)
                plans.append(plan_of(child, shards, output, how.workers))
                folder.mkdir()
                hollow = shard_files(folder, child.pieces, sum(piece.bytes for piece in child.pieces) + 1)
                (folder / hollow[0].name).write_bytes(hollow[0].header)
                os.truncate(folder / hollow[0].name, hollow[0].size)
                write_json(folder / "config.json", child.config())
                child.write(folder)
                stages[str(recipe.stage)] = folder
    return tuple(plans)
