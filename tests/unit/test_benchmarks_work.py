"""Benchmarks: operations of a step against a count by hand and by torch; rows and their lengths; the clock's labels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks do not come with a source archive", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from bench import material, rows, updates  # noqa: E402
from bench.shapes import SHAPES, Learns, Shape, flops  # noqa: E402
from peers import llamafactory_train  # noqa: E402
from peers.watch import learned  # noqa: E402

SMALL = Shape("small", hidden=8, inner=12, layers=2, heads=2, kv_heads=1, vocab=40, head_width=4)


def test_full_training_by_hand() -> None:
    """One row of 3 + 2 tokens: 8x8 twice, 8x4 twice and 8x12 three times a layer, each in three products."""
    matrices = 2 * (8 * 8) + 2 * (8 * 4) + 3 * (8 * 12)
    layers = 2 * 3 * 2 * 5 * matrices
    attention = 2 * 6 * 2 * (5 + 4 + 3 + 2 + 1) * 8
    head = 3 * 2 * 2 * 8 * 40
    assert flops(SMALL, [(3, 2)], "full") == layers + attention + head


def test_lora_by_hand() -> None:
    """Frozen matrices in two products, but queries, keys and values of the first layer in one; adapters in three."""
    linears = [(8, 8), (8, 4), (8, 4), (8, 8), (8, 12), (8, 12), (12, 8)]
    frozen = 2 * 5 * (2 * 2 * sum(i * o for i, o in linears) - sum(i * o for i, o in linears[:3]))
    adapters = 2 * 5 * 6 * (2 * 3 * sum(i + o for i, o in linears) - sum(i for i, _ in linears[:3]))
    attention = 2 * 6 * 2 * 15 * 8
    head = 2 * 2 * 2 * 8 * 40
    assert flops(SMALL, [(3, 2)], "lora", rank=6) == frozen + adapters + attention + head


@pytest.mark.parametrize("learns", ["full", "lora"])
def test_products_of_a_whole_model_as_torch_counts_them(learns: Learns) -> None:
    """All but attention, of which torch counts what no token may see too; every token but the first is learned."""
    import peft
    from transformers import AutoConfig, AutoModelForCausalLM

    config = SMALL.config()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), head_dim=4, **config))
    if learns == "lora":
        model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=list(SMALL.linears)))
    tokens = torch.arange(5, 16)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    counted = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    attention = 2 * 6 * 2 * (11 * 12 // 2) * 8
    assert counted["aten.mm"] == flops(SMALL, [(0, 11)], learns, rank=3) - attention


def test_parameters_are_those_of_the_models() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, billions in (("smollm2-135m", 0.1345), ("qwen2.5-0.5b", 0.494)):
        shape = SHAPES[name]
        config = shape.config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
        matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
        assert shape.parameters == matrices
        assert shape.parameters == pytest.approx(billions * 1e9, rel=0.01)


def test_rows_have_their_lengths_and_no_token_of_another_kind() -> None:
    made = rows.instructions(50, 512)
    assert [(len(row.prompt), len(row.answer)) for row in made] == [*rows.LENGTHS, *rows.LENGTHS[:2]]
    assert len(rows.LENGTHS) == 48
    assert (sum(map(sum, rows.LENGTHS)), sum(answer for _, answer in rows.LENGTHS)) == (8862, 7005)
    for row in made:
        assert row.answer[-1] == rows.END and rows.END not in row.tokens[:-1]
        assert min(row.tokens[:-1]) >= rows.FIRST and max(row.tokens) < 512
        assert row.labels == [-100] * len(row.prompt) + list(row.answer)
    assert rows.instructions(3, 512) == made[:3]
    assert [len(row.answer) for row in rows.texts(17, 512)] == [*rows.TEXTS, rows.TEXTS[0]]


def test_text_is_read_as_the_tokens_it_was_written_from(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    material.tokenizer(64, tmp_path)
    made = rows.instructions(2, 64)
    rows.write(made, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for row, plain, asked, ended in zip(
        made, *(json.loads((tmp_path / f"{name}.json").read_text()) for name in ("rows", "asked", "ended")), strict=True
    ):
        assert plain == {"input_ids": row.tokens, "labels": row.labels}
        turns = [("user", asked["instruction"]), ("assistant", asked["output"])]
        rendered = tokenizer.apply_chat_template(
            [{"role": role, "content": said} for role, said in turns], tokenize=False
        )
        assert tokenizer(rendered)["input_ids"] == row.tokens
        assert tokenizer(f"{ended['instruction']} {ended['output']}")["input_ids"] == row.tokens


def test_labels_that_nothing_stands_before_are_not_learned() -> None:
    assert learned({"input_ids": [5, 4, 6, 7], "labels": [5, -100, 6, 7]}) == 2
    assert learned({"input_ids": [5, 6, 7, 8], "seq_lengths": [1, 3]}) == 2
    assert learned({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "seq_lengths": [2, 2]}) == 2


def test_equal_blocks_take_up_all_texts(tmp_path: Path) -> None:
    made = rows.texts(4, 512)
    rows.write(made, tmp_path / "rows")
    rows.write(made[:1], tmp_path / "warm")
    settings = {"place": str(tmp_path), "block": 1024}
    # 512 + 203 + 871 + 340 = 1926 tokens: two blocks of 963; one text of 512 is one block
    assert llamafactory_train.blocks(settings, "rows") == {"packing": True, "cutoff_len": 963}
    assert llamafactory_train.blocks(settings, "warm") == {"packing": True, "cutoff_len": 512}


def test_updates_have_prompts_with_their_answers() -> None:
    made = updates.drawn("grpo", 20, 10, 512)
    assert [len(row) for row in made.answers] == [8, 8] and all(18 <= len(prompt) <= 20 for prompt in made.prompts)
    assert made.tokens == sum(map(len, made.prompts)) + sum(len(a) for row in made.answers for a in row)
    assert [sum(group) for group in made.advantages] == [0.0, 0.0]
    assert updates.drawn("grpo", 20, 10, 512) == made
