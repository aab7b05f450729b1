"""The model card of a merged model: what was merged, how, with hashes, and what was proven."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith import __version__
from tunesmith.core.plugins import doc
from tunesmith.merge.child import Child
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

{method} of {count} models, made by tunesmith {version} without training.
"""


def card(child: Child, name: str, hashes: Mapping[str, str], seed: int, proof: Proof) -> str:
    """The text of README.md; hashes: SHA-256 by file, none where the proof leaves them out."""
    recipe = child.layout.recipe
    method = recipe.method
    models = [f"* `{model}`" + (" (base)" if model.name == recipe.base else "") for model in child.layout.models]
    notes = [*differences(child), *(child.layout.vocabulary.lines if child.layout.vocabulary else ())]
    parts = [
        HEAD.format(name=name, method=method.name(), count=len(models), version=__version__),
        "## Models\n\n" + "\n".join(models),
        f"## Method\n\n{doc(method)}",
        f"## Recipe\n\n```yaml\n{recipe.text.strip()}\n```\n\nSeed: {seed}",
        *(["## Notes\n\n" + "\n".join(f"* {note}" for note in notes)] if notes else []),
        "## Proven\n\n" + "\n".join(f"* {line}" for line in proof.lines),
        *(["## SHA-256\n\n" + "\n".join(f"    {hash}  {file}" for file, hash in hashes.items())] if hashes else []),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def digests(child: Child, folder: Path, shards: Sequence[ShardFile]) -> dict[str, str]:
    """SHA-256 of every file of weights that was read, by folder and name, and of the result's, by name."""
    files: dict[Path, str] = {}
    for model in child.layout.models:
        files |= {file.path: f"{file.path.parent.name}/{file.path.name}" for file in model.weights.files}
        if model.adaption:
            adapter = model.adaption.folder / "adapter_model.safetensors"
            files[adapter] = f"{adapter.parent.name}/{adapter.name}"
    files |= {folder / shard.name: shard.name for shard in shards}
    return {name: _sha256(file) for file, name in files.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
