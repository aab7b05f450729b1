"""Vocabularies of a merge: compared, united, loadable by transformers, and every row from where it belongs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_codecs import tokenizer_json
from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from tunesmith.core.options import parse
from tunesmith.core.problem import Problem
from tunesmith.merge.methods import Array
from tunesmith.merge.tokens import TokenizerSpec, Vocabulary
from tunesmith.merge.tokens.build import vocabulary


def bytes_json(merges: Sequence[str] = (), added: Sequence[str] = (), *, back: bool = False) -> dict[str, Any]:
    """The small byte-level tokenizer with more merges and added tokens; back: with the ids of its pieces reversed."""
    data = json.loads(tokenizer_json())
    vocab = data["model"]["vocab"]
    data["model"]["merges"] += merges
    for text in [merge.replace(" ", "") for merge in merges] + list(added):
        vocab.setdefault(text, len(vocab))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    data["added_tokens"] += [{"id": vocab[text], "content": text, **flags} for text in added]
    if back:
        first = len(json.loads(tokenizer_json())["added_tokens"])
        pieces = [text for text, number in vocab.items() if number >= first]
        vocab |= {text: first + number for number, text in enumerate(reversed(pieces))}
        data["added_tokens"] = [{**token, "id": vocab[token["content"]]} for token in data["added_tokens"]]
    return data


def words_json(kind: str, words: Sequence[str], added: Sequence[str] = ("<unk>",)) -> dict[str, Any]:
    """A tokenizer of whole words of one of three kinds, its added tokens behind its pieces."""
    texts = [*words] if kind == "Unigram" else [*words, *added]
    vocab: Any = [[text, -float(number)] for number, text in enumerate(texts)]
    if kind != "Unigram":
        vocab = {text: number for number, text in enumerate(texts)}
    model = {"type": kind, "vocab": vocab, "unk_token": "<unk>", "continuing_subword_prefix": "##"}
    if kind == "WordPiece":
        model["max_input_chars_per_word"] = 50
    if kind == "Unigram":
        model = {"type": kind, "vocab": [*vocab, ["<unk>", -99.0]], "unk_id": len(vocab)}
        added = ("<unk>", *(text for text in added if text != "<unk>"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    listed = [{"id": len(words) + number, "content": text, **flags} for number, text in enumerate(added)]
    rest = {"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None}
    return {"version": "1.0", "added_tokens": listed, **rest, "model": model}


def pieces_json() -> dict[str, Any]:
    """A tokenizer of SentencePiece's kind as it is converted: pieces with a mark for spaces, and bytes for the rest."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(["the rain in the evening and the sun in the morning"] * 3, trainer)
    data = json.loads(tokenizer.to_str())
    return {**data, "added_tokens": data["added_tokens"][:3]}


def folder(path: Path, data: Mapping[str, Any], rows: int | None = None, **config: Any) -> Path:
    """A tokenizer in a model's folder."""
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", **config}
    (path / "tokenizer_config.json").write_text(json.dumps(about), "utf-8")
    count = Tokenizer.from_str(json.dumps(data)).get_vocab_size()
    (path / "config.json").write_text(json.dumps({"vocab_size": rows or count, "eos_token_id": 5}), "utf-8")
    return path


def united(folders: Sequence[Path], base: int | None = 0, **spec: Any) -> Vocabulary:
    wish = parse(TokenizerSpec, spec, "tokenizer")
    found = vocabulary(wish, [path.name for path in folders], folders, base)
    assert found is not None
    return found


def tokens_of(path: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab(with_added_tokens=True)


class Embeddings:
    """An embedding a model, in which the row of a token says the model and the id."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.sizes = [json.loads((path / "config.json").read_text())["vocab_size"] for path in folders]

    def read(self, model: int, ids: Any) -> Array:
        assert ((ids >= 0) & (ids < self.sizes[model])).all()
        rows = [self.row(model, int(number)) for number in ids]
        return np.stack(rows) if rows else np.zeros((0, 3), np.float32)

    @staticmethod
    def row(model: int, number: int) -> Array:
        return np.array([model, number, 1], np.float32)


def table(found: Vocabulary, folders: Sequence[Path], model: int, step: int = 7) -> Array:
    """The merged embedding as a model has it, asked for in blocks."""
    read = Embeddings(folders).read
    parts = [found.rows(model, start, min(start + step, found.size), read) for start in range(0, found.size, step)]
    return np.concatenate(parts)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A base; one with a piece and an added token more and other ids; one with the same token added and another."""
    return [
        folder(tmp_path / "base", bytes_json()),
        folder(tmp_path / "left", bytes_json(["Ġ hello", "n o"], ["<|tool|>"], back=True)),
        folder(tmp_path / "right", bytes_json(["o r"], ["<|tool|>", "<|extra|>"])),
    ]


class TestWithoutAWish:
    def test_same_files_are_fine(self, tmp_path: Path) -> None:
        folders = [folder(tmp_path / name, bytes_json(), chat_template=name) for name in "ab"]
        assert vocabulary(None, ["a", "b"], folders, 0) is None

    def test_tokens_behind_the_others_are_fine(self, tmp_path: Path) -> None:
        folders = [folder(tmp_path / "a", bytes_json()), folder(tmp_path / "b", bytes_json(added=["<|tool|>"]))]
        assert vocabulary(None, ["a", "b"], folders, None) is None

    def test_other_ids_are_refused(self, tmp_path: Path) -> None:
        folders = [folder(tmp_path / "a", bytes_json()), folder(tmp_path / "b", bytes_json(back=True))]
        with pytest.raises(Problem, match=r"other ids than a does.*tokenizer_source"):
            vocabulary(None, ["a", "b"], folders, 0)

    def test_other_tokens_under_an_id_are_refused(self, tmp_path: Path) -> None:
        folders = [folder(tmp_path / name, bytes_json(added=[f"<|{name}|>"])) for name in "ab"]
        with pytest.raises(Problem, match=r"other tokens than a under 1 ids, such as \d+ \('<\|b\|>', not '<\|a\|>'\)"):
            vocabulary(None, ["a", "b"], folders, 0)

    def test_a_token_that_only_the_configuration_names_counts(self, tmp_path: Path) -> None:
        count = Tokenizer.from_str(tokenizer_json()).get_vocab_size()
        folders = [
            folder(tmp_path / name, bytes_json(), count + 1, added_tokens_decoder={str(count): {"content": text}})
            for name, text in (("a", "<|one|>"), ("b", "<|two|>"))
        ]
        with pytest.raises(Problem, match="other tokens"):
            vocabulary(None, ["a", "b"], folders, 0)

    def test_models_without_tokenizers_have_nothing_to_compare(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        assert vocabulary(None, ["a", "a"], [tmp_path / "a"] * 2, 0) is None


class TestUnion:
    def test_base_ids_stay_and_others_follow(self, three: list[Path], tmp_path: Path) -> None:
        found = united(three)
        found.save(tmp_path)
        ids, base = tokens_of(tmp_path), tokens_of(three[0])
        assert set(ids) == set().union(*map(tokens_of, three))
        assert all(ids[text] == number for text, number in base.items())
        new = sorted(set(ids) - set(base), key=ids.__getitem__)
        assert set(new[:3]) == {"no", "Ġhello", "or"}
        assert new[3:] == ["<|tool|>", "<|extra|>"]
        assert found.size == len(ids) == found.settings["vocab_size"]

    def test_transformers_loads_it(self, three: list[Path], tmp_path: Path) -> None:
        united(three).save(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded.get_vocab() == tokens_of(tmp_path)
        assert loaded("<|tool|>")["input_ids"] == [tokens_of(tmp_path)["<|tool|>"]]
        for text in ("hello there", " hello or not", "<|im_start|>the thing"):
            assert loaded.decode(loaded(text)["input_ids"]) == text

    def test_new_pieces_are_reached_by_merges_and_never_cut_a_text(self, three: list[Path], tmp_path: Path) -> None:
        united(three).save(tmp_path)
        tokenizer, ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), tokens_of(tmp_path)
        assert tokenizer.encode(" hello").ids == [ids["Ġhello"]]
        assert tokenizer.encode("the word").tokens == ["t", "he", "Ġ", "w", "or", "d"]
        base = Tokenizer.from_file(str(three[0] / "tokenizer.json"))
        for text in ("hello there", "in the evening", "Zürich 東京"):
            assert tokenizer.encode(text).ids == base.encode(text).ids

    @pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "Unigram"])
    def test_other_kinds_of_tokenizers(self, kind: str, tmp_path: Path) -> None:
        config = {"eos_token": "<unk>", "unk_token": "<unk>"}
        folders = [
            folder(tmp_path / "a", words_json(kind, ["sun", "rain"], ["<unk>", "<a>"]), **config),
            folder(tmp_path / "b", words_json(kind, ["rain", "snow"], ["<unk>", "<b>"]), **config),
        ]
        united(folders).save(tmp_path)
        tokenizer, ids = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), tokens_of(tmp_path)
        assert sorted(ids, key=ids.__getitem__) == ["sun", "rain", "<unk>", "<a>", "snow", "<b>"]
        assert tokenizer.encode("snow <b>sun<a>").ids == [4, 5, 0, 3]
        assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == ids

    @pytest.mark.parametrize(
        ("order", "text"),
        [((0, 1, 2), "rain in the sun"), ((1, 2, 0), "rain in the sun"), ((2, 0, 1), "sun rain")],
        ids=["pieces", "bytes", "unigram"],
    )
    def test_pieces_of_sentencepiece_beside_bytes(self, order: tuple[int, ...], text: str, tmp_path: Path) -> None:
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        made = [
            folder(tmp_path / "pieces", pieces_json(), tokenizer_class="LlamaTokenizer", **named),
            folder(tmp_path / "bytes", bytes_json(), tokenizer_class="Qwen2Tokenizer"),
            folder(tmp_path / "unigram", words_json("Unigram", ["sun", "rain"]), eos_token="<unk>"),
        ]
        folders = [made[number] for number in order]
        united(folders).save(tmp_path)
        loaded, first = AutoTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(folders[0])
        assert type(loaded) is type(first)
        assert loaded.get_vocab() == tokens_of(tmp_path)
        assert set(loaded.get_vocab()) == set().union(*map(tokens_of, folders))
        assert loaded.decode(loaded(text)["input_ids"]) == first.decode(first(text)["input_ids"])

    def test_tokens_without_a_row_are_left_out(self, tmp_path: Path) -> None:
        count = Tokenizer.from_str(json.dumps(bytes_json(["Ġ hell", "o r"]))).get_vocab_size()
        base = folder(tmp_path / "base", bytes_json(["Ġ hell", "o r"]), count - 1)
        found = united([base, folder(tmp_path / "other", bytes_json())])
        found.save(tmp_path)
        assert found.size == count - 1
        assert "or" not in tokens_of(tmp_path)
        assert "Ġhell" in tokens_of(tmp_path)

    def test_is_the_same_each_time(self, three: list[Path], tmp_path: Path) -> None:
        texts = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            united(three).save(tmp_path / name)
            texts.append((tmp_path / name / "tokenizer.json").read_text())
        assert texts[0] == texts[1]


class TestRows:
    def test_every_token_has_its_own_row_or_anothers(self, three: list[Path], tmp_path: Path) -> None:
        found = united(three)
        found.save(tmp_path)
        own = [tokens_of(path) for path in three]
        for model in range(3):
            rows = table(found, three, model)
            for text, number in tokens_of(tmp_path).items():
                having = [other for other in range(3) if text in own[other]]
                if model in having:
                    wanted = Embeddings.row(model, own[model][text])
                elif 0 in having:
                    wanted = Embeddings.row(0, own[0][text])
                else:
                    wanted = np.mean([Embeddings.row(other, own[other][text]) for other in having], axis=0)
                np.testing.assert_allclose(rows[number], wanted, rtol=1e-6, err_msg=text)

    def test_base_and_another_model_as_the_source(self, three: list[Path], tmp_path: Path) -> None:
        for source, model in (("base", 0), ("left", 1)):
            found = united(three, source=source)
            rows, own = table(found, three, model), tokens_of(three[model])
            assert found.size == len(own)
            assert np.array_equal(rows, np.stack([Embeddings.row(model, number) for number in range(len(own))]))
            moved = table(found, three, 2)
            assert np.array_equal(moved[own["hello"]], Embeddings.row(2, tokens_of(three[2])["hello"]))

    def test_another_models_tokenizer_brings_its_special_ids(self, three: list[Path]) -> None:
        (three[1] / "config.json").write_text(json.dumps({"vocab_size": 400, "eos_token_id": 7, "hidden_size": 9}))
        assert united(three, source="left").settings["eos_token_id"] == 7
        assert "hidden_size" not in united(three, source="left").settings
        assert "eos_token_id" not in united(three, source="base").settings

    def test_named_sources(self, three: list[Path], tmp_path: Path) -> None:
        tokens = {
            "<|tool|>": {"source": "right"},
            "<|extra|>": {"source": {"kind": "zero"}},
            "hello": {"source": {"kind": "model_token", "model": "left", "token": "he"}, "force": True},
            "<|fresh|>": {"source": {"kind": "model_token", "model": "base", "token_id": 4}},
            "<|empty|>": {},
        }
        found = united(three, tokens=tokens)
        found.save(tmp_path)
        ids = tokens_of(tmp_path)
        for model in range(3):
            rows = table(found, three, model)
            tool = model if model else 2
            assert np.array_equal(rows[ids["<|tool|>"]], Embeddings.row(tool, tokens_of(three[tool])["<|tool|>"]))
            assert np.array_equal(rows[ids["hello"]], Embeddings.row(1, tokens_of(three[1])["he"]))
            assert np.array_equal(rows[ids["<|fresh|>"]], Embeddings.row(0, 4))
            assert not rows[ids["<|empty|>"]].any()
            assert rows[ids["<|extra|>"]].any() == (model == 2)
        assert AutoTokenizer.from_pretrained(tmp_path)("<|fresh|>")["input_ids"] == [ids["<|fresh|>"]]

    def test_padding_is_the_mean_of_the_models_rows(self, three: list[Path]) -> None:
        plain, padded = united(three), united(three, pad_to_multiple_of=64)
        assert padded.size % 64 == 0 and padded.size - plain.size < 64
        for model in range(3):
            rows = table(padded, three, model, step=50)
            assert np.array_equal(rows[: plain.size], table(plain, three, model))
            wanted = np.broadcast_to(rows[: plain.size].mean(0, dtype=np.float64), rows[plain.size :].shape)
            np.testing.assert_allclose(rows[plain.size :], wanted, rtol=1e-6)


class TestRefusals:
    @pytest.mark.parametrize(
        ("spec", "fault"),
        [
            ({"source": "lft"}, "'lft' is no model of this recipe. Did you mean 'left'"),
            ({"tokens": {"hello": {"source": "left"}}}, "has no effect: every model has this token"),
            ({"tokens": {"hello": {"force": True}}}, "force has no effect without a source"),
            ({"tokens": {"<|extra|>": {"source": "left"}}}, "left has no token '<|extra|>'"),
            (
                {"tokens": {"<|new|>": {"source": {"kind": "model_token", "model": "left"}}}},
                "one of token and token_id",
            ),
            (
                {"tokens": {"<|new|>": {"source": {"kind": "model_token", "model": "base", "token_id": 9999}}}},
                "base has 280 rows",
            ),
        ],
    )
    def test_what_cannot_be_done(self, spec: dict[str, Any], fault: str, three: list[Path]) -> None:
        with pytest.raises(Problem) as caught:
            united(three, **spec)
        assert fault in str(caught.value)

    def test_a_model_without_a_tokenizer(self, three: list[Path], tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        with pytest.raises(Problem, match="no tokenizer"):
            united([*three, tmp_path / "none"])
