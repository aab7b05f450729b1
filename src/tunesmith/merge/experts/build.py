"""Build a mixture of experts by its recipe.

recipe ─▶ open models ─▶ layout, pieces (all faults) ─▶ routers ─▶ engine ─▶ proof ─▶ card ─▶ renamed
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tunesmith.merge.experts as explained
from tunesmith import __version__
from tunesmith.core.rundir import write_json
from tunesmith.merge.card import About
from tunesmith.merge.child import TOKENIZER, copy_files, usual_type
from tunesmith.merge.engine import Progress, silent
from tunesmith.merge.experts.layouts import Checkpoint, checkpoint_for
from tunesmith.merge.experts.pieces import Planner
from tunesmith.merge.experts.recipe import MixtureRecipe, read_mixture
from tunesmith.merge.experts.routers import SIMILAR, Routers
from tunesmith.merge.inputs import HEADS, Model, open_models
from tunesmith.merge.layout import Piece
from tunesmith.merge.make import How, Merged, make
from tunesmith.merge.output import held, shard_files
from tunesmith.merge.plan import Plan, memory_of, present


@dataclass(frozen=True)
class Plot:
    """A mixture that is planned: its recipe over open models, the base first, with all pieces."""

    recipe: MixtureRecipe
    models: Sequence[Model]
    checkpoint: Checkpoint
    routers: Routers
    pieces: Sequence[Piece]
    vocabulary: None = None

    @property
    def text(self) -> str:
        """The recipe as it is written."""
        return self.recipe.text

    @property
    def what(self) -> str:
        """What it is, in a phrase."""
        mixture = self.recipe.mixture
        shared = " and a shared one" if mixture.shared_experts else ""
        count = f"{len(mixture.experts)} experts{shared}, {mixture.experts_per_token} a token"
        return f"mixture in the {self.checkpoint.title} layout ({count})"

    def config(self) -> dict[str, Any]:
        """config.json: the base's in words of the layout."""
        value = self.checkpoint.config(self.models[0], self.recipe.mixture)
        headed = any(piece.name in HEADS for piece in self.pieces)
        value["tie_word_embeddings"] = not headed or (bool(value.get("tie_word_embeddings")) and not self._untied)
        return value | {"dtype": usual_type(self.pieces)}

    @property
    def _untied(self) -> bool:
        """Whether a model that its configuration calls tied has a head of its own, or an adapter made it one."""
        return any(model.tied for model in self.models)

    def write(self, folder: Path) -> None:
        """Write configuration and tokenizer, those of the base."""
        base = self.models[0]
        write_json(folder / "config.json", self.config())
        copy_files(base.folder, folder, ["generation_config.json"])
        copy_files(base.tokenizer, folder, TOKENIZER)

    def record(self, key: str, seed: int, hashes: Mapping[str, str]) -> dict[str, Any]:
        """What was made, of what, and what came out, as plain data."""
        return {
            "tunesmith": __version__,
            "key": key,
            "method": f"experts ({self.checkpoint.model_type})",
            "seed": seed,
            "recipe": self.text,
            "models": [{"name": str(model), "folder": str(model.folder)} for model in self.models],
            "tensors": len(self.pieces),
            "sha256": dict(hashes),
        }

    def notes(self) -> list[str]:
        """What a person should know before any router is found."""
        mixture, base = self.recipe.mixture, self.models[0]
        rest = f"those of {base}" if mixture.rest == "base" else "the mean of the experts'"
        told = [f"attention, norms, embeddings and head are {rest}; tokenizer and settings are those of {base}"]
        sources = {(expert.source_model, expert.noise_scale) for expert in mixture.experts}
        if len(mixture.experts) > 1 and len(sources) == 1 and not mixture.experts[0].noise_scale:
            told.append("all experts are the same model, so they do not differ until they are trained")
        if mixture.experts_per_token == 1:
            told.append("with one expert a token its weight is always 1, so routers alone cannot learn")
        return told

    def routed(self) -> list[str]:
        """What a person should know of the routers."""
        alike = self.routers.alike if len(self.recipe.mixture.experts) > 1 else []
        if not alike:
            return []
        which = "all layers" if len(alike) == self.models[0].stack.count else f"layers {', '.join(map(str, alike))}"
        return [f"routers of {which} hardly tell the experts apart (condition above {SIMILAR:g}); take other prompts"]


def build_mixture(file: Path, output: Path, how: How, listen: Progress = silent) -> Merged:
    """Build the mixture of a recipe into a new folder.

    Raises:
        Problem: faults of the recipe, models that do not fit together, no room on the disk, an output that exists, or
            a result that is not proven.
    """
    with held(output), _opened(read_mixture(file), how, listen) as plot:
        notes = [*plot.notes(), *plot.routed()]
        names = [str(model) for model in plot.models]
        about = About(f"A {plot.what}", names, names[0], str(explained.__doc__), plot.text, how.seed, notes)
        return make(plot, about, output, how, listen)


def plan_mixture(file: Path, output: Path, how: How) -> Plan:
    """What would be read and written; no weight is read and no prompt run.

    Raises:
        Problem: as `build_mixture`, as far as it can be known before.
    """
    with _opened(read_mixture(file), how, silent) as plot:
        plot.config()
        shards = shard_files(output, plot.pieces, how.shard)
        return Plan(
            "",
            plot.what,
            {str(model): model.bytes for model in plot.models},
            len(plot.pieces),
            plot.models[0].stack.count,
            sum(shard.size for shard in shards),
            len(shards),
            [usual_type(plot.pieces)],
            memory_of(plot.pieces, how.workers),
            shutil.disk_usage(present(output)).free,
            plot.notes(),
        )


@contextmanager
def _opened(recipe: MixtureRecipe, how: How, listen: Progress) -> Generator[Plot]:
    """A recipe over its open models, planned in full."""
    models = open_models(recipe.models, {})
    try:
        mixture, base = recipe.mixture, models[0]
        routers = Routers(base, recipe.sources, mixture.gate_mode, how.seed, listen)
        checkpoint = checkpoint_for(base, mixture)
        yield Plot(recipe, models, checkpoint, routers, Planner(recipe, models, checkpoint, routers).pieces())
    finally:
        for model in models:
            model.weights.close()
