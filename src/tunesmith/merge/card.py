"""The model card of a merged model: what was merged, how, with hashes, and what was proven."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith import __version__
from tunesmith.core.plugins import doc
from tunesmith.merge.child import Child
from tunesmith.merge.inputs import Model
from tunesmith.merge.output import ShardFile
from tunesmith.merge.plan import differences
from tunesmith.merge.proof import Proof

HEAD = """\
---
library_name: transformers
tags:
- merge
- tunesmith
---
# {name}

{what}, made by tunesmith {version} without training.
"""


@dataclass(frozen=True)
class About:
    """What a card says of a merge before it is done.

    what: in a phrase; models: their names, the base among them; method: its description; recipe: as it is written.
    """

    what: str
    models: Sequence[str]
    base: str | None
    method: str
    recipe: str
    seed: int
    notes: Sequence[str]


def about(child: Child, seed: int) -> About:
    """What the card of a recipe's result says."""
    recipe = child.layout.recipe
    names = [str(model) for model in child.models]
    notes = [*differences(child), *(child.vocabulary.lines if child.vocabulary else ())]
    what = f"{recipe.method.name()} of {len(names)} models"
    return About(what, names, str(recipe.base) if recipe.base else None, doc(recipe.method), recipe.text, seed, notes)


def card(told: About, name: str, hashes: Mapping[str, str], proof: Proof) -> str:
    """The text of README.md; hashes: SHA-256 by file, none where the proof leaves them out."""
    models = [f"* `{model}`" + (" (base)" if model == told.base else "") for model in told.models]
    parts = [
        HEAD.format(name=name, what=told.what, version=__version__),
        "## Models\n\n" + "\n".join(models),
        f"## Method\n\n{told.method}",
        f"## Recipe\n\n```yaml\n{told.recipe.strip()}\n```\n\nSeed: {told.seed}",
        *(["## Notes\n\n" + "\n".join(f"* {note}" for note in told.notes)] if told.notes else []),
        "## Proven\n\n" + "\n".join(f"* {line}" for line in proof.lines),
        *(["## SHA-256\n\n" + "\n".join(f"    {hash}  {file}" for file, hash in hashes.items())] if hashes else []),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def digests(models: Sequence[Model], folder: Path, shards: Sequence[ShardFile]) -> dict[str, str]:
    """SHA-256 of every file of weights that was read, by folder and name, and of the result's, by name."""
    files: dict[Path, str] = {}
    for model in models:
        files |= {file.path: f"{file.path.parent.name}/{file.path.name}" for file in model.weights.files}
        if model.adaption:
            adapter = model.adaption.folder / "adapter_model.safetensors"
            files[adapter] = f"{adapter.parent.name}/{adapter.name}"
    files |= {folder / shard.name: shard.name for shard in shards}
    return {name: _sha256(file) for file, name in files.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
