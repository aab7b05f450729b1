"""Merge: one file of recipes into one model.

    recipes ─▶ each stage: open models ─▶ layout (all faults) ─▶ engine ─▶ proof ─▶ card ─▶ renamed
               └ a recipe of several stages is rehearsed first, so that no fault comes after hours of work

Nothing stands under the output's name before it is complete and proven.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.core.rundir import write_json
from tunesmith.merge.card import about
from tunesmith.merge.child import RECORD, Child
from tunesmith.merge.engine import Progress, silent
from tunesmith.merge.experts.build import build_mixture, plan_mixture
from tunesmith.merge.experts.recipe import is_mixture
from tunesmith.merge.inputs import Model, open_models
from tunesmith.merge.layout import Layout
from tunesmith.merge.make import AS_USUAL, How, Merged, key_of, make
from tunesmith.merge.output import held, shard_files
from tunesmith.merge.plan import Plan, plan_of
from tunesmith.merge.recipe import Recipe, read_recipes
from tunesmith.merge.tokens.build import vocabulary
from tunesmith.models.source import read_json


def merge(file: Path, output: Path, how: How = AS_USUAL, listen: Progress = silent) -> Merged:
    """Merge the models of a recipe into a new folder; a recipe of experts becomes a mixture of them.

    Raises:
        Problem: faults of the recipe, models that do not fit together, no room on the disk, an output that exists, or
            a result that is not proven.
    """
    output = output.expanduser().absolute()
    if is_mixture(file):
        return build_mixture(file, output, how, listen)
    recipes = read_recipes(file)
    with held(output) as folder:
        if len(recipes) > 1:
            _rehearse(recipes, output, how)
        stages: dict[str, Path] = {}
        for recipe in recipes[:-1]:
            stages[str(recipe.stage)] = _stage(recipe, folder / "stages" / str(recipe.stage), stages, how, listen)
        return _merge(recipes[len(recipes) - 1], output, stages, how, listen)


def plan(file: Path, output: Path, how: How = AS_USUAL) -> tuple[Plan, ...]:
    """What a merge would read and write, each stage after the other; nothing is written.

    Raises:
        Problem: as `merge`, as far as it can be known before.
    """
    output = output.expanduser().absolute()
    if is_mixture(file):
        return (plan_mixture(file, output, how),)
    return _rehearse(read_recipes(file), output, how)


def _stage(recipe: Recipe, folder: Path, stages: Mapping[str, Path], how: How, listen: Progress) -> Path:
    """The result of an earlier stage; one that is finished from an earlier start is kept."""
    if (folder / RECORD).is_file():
        with _opened(recipe, stages) as child:
            if read_json(folder / RECORD).get("key") == key_of(child, how):
                return folder
        shutil.rmtree(folder)
    with held(folder):
        return _merge(recipe, folder, stages, how, listen).folder


def _merge(recipe: Recipe, output: Path, stages: Mapping[str, Path], how: How, listen: Progress) -> Merged:
    with _opened(recipe, stages) as child:
        return make(child, about(child, how.seed), output, how, listen)


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
