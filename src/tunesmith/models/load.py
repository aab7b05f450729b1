"""From a model's specification to weights in memory, a tokenizer, and what was chosen and why."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.core.rundir import write_json
from tunesmith.data.tokenizer import Codec
from tunesmith.models.device import Choice, choose
from tunesmith.models.probe import Verdict, check_head, choose_attention
from tunesmith.models.source import Found, find, read_json

HeadKind = Literal["lm", "score"]
HEAD_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Loaded:
    """A model ready to use, without any adapter on it.

    found: where it came from; verdict: whether it takes forests; notes: each automatic choice with its reason.
    """

    model: PreTrainedModel
    codec: Codec
    found: Found
    choice: Choice
    verdict: Verdict
    notes: tuple[str, ...]


def load(spec: ModelSpec, head: HeadKind = "lm", *, weights: torch.dtype | None = None) -> Loaded:
    """Load the base model of a specification; an adapter over it is left to the methods.

    head: next tokens, or one score a row; weights: hold them in this type, whatever is computed in.

    Raises:
        Problem: not found, not safe, not complete, or an option that this machine or model cannot honour.
    """
    found = find(spec.path, spec.revision)
    choice = choose(spec.device, spec.dtype)
    codec = load_codec(found, spec.chat_template)
    model = _weights(found, head, weights or choice.dtype).to(choice.device)  # type: ignore[arg-type]
    model.name_or_path = found.name
    _check_vocabulary(model, codec, spec.path)
    verdict = choose_attention(model, spec.attention)
    if spec.attention == "forest" and not verdict.forest:
        raise Problem("model.attention", verdict.reason, "Set it to auto or padded")
    if head == "lm" and (off := check_head(model)) > HEAD_TOLERANCE:
        if math.isinf(off):
            raise _not_finite(model, spec.path)
        raise Problem(
            spec.path,
            f"{type(model).__name__} changes its logits in a way that is not known here (off by {off:.2g})",
            "Please report the architecture",
        )
    return Loaded(model, codec, found, choice, verdict, (*choice.reasons, f"attention: {verdict.reason}"))


def load_codec(found: Found, chat_template: str | None = None) -> Codec:
    """The tokenizer and chat template that belong to a model.

    Raises:
        Problem: there is no tokenizer that can be read.
    """
    return Codec.load(found.tokenizer, chat_template)


def load_config(found: Found) -> PreTrainedConfig:
    """The configuration of a model, without its weights."""
    try:
        return AutoConfig.from_pretrained(found.base, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what a stranger's configuration makes transformers raise has no common base
        raise Problem(str(found.base / "config.json"), f"cannot be used ({_first_line(error)})") from error


def skeleton(found: Found, head: HeadKind = "lm") -> PreTrainedModel:
    """The model without memory for its weights (on the meta device): shapes and names to plan by.

    Raises:
        Problem: the architecture has no such head.
    """
    config = load_config(found)
    if head == "score":
        config.num_labels = 1
    with torch.device("meta"):
        try:
            return _auto(head).from_config(config)
        except Exception as error:  # what a stranger's configuration makes a model raise has no common base
            raise Problem(str(found.base), f"cannot be built ({_first_line(error)})") from error


def save_tokenizer(codec: Codec, found: Found, folder: Path) -> None:
    """Save the tokenizer with the template that was used, in the layout that transformers 4 and 5 both read."""
    tokenizer = _tokenizer(found.tokenizer)
    tokenizer.chat_template = codec.template
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = {name: value for name, value in read_json(path).items() if name != "auto_map"}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, config)


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bars and reports; what matters of them is said by tunesmith itself."""
    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def fingerprint(found: Found) -> str:
    """SHA-256 over the names and contents of what makes the model: weights and configuration, an adapter's too."""
    digest = hashlib.sha256()
    for folder in (found.base, found.adapter):
        names = ("*.safetensors", "config.json", "adapter_config.json")
        for file in sorted(file for name in names for file in folder.glob(name)) if folder else ():
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError:  # its class would be code of its author; the ids are those of tokenizer.json all the same
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _auto(head: HeadKind) -> Any:
    return AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification


def _weights(found: Found, head: HeadKind, dtype: torch.dtype) -> PreTrainedModel:
    config = load_config(found)
    stored = config.dtype
    if head == "score":
        config.num_labels = 1
        if config.pad_token_id is None:
            config.pad_token_id = _any_id(config.eos_token_id)
    try:
        with quietly():
            model, info = _auto(head).from_pretrained(
                found.base,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # what a stranger's files make transformers raise has no common base
        raise Problem(str(found.base), f"cannot be loaded ({_misfit(found, head) or _first_line(error)})") from error
    _check_complete(found, head, info, model)
    model.config.dtype = stored
    return model


def _check_complete(found: Found, head: HeadKind, info: dict[str, Any], model: PreTrainedModel) -> None:
    missing = sorted(name for name in info["missing_keys"] if not (head == "score" and name.startswith("score.")))
    if missing:
        shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        raise Problem(
            str(found.base),
            f"{len(missing)} weights are missing from the files ({shown}); they would be random",
            "The folder is not complete; fetch it again",
        )
    left = sorted(info["unexpected_keys"])
    if len(left) > len(model.state_dict()):
        raise Problem(
            str(found.base),
            f"{len(left)} weights of the files, most of them, have no place in the model that config.json describes "
            f"({', '.join(left[:3])} …)",
            "config.json belongs to another model; fetch the folder again",
        )


def _not_finite(model: PreTrainedModel, path: str) -> Problem:
    named = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    why = f"its weights are not finite ({', '.join(named[:3])})" if named else "its logits overflow"
    hint = "The files are damaged; fetch them again" if named else "Set model.dtype to float32 or bfloat16"
    return Problem(path, f"cannot compute: {why}", hint)


def _misfit(found: Found, head: HeadKind) -> str:
    """Which weight has another shape in the files than in the configuration; empty if none."""
    own = skeleton(found, head).state_dict()
    for file in sorted(found.base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in set(tensors.keys()) & set(own):
                shape, wanted = tensors.get_slice(name).get_shape(), list(own[name].shape)
                if shape != wanted:
                    return f"{name} is {shape} in the files and {wanted} by config.json"
    return ""


def _check_vocabulary(model: PreTrainedModel, codec: Codec, path: str) -> None:
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index, union-attr]
    if codec.vocab_size > rows:
        raise Problem(
            path,
            f"the tokenizer has {codec.vocab_size} entries and the model's embedding only {rows} rows",
            "The tokenizer belongs to another model",
        )


def _any_id(value: int | list[int] | None) -> int:
    return (value[0] if isinstance(value, list) else value) or 0


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
