"""The folder layout of sentence-transformers, beside a model's own files: how its vectors or scores are made.

    embedder   modules.json                       transformer ─▶ pooling ─▶ length 1
               sentence_bert_config.json          (texts are tokenised as they are, no chat template)
               1_Pooling/config.json              which states make the vector
               2_Normalize/config.json
               config_sentence_transformers.json  vectors are compared by their cosine
    reranker   modules.json                       transformer alone, which scores (query, document)
               sentence_bert_config.json, config_sentence_transformers.json

It is written in the words that versions from 2 on read. Where nothing says otherwise, version 5 on would put every
text into the tokenizer's chat template, so these files stand beside a reranker, too, though it has but one module.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, cast

from tunesmith.core.problem import Problem
from tunesmith.core.rundir import write_json
from tunesmith.models.pooling import Pooling
from tunesmith.models.source import read_json

MODULES, TRANSFORMER, ABOUT = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
TOKENIZER = "tokenizer_config.json"
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
FILES = (MODULES, TRANSFORMER, ABOUT, "1_Pooling/config.json", "2_Normalize/config.json")
"""All that says how vectors or scores are made."""
MODE = "pooling_mode_"
WORDS: dict[str, Pooling] = {
    "mean_tokens": "mean",
    "lasttoken": "last",
    "cls_token": "cls",
    "mean": "mean",
    "cls": "cls",
}
"""The library's words for how a vector is read: behind `MODE`, and those of its newest versions."""


def save_embedder(folder: Path, pooling: Pooling, width: int) -> None:
    """Say that the model in a folder gives vectors, and how.

    width: numbers of a vector.
    """
    modes = {MODE + word: WORDS[word] == pooling for word in ("cls_token", "mean_tokens", "lasttoken")}
    _write(folder, ("Transformer", "Pooling", "Normalize"))
    write_json(folder / TRANSFORMER, {"do_lower_case": False})
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **modes})
    write_json(folder / "2_Normalize" / "config.json", {})
    write_json(folder / ABOUT, {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"})


def save_reranker(folder: Path, types: bool = False) -> None:
    """Say that the model in a folder scores a query and a document that its tokenizer joins.

    types: whether it is told which of the two a token is of; not every class of tokenizers does so by itself.
    """
    _write(folder, ("Transformer",))
    write_json(folder / TRANSFORMER, {"transformer_task": "sequence-classification", "do_lower_case": False})
    write_json(folder / ABOUT, {"model_type": "CrossEncoder"})
    if types:
        config = read_json(folder / TOKENIZER)
        write_json(folder / TOKENIZER, {**config, "model_input_names": list(INPUTS)})


def keep_layout(source: Path, folder: Path) -> None:
    """Say of the model in a folder what is said of the one in `source`; nothing where nothing is."""
    for name in FILES:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def saved_pooling(folder: Path) -> Pooling | Literal["other"] | None:
    """How the vectors of the model in a folder are made: `other` where in a way not known here, None for no vectors.

    Raises:
        Problem: the files that say so are damaged.
    """
    parts = _modules(folder / MODULES) if (folder / MODULES).is_file() else []
    kinds = [str(part.get("type")).rpartition(".")[2] for part in parts]
    if "Pooling" not in kinds:
        return None
    config = read_json(folder / Path(str(parts[kinds.index("Pooling")].get("path"))).name / "config.json")
    said = [name.removeprefix(MODE) for name, value in config.items() if name.startswith(MODE) and value is True]
    modes: list[Pooling | None] = [WORDS.get(word) for word in said or [str(config.get("pooling_mode"))]]
    plain = len(modes) == 1 and set(kinds) <= {"Transformer", "Pooling", "Normalize"}
    return (modes[0] or "other") if plain else "other"


def _write(folder: Path, names: tuple[str, ...]) -> None:
    parts = [
        {"idx": n, "name": str(n), "path": f"{n}_{name}" if n else "", "type": f"sentence_transformers.models.{name}"}
        for n, name in enumerate(names)
    ]
    write_json(folder / MODULES, parts)


def _modules(file: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Problem(str(file), f"cannot be read ({error})", "The folder is damaged; fetch it again") from error
    if not isinstance(found, list) or not all(isinstance(part, dict) for part in cast("list[Any]", found)):
        raise Problem(str(file), "is no list of modules", "The folder is damaged; fetch it again")
    return cast("list[dict[str, Any]]", found)
