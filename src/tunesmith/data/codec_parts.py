# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""What a codec is made of, and where it is read from: a model folder, or a tokenizer of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer

from tunesmith.core.problem import Problem
from tunesmith.data.template import CHATML, CHATML_PLAIN, FROZEN_DATE

_MARKERS = ("<|im_start|>", "<|im_end|>")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True, slots=True)
class CodecParts:
    """What a codec is made of, as plain strings and numbers, so that it can be sent to another process.

    template: empty where an encoder reads prompts as plain text; prefix, suffix: the ids that the tokenizer puts around
    a text; encoder_decoder: whether the model reads prompts apart from answers.
    """

    tokenizer: str
    template: str
    tool_template: str | None = None
    template_was_set: str = ""
    specials: tuple[tuple[str, str], ...] = ()
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    date: str = FROZEN_DATE
    encoder_decoder: bool = False


def parts_of_folder(
    folder: Path, template: str | None = None, encoder_decoder: bool = False, *, chats: bool = True
) -> CodecParts:
    """The parts in a local model folder; template, chats: as in `Codec.load`.

    Raises:
        Problem: the folder holds no tokenizer, or one that cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        return parts_of(_slow_tokenizer(folder), template, encoder_decoder)
    tokenizer, config = backend_of_folder(folder), _read_json(folder / "tokenizer_config.json")
    try:
        templates = _templates(folder, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unknown_configuration(folder, error) from error
    specials = _named_specials(config)
    prefix, suffix = _frame(tokenizer)
    prefix = _configured_bos(prefix, config, tokenizer, specials)
    if not chats:
        return CodecParts(tokenizer.to_str(), "", None, "", tuple(sorted(specials.items())), prefix, suffix)
    assemble = _assemble_sides if encoder_decoder else _assemble
    return assemble(tokenizer.to_str(), templates, template, specials, (prefix, suffix))


def backend_of_folder(folder: Path) -> Tokenizer:
    """The tokenizer in a local model folder, with the tokens that only its configuration names.

    Raises:
        Problem: the folder holds no tokenizer, or one that cannot be read.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return _backend(_slow_tokenizer(folder))
    tokenizer, config = read_tokenizer(_read(file), str(file)), _read_json(folder / "tokenizer_config.json")
    try:
        return _with_configured(tokenizer, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unknown_configuration(folder, error) from error


def parts_of(tokenizer: Any, template: str | None = None, encoder_decoder: bool = False) -> CodecParts:
    """The parts of a tokenizer of transformers; template: as in `Codec.load`.

    Raises:
        Problem: it has no fast tokenizer behind it.
    """
    backend = _backend(tokenizer)
    found: Any = tokenizer.chat_template
    templates = {"default": found} if isinstance(found, str) else dict(found or {})
    specials = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    assemble = _assemble_sides if encoder_decoder else _assemble
    return assemble(backend.to_str(), templates, template, specials, _frame(backend))


def read_tokenizer(text: str, where: str) -> Tokenizer:
    """Raises: Problem: the text is no tokenizer; `where` names it."""
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception for whatever is wrong
        raise Problem(where, f"is no tokenizer: {error}", "Check that the file is complete") from error


def _backend(tokenizer: Any) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise Problem(
            f"tokenizer {type(tokenizer).__name__}",
            "is written in plain Python and has no tokenizer.json",
            "Convert it: load it with transformers' AutoTokenizer and save it as a fast tokenizer",
        )
    return backend


def _unknown_configuration(folder: Path, error: Exception) -> Problem:
    where, what = str(folder / "tokenizer_config.json"), f"names tokens or templates in no known way ({error!r})"
    return Problem(where, what, "Check that the file is complete")


def _assemble(
    tokenizer: str,
    templates: Mapping[str, str],
    wanted: str | None,
    specials: Mapping[str, str],
    frame: tuple[tuple[int, ...], tuple[int, ...]],
) -> CodecParts:
    source, was_set = _choose_template(templates.get("default"), wanted, tokenizer, specials)
    tools = None if was_set else templates.get("tool_use")
    return CodecParts(tokenizer, source, tools, was_set, tuple(sorted(specials.items())), *frame)


def _assemble_sides(
    tokenizer: str,
    templates: Mapping[str, str],
    wanted: str | None,
    specials: Mapping[str, str],
    frame: tuple[tuple[int, ...], tuple[int, ...]],
) -> CodecParts:
    """The parts for an encoder-decoder: a template is for prompts only, and without one they are plain text."""
    source, was_set = "", "the tokenizer has no chat template, so the encoder reads the turns of a prompt as plain text"
    if wanted or templates.get("default"):
        source, was_set = _choose_template(templates.get("default"), wanted, tokenizer, specials)
    known = {token["content"]: int(token["id"]) for token in json.loads(tokenizer)["added_tokens"]}
    ids = [known[text] for text in specials.values() if text in known]
    if specials.get("eos_token") not in known:
        raise Problem("tokenizer", "names no end token, and an answer needs one", "Name one in tokenizer_config.json")
    if strange := [text for text, number in known.items() if number in {*frame[0], *frame[1]} - set(ids)]:
        raise Problem(
            "tokenizer",
            f"puts {', '.join(strange)} around every text, and whether answers need the same is not known here",
            "Use a model whose tokenizer adds no language codes",
        )
    frame = (frame[0], frame[1] or (known[specials["eos_token"]],))
    tools = None if was_set else templates.get("tool_use")
    return CodecParts(tokenizer, source, tools, was_set, tuple(sorted(specials.items())), *frame, encoder_decoder=True)


def _frame(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer itself puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


def pair_frame(parts: CodecParts) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before, between and after the two texts of a pair.

    Where the configuration sets another frame than tokenizer.json, the texts stand in that one after the other.
    """
    tokenizer = read_tokenizer(parts.tokenizer, "tokenizer")
    if _frame(tokenizer) != (parts.prefix, parts.suffix):
        return parts.prefix, (*parts.suffix, *parts.prefix), parts.suffix
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", "a", add_special_tokens=True).ids
    starts = [at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare]
    first, second = starts[0], starts[-1]
    return tuple(full[:first]), tuple(full[first + len(bare) : second]), tuple(full[second + len(bare) :])


def second_type(parts: CodecParts) -> int:
    """The type that the tokenizer gives the tokens of a pair's second text; 0 where it tells the two apart by none."""
    return read_tokenizer(parts.tokenizer, "tokenizer").encode("a", "a", add_special_tokens=True).type_ids[-1]


def _configured_bos(
    prefix: tuple[int, ...], config: Mapping[str, Any], tokenizer: Tokenizer, specials: Mapping[str, str]
) -> tuple[int, ...]:
    wanted = config.get("add_bos_token")
    bos = tokenizer.token_to_id(specials["bos_token"]) if "bos_token" in specials else None
    if bos is None or not isinstance(wanted, bool):
        return prefix
    rest = prefix[1:] if prefix[:1] == (bos,) else prefix
    return (bos, *rest) if wanted else rest


def _with_configured(tokenizer: Tokenizer, config: Mapping[str, Any]) -> Tokenizer:
    """Add the tokens that only tokenizer_config.json names, and mark the named ones as special."""
    listed = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    for _, token in listed:
        if tokenizer.token_to_id(token["content"]) is None:
            flags = {name: token[name] for name in _FLAGS if name in token}
            tokenizer.add_tokens([AddedToken(token["content"], **flags)])
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    missing = [text for text in _named_specials(config).values() if text not in added]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])
    return tokenizer


def _named_specials(config: Mapping[str, Any]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str) and text:
            out[name] = text
    return out


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a model folder by name; files win over the configuration."""
    found = config.get("chat_template")
    out: dict[str, str] = {"default": found} if isinstance(found, str) else {}
    if isinstance(found, list):
        out = {str(item["name"]): str(item["template"]) for item in cast("list[dict[str, str]]", found)}
    file = folder / "chat_template.jinja"
    if file.is_file():
        out["default"] = _read(file)
    more = folder / "additional_chat_templates"
    return out | {path.stem: _read(path) for path in sorted(more.glob("*.jinja"))}


def _choose_template(
    found: str | None, wanted: str | None, tokenizer: str, specials: Mapping[str, str]
) -> tuple[str, str]:
    """The template's source, and a sentence for the person if it is not the tokenizer's own."""
    if wanted not in (None, "chatml"):
        return _read(Path(wanted)), f"the chat template is {wanted}, as asked"
    if found and wanted is None:
        return found, ""
    why = "as asked" if wanted else "since the tokenizer has none"
    single = {token["content"] for token in json.loads(tokenizer)["added_tokens"] if token["special"]}
    if single.issuperset(_MARKERS):
        return CHATML, f"the chat template is ChatML, {why}"
    if "eos_token" not in specials:
        raise Problem(
            "tokenizer",
            "has no chat template, and no end token that could end a turn",
            "Set model.chat_template to a Jinja file that fits the model",
        )
    return CHATML_PLAIN, (
        f"the chat template is ChatML with its markers as plain text and {specials['eos_token']!r} at the end of a "
        f"turn, {why} and its vocabulary lacks the markers"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(str(path), f"cannot be read ({error})", "Check the path and the file") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value: Any = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise Problem(str(path), f"is not JSON ({error})", "Check that the file is complete") from error
    if not isinstance(value, dict):
        raise Problem(str(path), "holds no options by name", "Check that the file is complete")
    return cast("dict[str, Any]", value)


def _slow_tokenizer(folder: Path) -> Any:
    if not folder.is_dir():
        raise Problem(str(folder), "there is no such folder", "Give the folder of a model")
    from transformers import AutoTokenizer

    load: Callable[..., Any] = AutoTokenizer.from_pretrained
    try:
        return load(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise Problem(str(folder), f"holds no tokenizer that can be loaded ({error})", "Add tokenizer.json") from error
