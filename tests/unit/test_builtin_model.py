"""The tokenizer and chat template of `builtin:seedling`, as any user of transformers sees them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import builtin
from tunesmith.core.problem import Problem

MEGABYTES = 35
CALL = {"name": "weather", "arguments": {"city": "北京", "days": 2}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {"type": "object"}}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How warm is it in Beijing? 谢谢"},
    {"role": "assistant", "content": "", "reasoning_content": "A tool knows.", "tool_calls": [{"function": CALL}]},
    {"role": "tool", "content": '{"degrees": 3}'},
    {"role": "assistant", "content": "三度。"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "You are welcome."},
]


@cache
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(builtin.path("seedling"))


def render(messages: list[dict[str, Any]], **options: Any) -> str:
    return tokenizer().apply_chat_template(messages, tokenize=False, **options)


def test_names_lead_to_folders() -> None:
    folder = builtin.path("seedling")
    assert folder == builtin.path("builtin:seedling")
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("ask", [lambda: builtin.path("builtin:seedlin"), lambda: builtin.example("review")])
def test_unknown_names_get_the_nearest(ask: Any) -> None:
    with pytest.raises(Problem) as caught:
        ask()
    assert "seedling" in caught.value.hint or "reviews.jsonl" in caught.value.hint


def test_the_folder_stays_small() -> None:
    files = [file for file in Path(builtin.__file__).parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MEGABYTES * 1_000_000


def test_vocabulary_and_special_tokens() -> None:
    assert len(tokenizer()) == 6144
    assert tokenizer().convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tokenizer().bos_token_id, tokenizer().eos_token_id, tokenizer().pad_token_id) == (0, 0, 0)
    assert set(tokenizer().all_special_ids) == {0, 1, 2}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_every_text_comes_back(text: str) -> None:
    ids = tokenizer().encode(text, add_special_tokens=True, split_special_tokens=True)
    assert tokenizer().decode(ids) == text
    assert not {0, 1, 2} & set(ids)


def test_special_tokens_in_text_can_be_plain() -> None:
    text = "He wrote <|im_end|>\n<|im_start|>system 你好<|endoftext|>"
    ids = tokenizer().encode(text, split_special_tokens=True)
    assert not {0, 1, 2} & set(ids)
    assert tokenizer().decode(ids) == text
    assert {0, 1, 2} <= set(tokenizer().encode(text))


def test_digits_stand_alone() -> None:
    assert tokenizer().tokenize("2024") == ["2", "0", "2", "4"]


@pytest.mark.parametrize(
    ("text", "at_most"),
    [("The little girl went to the park with her mother.", 14), ("今天天气很好，我们去公园玩吧。", 15)],
)
def test_everyday_sentences_are_short(text: str, at_most: int) -> None:
    assert len(tokenizer().encode(text)) <= at_most


def test_nothing_is_added_to_a_chat() -> None:
    assert render(CHAT[1:2]) == f"<|im_start|>user\n{CHAT[1]['content']}<|im_end|>\n"


@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("length", range(1, len(CHAT)))
def test_a_shorter_chat_is_a_prefix(length: int, tools: list[Any] | None) -> None:
    assert render(CHAT, tools=tools).startswith(render(CHAT[:length], tools=tools))


@pytest.mark.parametrize("place", [2, 4, 6])
def test_the_prompt_of_an_answer_is_what_stood_before_it(place: int) -> None:
    prompt = render(CHAT[:place], add_generation_prompt=True)
    assert render(CHAT).startswith(prompt)
    assert prompt.endswith("<|im_start|>assistant\n")


def test_only_answers_and_their_ends_are_marked() -> None:
    out = tokenizer().apply_chat_template(CHAT, tools=[TOOL], return_dict=True, return_assistant_tokens_mask=True)
    marked = [id for id, learned in zip(out["input_ids"], out["assistant_masks"], strict=True) if learned]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京", "days": 2}}\n</tool_call>'
    expected = (
        f"<think>\nA tool knows.\n</think>\n\n{call}<|im_end|>",
        "三度。<|im_end|>",
        "You are welcome.<|im_end|>",
    )
    assert tokenizer().decode(marked) == "".join(expected)


def test_tools_join_the_system_turn() -> None:
    text = render(CHAT[:2], tools=[TOOL])
    system = text.partition("<|im_end|>")[0]
    assert text.count("<|im_start|>system") == 1
    assert system.startswith("<|im_start|>system\nBe kind.\n\n")
    assert '"description": "天气"' in system
    assert render(CHAT[1:2], tools=[TOOL]).startswith("<|im_start|>system\nTools")


def test_arguments_may_be_text() -> None:
    as_text = {"name": "weather", "arguments": '{"city": "北京", "days": 2}'}
    chats = [[{"role": "assistant", "content": "", "tool_calls": [call]}] for call in (CALL, as_text)]
    assert render(chats[0]) == render(chats[1])


def test_unknown_roles_are_refused() -> None:
    with pytest.raises(Exception, match="narrator"):
        render([{"role": "narrator", "content": "Once upon a time"}])


@pytest.mark.parametrize("name", ["seedling", "seedling-chat"])
def test_the_weights_that_ship_are_what_their_card_says(name: str) -> None:
    """transformers loads the folder without code of its own, as many parameters as the card names, all finite."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(builtin.path(name), dtype=torch.float32)
    card = (builtin.path(name) / "README.md").read_text("utf-8")
    assert f"| parameters | {model.num_parameters():,} |" in card
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert model.config.max_position_embeddings >= 512


@pytest.mark.parametrize(
    ("ask", "name"), [("Who are you?", "Seedling"), ("你叫什么名字？", "小种子"), ("你好！", "你好")]
)
def test_the_chat_model_answers_and_knows_its_name(ask: str, name: str) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(builtin.path("seedling-chat"), dtype="float32")
    out = tokenizer().apply_chat_template(
        [{"role": "user", "content": ask}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**out, max_new_tokens=40, do_sample=False)[0, out["input_ids"].shape[1] :]
    assert int(answer[-1]) == tokenizer().convert_tokens_to_ids("<|im_end|>"), "the turn ends"
    assert name in tokenizer().decode(answer, skip_special_tokens=True)
