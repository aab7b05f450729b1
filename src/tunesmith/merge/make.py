"""From a model that is planned to the last tensor to its folder: engine, files beside the weights, proof, card, rename.

Nothing stands under the output's name before it is complete and proven.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from tunesmith.core.rundir import write_atomic, write_json
from tunesmith.merge.card import About, card, digests
from tunesmith.merge.child import RECORD
from tunesmith.merge.engine import Engine, Progress
from tunesmith.merge.inputs import Model
from tunesmith.merge.layout import Piece
from tunesmith.merge.output import Staging, check_room
from tunesmith.merge.prompts import PROMPTS
from tunesmith.merge.proof import Proof, prove_files, prove_model
from tunesmith.merge.tokens import Vocabulary

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


AS_USUAL = How()
"""Nothing asked for."""


@dataclass(frozen=True)
class Merged:
    """A merged model: its folder, what was proven, the files that were kept of an earlier start, and what to know."""

    folder: Path
    proof: Proof
    kept: Sequence[str]
    notes: Sequence[str] = ()


class Planned(Protocol):
    """A model that is to be made: all its pieces over open models, and what stands beside them."""

    @property
    def models(self) -> Sequence[Model]:
        """The models that it is made of."""
        ...

    @property
    def pieces(self) -> Sequence[Piece]:
        """Every tensor."""
        ...

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Its tokens, where embeddings are moved by token."""
        ...

    @property
    def text(self) -> str:
        """The recipe as it is written."""
        ...

    def config(self) -> dict[str, Any]:
        """config.json."""
        ...

    def write(self, folder: Path) -> None:
        """Write what stands beside the weights."""
        ...

    def record(self, key: str, seed: int, hashes: Mapping[str, str]) -> dict[str, Any]:
        """What was merged, how, and what came out, as plain data."""
        ...


def make(planned: Planned, told: About, output: Path, how: How, listen: Progress) -> Merged:
    """Write a planned model and give it its name; told: what its card says.

    Raises:
        Problem: no room, a result that is not finite, inputs that change, or a result that is not proven.
    """
    config, key = planned.config(), key_of(planned, how)
    staging = Staging(output, key, planned.pieces, how.shard)
    kept = staging.resume()
    check_room(staging)
    Engine(planned.models, planned.vocabulary, how.seed, listen).run(staging, how.workers)
    staging.write_index()
    write_json(staging.folder / "config.json", config)
    planned.write(staging.folder)
    proof = _prove(staging, how)
    hashes = digests(planned.models, staging.folder, staging.shards) if how.proof == "full" else {}
    write_json(staging.folder / RECORD, planned.record(key, how.seed, hashes))
    write_atomic(staging.folder / "README.md", card(told, output.name, hashes, proof).encode())
    staging.publish()
    return Merged(output, proof, kept, told.notes)


def key_of(planned: Planned, how: How) -> str:
    """What tells this very merge from another: recipe, seed, files, and the inputs' sizes and times of change."""
    inputs = [[str(file.path), *file.mark] for model in planned.models for file in model.weights.files]
    adapters = [str(model.adaption.folder) for model in planned.models if model.adaption]
    value = [FORMAT, planned.text, how.seed, how.shard, inputs, adapters]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _prove(staging: Staging, how: How) -> Proof:
    tensors = prove_files(staging.folder, staging.shards)
    if how.proof == "files":
        return Proof(tensors, 0)
    return Proof(tensors, len(PROMPTS), prove_model(staging.folder))
