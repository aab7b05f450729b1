"""The seam between a merge and its tokenizers: which rows of the embeddings make up the merged vocabulary.

    recipe, models ─▶ build.vocabulary() ─▶ Vocabulary or None ─┬─ rows()     asked for by the engine, block by block
                                                                ├─ settings   of config.json
                                                                └─ save()     the tokenizer's files

`build.vocabulary(spec, names, folders, base, rows)` takes what the recipe says (None: nothing), the models' names as
the recipe writes them with the folders of their tokenizers, in the engine's order, the number of the base or None, and
how many rows each embedding has.
Without a wish it checks that all vocabularies are the same, so that no row is mixed with another token's in silence,
and gives None; the engine then copies the base's files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tunesmith.core.options import Options
from tunesmith.merge.methods import Array

ReadRows = Callable[[int, NDArray[np.intp]], Array]
"""Rows of one embedding by (number of the model, ids of its own tokens), in float32 or better."""


class ModelToken(Options):
    """The embedding of a token of one model."""

    kind: Literal["model_token"]
    """Says that the embedding is that of another token."""
    model: str
    """The model that has it, as it is written elsewhere in the recipe."""
    token: str | None = None
    """The token's text."""
    token_id: Annotated[int, Field(ge=0)] | None = None
    """The token's number, instead of its text."""


class Zero(Options):
    """An embedding of zeros."""

    kind: Literal["zero"]
    """Says that the embedding is zero."""


class TokenSpec(Options):
    """Where one token's embedding comes from."""

    source: ModelToken | Zero | str | None = None
    """A model's name, another token of a model, or zeros."""
    force: bool = False
    """Take it for the models too that have an embedding of their own for this token."""


class TokenizerSpec(Options):
    """Which tokenizer the merged model has, and where its embeddings come from."""

    source: str = "union"
    """`union` of all tokenizers, `base`, or the name of a model."""
    tokens: dict[str, TokenSpec] = {}
    """Embeddings of single tokens; a token that no model has is added."""
    pad_to_multiple_of: Annotated[int, Field(gt=0)] | None = None
    """Fill the embeddings up to a multiple of this many rows."""


class Vocabulary(ABC):
    """The merged vocabulary, and where each of its rows comes from."""

    size: int
    """Rows of the merged embeddings, padding included."""
    settings: Mapping[str, Any]
    """What the vocabulary changes in config.json: vocab_size, ids of special tokens."""
    lines: tuple[str, ...]
    """What was done, in words, for the plan and the model card."""

    @abstractmethod
    def rows(self, model: int, start: int, stop: int, read: ReadRows) -> Array:
        """Rows start to stop of the merged embedding as one model has them, filled where it lacks the token.

        model: its number in the order of the models; read: may be asked for any of the models.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into the folder of the merged model."""
