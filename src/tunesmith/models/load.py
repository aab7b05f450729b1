"""From a model's specification to weights in memory, a tokenizer, and what was chosen and why."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.core.rundir import write_json
from tunesmith.data.tokenizer import Codec
from tunesmith.models.device import Choice
from tunesmith.models.heads import KINDS, HeadSpec, head_parts, reads_both_ways
from tunesmith.models.probe import TOLERANCE, Verdict, check_head, check_labels, choose_attention
from tunesmith.models.quantize import Held, Place, loading, settle, share, steady
from tunesmith.models.source import HEAD_FILE, Found, find, head_of, is_encoder_decoder, read_json

LM = HeadSpec()
HEAD_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Loaded:
    """A model ready to use, without any adapter on it.

    found: where it came from; verdict: whether it takes forests; notes: each automatic choice with its reason; held:
    how its base is quantised, None for plain weights.
    """

    model: PreTrainedModel
    codec: Codec
    found: Found
    choice: Choice
    verdict: Verdict
    notes: tuple[str, ...]
    held: Held | None = None


def load(spec: ModelSpec, head: HeadSpec = LM, *, weights: torch.dtype | None = None) -> Loaded:
    """Load the base model of a specification; an adapter over it is left to the methods.

    head: the last layer that is wanted; where the files have none of its kind it is new, and random; weights: hold
    them in this type, whatever is computed in.

    Raises:
        Problem: not found, not safe, not complete, or an option that this machine or model cannot honour.
    """
    found = find(spec.path, spec.revision)
    place = settle(spec, found)
    choice, held = place.choice, place.held
    codec = load_codec(found, spec.chat_template)
    model = _placed(found, head, weights or choice.dtype, place)
    model.name_or_path = found.name
    if head.kind in KINDS:
        model.config.get_text_config().pad_token_id = model.config.pad_token_id = padding(model.config, codec)
    _check_vocabulary(model, codec, spec.path)
    verdict = choose_attention(model, spec.attention)
    if spec.attention == "forest" and not verdict.forest:
        raise Problem("model.attention", verdict.reason, "Set it to auto or padded")
    if head.kind == "lm":
        _check_logits(model, spec.path)
    elif head.kind != "states":
        _check_labels(model, verdict, spec.path)
    told = () if held is None else (told_of(found, head, held),)
    return Loaded(model, codec, found, choice, verdict, (*choice.reasons, *told, f"attention: {verdict.reason}"), held)


def told_of(found: Found, head: HeadSpec, held: Held) -> str:
    """How a base is held, for a person; nothing but its shapes is read.

    Raises:
        Problem: it has no layer that can be held so.
    """
    if held.own:
        return f"quantize: the base is {held.kind}, as its files came ({held.library})"
    return f"quantize {held.kind}: {share(skeleton(found, head), held)}, through {held.library} ({held.why})"


def load_weights(found: Found, head: HeadSpec, dtype: torch.dtype, options: Mapping[str, Any]) -> PreTrainedModel:
    """The base model alone, held in one type, with no weight missing; nothing is probed.

    options: further ones of transformers' `from_pretrained`, such as where its parts are kept.

    Raises:
        Problem: it cannot be loaded, or is not complete.
    """
    return _weights(found, head, dtype, options)


def load_codec(found: Found, chat_template: str | None = None) -> Codec:
    """The tokenizer and chat template that belong to a model.

    Raises:
        Problem: there is no tokenizer that can be read.
    """
    chats = not reads_both_ways(load_config(found))
    return Codec.load(found.tokenizer, chat_template, is_encoder_decoder(found), chats=chats)


def load_config(found: Found) -> PreTrainedConfig:
    """The configuration of a model, without its weights."""
    try:
        return AutoConfig.from_pretrained(found.base, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what a stranger's configuration makes transformers raise has no common base
        raise Problem(str(found.base / "config.json"), f"cannot be used ({_first_line(error)})") from error


def context_of(found: Found) -> int | None:
    """The longest row that a model reads, in tokens; None where it says nothing.

    RoBERTa and its kin count positions from behind the token that fills up rows.
    """
    config = load_config(found)
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not length or not reads_both_ways(config):
        return length
    for name, module in skeleton(found, HeadSpec("states")).named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return length - 1 - int(module.padding_idx)  # type: ignore[arg-type]
    return length


def skeleton(found: Found, head: HeadSpec = LM) -> PreTrainedModel:
    """The model without memory for its weights (on the meta device): shapes and names to plan by.

    Raises:
        Problem: the architecture has no such head.
    """
    config = load_config(found)
    kind = _auto(head, config)
    with torch.device("meta"):
        try:
            return kind.from_config(config)
        except Exception as error:  # what a stranger's configuration makes a model raise has no common base
            raise Problem(str(found.base), f"cannot be built ({_first_line(error)})") from error


def save_tokenizer(codec: Codec, found: Found, folder: Path) -> None:
    """Save the tokenizer with the template that was used, in the layout that transformers 4 and 5 both read.

    Beside a head for labels or scores, which is in the folder already, it fills up rows as that head needs it.
    """
    tokenizer = _tokenizer(found.tokenizer)
    tokenizer.chat_template = codec.template or None
    if (filler := _filler(folder)) is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(filler)
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


def keep_head(model: PreTrainedModel, folder: Path) -> None:
    """Write beside an adapter what its base's configuration needs for the head: the keywords of `from_pretrained`."""
    settings = HeadSpec.of(model).settings()
    if settings:
        write_json(folder / HEAD_FILE, {**settings, "pad_token_id": model.config.pad_token_id})


def _filler(folder: Path) -> int | None:
    """The token that fills up rows for a head for labels or scores that a folder holds."""
    for name in (HEAD_FILE, "config.json"):
        if (folder / name).is_file():
            config = read_json(folder / name)
            labelled = name == HEAD_FILE or str(config.get("architectures")).endswith("Classification']")
            return config.get("pad_token_id") if labelled else None
    return None


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ValueError:  # its class would be code of its author; the ids are those of tokenizer.json all the same
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def padding(config: PreTrainedConfig, codec: Codec) -> int:
    """The token that fills up rows: the model's own, or one that no text ends with.

    transformers reads a score at the last token that is not it, so it must not be the token that ends a text.
    """
    known = [codec.pad, *codec.special_ids.values()]
    if config.pad_token_id is not None:
        known.insert(0, config.pad_token_id)
    last = codec.encode_framed("a")[-1]
    return next((number for number in known if number != last), known[0])


def _auto(head: HeadSpec, config: PreTrainedConfig) -> Any:
    """The class of transformers for a head, which is written into the configuration.

    Raises:
        Problem: the architecture has no such head.
    """
    if head.kind == "lm":
        _refuse_encoder(config)
        return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if config.is_encoder_decoder and head.kind != "states":
        what = f"the architecture {config.model_type} has an encoder and a decoder"
        why = "transformers has no head for it that scores an answer to a prompt"
        raise Problem("model.path", f"{what}, and {why}", "Use a model with a decoder only")
    head.put_into(config)
    if head.kind == "states":
        return AutoModel
    kind = AutoModelForSequenceClassification if head.kind == "score" else AutoModelForTokenClassification
    if type(config) not in kind._model_mapping and type(config.get_text_config()) not in kind._model_mapping:
        what = f"transformers has no {kind.__name__[9:]} for the architecture {config.model_type}"
        raise Problem("model.path", what, "Use another model, such as a Llama, Qwen or BERT")
    return kind


def _refuse_encoder(config: PreTrainedConfig) -> None:
    if reads_both_ways(config):
        raise Problem(
            "model.path",
            f"{config.model_type} is an encoder, which reads a text both ways and writes none",
            "Use the objective classify, tag, regress, embed or rerank, or a model that writes text",
        )


def _placed(found: Found, head: HeadSpec, dtype: torch.dtype, place: Place) -> PreTrainedModel:
    """The model on its device, its base held as it shall be."""
    if place.held is None:
        return _weights(found, head, dtype).to(place.choice.device)  # type: ignore[arg-type]
    options = loading(skeleton(found, head), place.held, place.choice.dtype)
    model = _weights(found, head, dtype, {**options, "device_map": {"": place.choice.device}})
    steady(model, place.choice.dtype)
    return model


def _weights(
    found: Found, head: HeadSpec, dtype: torch.dtype, options: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    config = load_config(found)
    stored = config.dtype
    kind = _auto(head, config)
    try:
        with quietly():
            model, info = kind.from_pretrained(
                found.base,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **(options or {}),
            )
    except Exception as error:  # what a stranger's files make transformers raise has no common base
        raise Problem(str(found.base), f"cannot be loaded ({_misfit(found, head) or _first_line(error)})") from error
    _check_complete(found, head, info, model)
    model.config.dtype = stored
    return model


def _check_complete(found: Found, head: HeadSpec, info: dict[str, Any], model: PreTrainedModel) -> None:
    there = head_of(Found(found.name, found.base)).kind == head.kind
    fresh = () if there else ("pooler.", *(f"{part}." for part in head_parts(model)))
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(fresh))
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


def _check_logits(model: PreTrainedModel, path: str) -> None:
    """Refuse a model whose log-probabilities would not be its own."""
    try:
        off = check_head(model)
    except Exception as error:
        if not model.config.is_encoder_decoder:
            raise
        # encoder-decoders share no way of calling their two sides, so a foreign one may raise anything here
        what = f"{type(model).__name__} is called in a way that is not known here ({_first_line(error)})"
        raise Problem(path, what, "Use a T5, BART or another common encoder-decoder") from error
    if math.isinf(off):
        raise _not_finite(model, path)
    if off > (min(TOLERANCE[model.dtype], HEAD_TOLERANCE) if model.config.is_encoder_decoder else HEAD_TOLERANCE):
        raise Problem(
            path,
            f"{type(model).__name__} makes log-probabilities in a way that is not known here (off by {off:.2g})",
            "Please report the architecture",
        )


def _check_labels(model: PreTrainedModel, verdict: Verdict, path: str) -> None:
    """Refuse a model whose scores would not be its own."""
    off = check_labels(model, verdict.forest)
    if math.isinf(off):
        raise _not_finite(model, path)
    if off > TOLERANCE[model.dtype]:
        what = f"{type(model).__name__} makes scores in a way that is not known here (off by {off:.2g})"
        raise Problem(path, what, "Please report the architecture")


def _not_finite(model: PreTrainedModel, path: str) -> Problem:
    named = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    why = f"its weights are not finite ({', '.join(named[:3])})" if named else "its logits overflow"
    hint = "The files are damaged; fetch them again" if named else "Set model.dtype to float32 or bfloat16"
    return Problem(path, f"cannot compute: {why}", hint)


def _misfit(found: Found, head: HeadSpec) -> str:
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


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
