"""Tiny random models of many families, and small runs over them, made in code."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_codecs import encoder_oracle, oracle, sides_oracle
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from tunesmith.core.events import Event, read_events
from tunesmith.core.rows import Piece, TokenRow
from tunesmith.core.run import Run, parse_run
from tunesmith.models.forest import Batch
from tunesmith.models.heads import HeadSpec
from tunesmith.models.planting import plant
from tunesmith.train.verb import Result, train

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
OLD: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "pad_token_id": 0}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma": {},
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 6},
    "phi3": {},
    "gpt2": OLD,
    "gpt_neox": {},
    "olmo2": {},
    "granite": {
        "logits_scaling": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
    },
    "cohere": {"logit_scale": 0.3},
    "smollm3": {},
    "starcoder2": {"sliding_window": 6},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS,
}
"""Families that take a forest, with what their configurations need beside COMMON."""

PADDED_FAMILIES: dict[str, dict[str, Any]] = {
    "mamba": {"num_hidden_layers": 2, "state_size": 8},
    "falcon_h1": {"num_hidden_layers": 2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8},
    "qwen3_next": {
        **EXPERTS,
        "num_hidden_layers": 4,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
    "bloom": {"n_layer": 2, "n_head": 4},
    "gpt_oss": {**EXPERTS, "num_hidden_layers": 2},
}
"""Families that cannot take one: state spaces, position biases, attention sinks."""

SIDES_COMMON: dict[str, Any] = {
    "d_model": 32,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 4,
}
T5 = {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, "dropout_rate": 0.0}
BART = {
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
    "decoder_start_token_id": 4,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}
SIDES_FAMILIES: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
    "longt5": T5 | {"local_radius": 4},
    "bart": BART,
    "pegasus": BART,
    "marian": BART,
    "blenderbot": BART,
}
"""Families with an encoder and a decoder."""

ENCODER_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}
ENCODER_FAMILIES: dict[str, dict[str, Any]] = {
    "bert": ENCODER_COMMON,
    "roberta": ENCODER_COMMON,
    "distilbert": {
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "max_position_embeddings": 130,
        "pad_token_id": 0,
    },
}
"""Families with an encoder alone; RoBERTa's tokens are bytes, those of the others pieces of words."""

HEADS = {
    "lm": AutoModelForCausalLM,
    "score": AutoModelForSequenceClassification,
    "tags": AutoModelForTokenClassification,
    "states": AutoModel,
}
"""The class of transformers for each kind of head."""

CHATS = [
    {"instruction": f"what is {word}?", "output": f"{word} is a {kind}."}
    for word, kind in (
        ("rain", "kind of weather"),
        ("oak", "tree"),
        ("salt", "mineral that tastes"),
        ("a lark", "bird"),
        ("Rome", "city in the south"),
        ("tin", "metal"),
        ("jazz", "music"),
        ("a canoe", "boat that one paddles alone or in pairs"),
        ("rye", "grain"),
        ("chess", "game"),
        ("fog", "cloud on the ground"),
        ("ink", "liquid"),
    )
]
TEXTS = [{"text": f"{row['instruction']} {row['output']} the end"} for row in CHATS]
PAIRS = [{"instruction": row["instruction"], "chosen": row["output"], "rejected": "I do not know."} for row in CHATS]
RATED = [
    {"prompt": row["instruction"], "completion": row["output"] if good else "I do not know.", "label": good}
    for row, good in zip(CHATS, (True, False, True, True) * 3, strict=True)
]
JUDGED = [
    {"text": f"{subject} is {word}", "label": label}
    for subject in ("the soup", "a walk", "this book", "rain")
    for word, label in (("awful", "bad"), ("lovely", "good"), ("blue", "odd"))
]
SEVERAL = [
    {"text": f"{subject} {colour} {size}", "labels": [label for label in (colour, size) if label in ("red", "big")]}
    for subject in ("a cat", "one hut", "the sea")
    for colour in ("red", "pale")
    for size in ("big", "thin")
]
GRADED = [
    {"text": f"{subject} {'very ' * number}good", "label": number / 2}
    for subject in ("a film", "tea", "our trip")
    for number in range(4)
]
TAGGED = [
    {"tokens": [*name, verb, "in", place], "tags": [*("B-PER", "I-PER")[: len(name)], "O", "O", "B-LOC"]}
    for name in (["Ada"], ["Max", "Ernst"], ["Uma"])
    for verb in ("sat", "sang")
    for place in ("Rome", "Bern")
]
RELATED = [
    {"anchor": row["instruction"], "positive": row["output"], "negative": other["output"]}
    for row, other in zip(CHATS, [*CHATS[5:], *CHATS[:5]], strict=True)
]
SOUGHT = [{"query": row["instruction"], "pos": [row["output"]], "neg": ["I do not know."]} for row in CHATS]
ROWS = {"pretrain": TEXTS, "sft": CHATS, "seq2seq": CHATS, "distill": CHATS}
ROWS |= dict.fromkeys(("cpo", "dpo", "orpo", "reward", "simpo"), PAIRS) | dict.fromkeys(("bco", "kto"), RATED)
ROWS |= {"classify": JUDGED, "regress": GRADED, "tag": TAGGED} | {"embed": RELATED, "rerank": SOUGHT}


def vocabulary(family: str = "llama") -> int:
    """Entries of a family's small tokenizer."""
    return len(_tokenizer(_style(family)))


def config(family: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a tiny model."""
    if family in SIDES_FAMILIES:
        return CONFIG_MAPPING[family](
            **{"vocab_size": vocabulary(), **SIDES_COMMON, **SIDES_FAMILIES[family], **changes}
        )
    if family in ENCODER_FAMILIES:
        return CONFIG_MAPPING[family](**{"vocab_size": vocabulary(family), **ENCODER_FAMILIES[family], **changes})
    own = FAMILIES.get(family, PADDED_FAMILIES.get(family, {}))
    common = {} if own is OLD else COMMON
    return CONFIG_MAPPING[family](**{"vocab_size": vocabulary(), **common, **own, **changes})


def model(family: str = "llama", *, head: HeadSpec | str = "lm", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny random model in evaluation mode, with weights large enough that every part of it matters."""
    torch.manual_seed(seed)
    head = HeadSpec(head) if isinstance(head, str) else head  # type: ignore[arg-type]
    kind: Any = HEADS[head.kind]
    if family in SIDES_FAMILIES and head.kind == "lm":
        kind = AutoModelForSeq2SeqLM
    made = kind.from_config(config(family, **{**head.settings(), **changes})).eval()
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.mul_(2 if SIDES_FAMILIES.get(family) is T5 else 4)  # T5 does not scale its attention
    return made


def _style(family: str) -> str:
    """The style of a family's tokenizer."""
    if family in ENCODER_FAMILIES:
        return "bytes" if family == "roberta" else "wordpiece"
    return "chatml" if family not in SIDES_FAMILIES else "t5" if SIDES_FAMILIES[family] is not BART else "bart"


@functools.cache
def _tokenizer(style: str) -> Any:
    if style in ("bytes", "wordpiece"):
        return encoder_oracle(style)
    return sides_oracle(style) if style in ("t5", "bart") else oracle(style)


def folder(path: Path, family: str = "llama", *, shards: str = "1GB", **changes: Any) -> Path:
    """A tiny model with its tokenizer, as a folder to train from."""
    made = model(family, **changes)
    made.save_pretrained(path, max_shard_size=shards)
    _tokenizer(_style(family)).save_pretrained(path)
    return path


def rows_file(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def run_of(base: Path, where: Path, objective: str | dict[str, Any] = "sft", **options: Any) -> Run:
    """A short run of an objective over the rows above, quiet and in float32; `options` as in a run file."""
    name = objective if isinstance(objective, str) else next(iter(objective))
    where.mkdir(parents=True, exist_ok=True)
    rows = options.pop("rows", None) or ROWS[name]
    data = rows_file(where / f"{name}.jsonl", rows)
    settings = {"rows_per_step": 4, "epochs": 2, "listeners": [], "checkpoint_activations": "off", "warmup": 0}
    value = {
        "model": {"path": str(base), "dtype": "float32", "device": "cpu", **options.pop("model", {})},
        "data": [{"path": str(data)}],
        "objective": objective,
        "train": {**settings, **options.pop("train", {})},
        "validation": {"fraction": 0},
        "output": str(where / options.pop("output", "run")),
        **options,
    }
    return parse_run(value, "test")


def trained(base: Path, where: Path, objective: str | dict[str, Any] = "sft", **options: Any) -> Result:
    """Such a run, trained."""
    return train(run_of(base, where, objective, **options))


def events(result: Result, *kinds: str) -> list[Event]:
    """The events of a run of some kinds, in order."""
    return [event for event in read_events(result.folder.events) if event.kind in kinds]


def figures(result: Result, kind: str = "step") -> list[dict[str, Any]]:
    """What a run said of its steps, without what a clock said."""
    return [
        {"step": event.step, **{name: value for name, value in event.values.items() if name != "seconds"}}
        for event in events(result, kind)
    ]


def losses(result: Result) -> list[float]:
    """The loss of each step."""
    return [event.values["loss"] for event in events(result, "step")]


def _piece(draw: np.random.Generator, length: int, entries: int, weights: str) -> Piece:
    tokens = draw.integers(3, entries, length).astype(np.int32)
    learned = {"none": np.zeros(length), "all": np.ones(length), "some": draw.choice([0.0, 0.5, 1.0], length)}[weights]
    return Piece(tokens, learned.astype(np.float32))


def forest_rows(entries: int | None = None, seed: int = 0) -> list[TokenRow]:
    """Rows of all shapes: plain ones, pairs under a prompt, a shared system prompt that is learned too."""
    draw, entries = np.random.default_rng(seed), entries or vocabulary()

    def piece(length: int, weights: str = "some") -> Piece:
        return _piece(draw, length, entries, weights)

    return [
        TokenRow(piece(13), index=0),
        TokenRow(piece(9, "none"), (piece(5, "all"), piece(11, "all")), index=1),
        TokenRow(piece(1, "none"), (piece(4, "all"), piece(2)), index=2),
        TokenRow(piece(7, "all"), (piece(8), piece(3), piece(6, "all")), index=3),
        TokenRow(piece(21, "all"), index=4),
    ]


def single_rows(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """Each path from a root to a leaf as a row of its own; a trunk is learned with its first answer only."""
    out = []
    for row in rows:
        for number, branch in enumerate(row.branches):
            before = row.trunk.weights if number == 0 else np.zeros_like(row.trunk.weights)
            weights = np.concatenate([before, branch.weights])
            out.append(TokenRow(Piece(np.concatenate([row.trunk.tokens, branch.tokens]), weights), index=row.index))
        if not row.branches:
            out.append(row)
    return out


def forest(entries: int | None = None, seed: int = 0) -> Batch:
    """A batch of such rows."""
    return plant(forest_rows(entries, seed))


def binary(row: TokenRow) -> TokenRow:
    """The row with weights of 0 and 1 only."""
    return TokenRow(Piece(row.trunk.tokens, np.ceil(row.trunk.weights)), index=row.index)


def pair_rows(count: int = 3, seed: int = 0, entries: int | None = None) -> list[TokenRow]:
    """Preference pairs of uneven lengths."""
    draw, entries = np.random.default_rng(seed), entries or vocabulary()
    return [
        TokenRow(
            _piece(draw, 4 + number, entries, "none"),
            (_piece(draw, 3 + number, entries, "all"), _piece(draw, 6, entries, "all")),
            index=number,
        )
        for number in range(count)
    ]


def rated_rows(count: int = 4, seed: int = 0, entries: int | None = None) -> list[TokenRow]:
    """Rated answers of uneven lengths, each beside an answer to another prompt."""
    draw, entries = np.random.default_rng(seed), entries or vocabulary()
    return [
        TokenRow(
            _piece(draw, 4 + number, entries, "none"),
            (_piece(draw, 3 + number, entries, "all"), _piece(draw, 5, entries, "all")),
            values=(float(number % 3 > 0),) * 2,
            index=number,
        )
        for number in range(count)
    ]


def related_rows(count: int = 4, seed: int = 0, *, apart: bool = True, entries: int | None = None) -> list[TokenRow]:
    """Rows of a query, a near text and one or two far ones."""
    draw, entries = np.random.default_rng(seed), entries or vocabulary()
    rows = []
    for number in range(count):
        graded = (1.0, *(0.0,) * (1 + number % 2))
        query, *others = (_piece(draw, 3 + number + place, entries, "none") for place in range(1 + len(graded)))
        if apart:
            nothing = Piece(query.tokens[:0], query.weights[:0])
            rows.append(TokenRow(nothing, (query, *others), values=(0.0, *graded), index=number))
        else:
            rows.append(TokenRow(query, tuple(others), values=graded, index=number))
    return rows


def sides_rows(entries: int | None = None, seed: int = 0) -> list[TokenRow]:
    """Rows for encoder-decoders: prompts of uneven lengths that are only read, with one answer or several."""
    draw, entries = np.random.default_rng(seed), entries or vocabulary()

    def row(prompt: int, *answers: int) -> TokenRow:
        learned = tuple(_piece(draw, length, entries, "all") for length in answers)
        return TokenRow(_piece(draw, prompt, entries, "none"), learned, index=prompt)

    return [row(21, 6), row(4, 5, 11), row(9, 1, 2, 7), row(19, 3, 3), row(1, 4)]


def pairs(count: int = 3, seed: int = 0) -> Batch:
    """A batch of such pairs."""
    return plant(pair_rows(count, seed))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the safetensors files of a folder."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def difference(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights of the same names."""
    assert ours.keys() == theirs.keys()
    return max(float((value.double() - theirs[name].double()).abs().max()) for name, value in ours.items())


def moved(result: Result, base: Path) -> float:
    """How far a run's weights are from where they started, for scale; adapters start at zero."""
    found = tensors(result.folder.model)
    before = tensors(base)
    return max(float((value - before.get(name, torch.zeros(()))).abs().max()) for name, value in found.items())


def labelled_rows(labels: int = 0, width: int = 1, seed: int = 0, entries: int | None = None) -> list[TokenRow]:
    """Texts of uneven lengths with the number of a label each, with zeros and ones for `width` labels, or a number."""
    draw, entries = np.random.default_rng(seed), entries or vocabulary()

    def values() -> tuple[float, ...]:
        if width > 1:
            return tuple(map(float, draw.integers(0, 2, width)))
        return (float(draw.integers(labels)) if labels else float(draw.normal()),)

    return [
        TokenRow(_piece(draw, length, entries, "none"), values=values(), index=length) for length in (11, 4, 7, 1, 9)
    ]


def tagged_rows(labels: int = 3, seed: int = 0, entries: int | None = None) -> list[TokenRow]:
    """Texts whose words end at some of their tokens, with the number of a label for each word."""
    draw, entries = np.random.default_rng(seed), entries or vocabulary()

    def row(length: int) -> TokenRow:
        marks = tuple(int(place) for place in range(length) if place % 2 == 0 or draw.random() < 0.3)
        values = tuple(float(draw.integers(labels)) for _ in marks)
        return TokenRow(_piece(draw, length, entries, "none"), values=values, marks=marks, index=length)

    return [row(length) for length in (9, 3, 12, 1)]
