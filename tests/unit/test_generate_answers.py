"""Several answers to each prompt: read once, each with draws of its own, the same as one prompt at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from made_benches import tiny_codec, tiny_model
from made_codecs import sides_codec
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

from tunesmith.core.records import Chat, Message, Text
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.draws import processors
from tunesmith.generate.engines import Answer, Ask
from tunesmith.generate.engines.local import Local, LocalAnswers
from tunesmith.generate.sampling import Sampling

ASKS: list[Ask] = [
    Chat((Message("user", "hello"),)),
    Chat((Message("system", "Be kind."), Message("user", "the thing in the thing, and a longer question"))),
    Text("hello the"),
    Text("a"),
]
GREEDY = Sampling(max_tokens=8)
DRAWN = Sampling(max_tokens=8, temperature=1.0, top_k=50, top_p=0.95, seed=5)
N = 3


def answers(model: nn.Module, batch_tokens: int = 16384, codec: Codec | None = None) -> LocalAnswers:
    return Local(batch_tokens=batch_tokens).bind(model, codec or tiny_codec())


def one_by_one(found: LocalAnswers, sampling: Sampling) -> list[tuple[Answer, ...]]:
    """The oracle: one row a batch, so that nothing is shared and nothing is padded."""
    alone = LocalAnswers(found.model, found.codec, found.around, batch_tokens=1)
    each = list(alone.answer([ask for ask in ASKS for _ in range(N)], sampling))
    return [tuple(each[start : start + N]) for start in range(0, len(each), N)]


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """How many tokens each pass of the model reads, padding among them."""
    sizes: list[int] = []
    embedding = next(part for part in model.modules() if isinstance(part, nn.Embedding))
    handle = embedding.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "bloom", "falcon_h1", "qwen3_next", "mamba"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_answers_are_those_of_one_prompt_at_a_time(family: str, sampling: Sampling) -> None:
    found = answers(tiny.model(family))
    assert list(found.answers(ASKS, sampling, N)) == one_by_one(found, sampling)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_an_encoder_reads_a_prompt_once(family: str, sampling: Sampling) -> None:
    found = answers(tiny.model(family), codec=sides_codec(family))
    assert found.reads_again is None
    read: list[int] = []
    handle = found.base.get_encoder().register_forward_hook(lambda *_: read.append(1))
    try:
        together = list(found.answers(ASKS, sampling, N))
    finally:
        handle.remove()
    assert len(read) == 1
    assert together == one_by_one(found, sampling)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_under_a_soft_prompt_too(kind: type[PromptTuningConfig], sampling: Sampling) -> None:
    adapted = get_peft_model(tiny_model(), kind(task_type="CAUSAL_LM", num_virtual_tokens=5))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.mul_(5)
    found = answers(adapted)
    assert found.reads_again is None
    assert list(found.answers(ASKS, sampling, N)) == one_by_one(found, sampling)


def test_with_an_adapter_on_and_off() -> None:
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    on = answers(adapted)
    off = Local().bind(adapted, tiny_codec(), adapted.disable_adapter)
    assert list(on.answers(ASKS, DRAWN, N)) == one_by_one(on, DRAWN)
    assert list(off.answers(ASKS, DRAWN, N)) == list(answers(tiny_model()).answers(ASKS, DRAWN, N))


def test_a_prompt_is_read_once_for_all_its_answers() -> None:
    model = tiny_model()
    found = answers(model)
    assert found.reads_again is None
    prompts = [len(found.job(0, ask, GREEDY).tokens) for ask in ASKS]
    with counted(model) as sizes:
        list(found.answers(ASKS, GREEDY, N))
    assert sizes[0] == len(ASKS) * (max(prompts) - 1)
    assert set(sizes[1:]) == {len(ASKS) * N}


LONG = "Be kind, and say what you know of the thing in the long question; then say no more than that. "
ALIKE: list[Ask] = [Text(LONG + end) for end in ("hello", "a longer question than the first of them", "hello the", "a")]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "bloom", "falcon_h1", "qwen3_next", "mamba"])
@pytest.mark.parametrize("n", [1, N])
def test_answers_to_prompts_that_begin_alike_are_those_of_one_at_a_time(family: str, n: int) -> None:
    found = answers(tiny.model(family))
    alone = LocalAnswers(found.model, found.codec, found.around, batch_tokens=1)
    for sampling in (GREEDY, DRAWN):
        each = list(alone.answer([ask for ask in ALIKE for _ in range(n)], sampling))
        together = list(found.answers(ALIKE, sampling, n))
        assert together == [tuple(each[start : start + n]) for start in range(0, len(each), n)]


def test_what_all_prompts_begin_with_is_read_once() -> None:
    model = tiny_model()
    found = answers(model)
    assert found.starts_again is None
    prompts = [found.job(0, ask, GREEDY).tokens for ask in ALIKE]
    start = next(at for at, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    with counted(model) as sizes:
        list(found.answers(ALIKE, GREEDY, 1))
    assert sizes[0] == start >= 16
    assert sizes[1] == len(ALIKE) * (max(map(len, prompts)) - 1 - start)
    assert set(sizes[2:]) == {len(ALIKE)}


def test_a_start_is_read_again_where_padding_would_stand_in_a_window() -> None:
    model = tiny_model()
    model.config.sliding_window = 8
    found = answers(model)
    with counted(model) as sizes:
        list(found.answers(ALIKE, GREEDY, 1))
    assert sizes[0] == len(ALIKE) * max(len(found.job(0, ask, GREEDY).tokens) for ask in ALIKE)


def test_a_model_that_goes_on_otherwise_from_a_start_is_found_out() -> None:
    model = tiny_model()

    def changed(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output * 2 if inputs[0].shape[1] == 3 else output

    handle = model.model.layers[0].self_attn.v_proj.register_forward_hook(changed)
    try:
        found = answers(model)
        assert found.reads_again is None
        assert "logits differ" in str(found.starts_again)
    finally:
        handle.remove()


def test_a_state_without_a_cache_is_read_again_and_says_why() -> None:
    model = tiny.model("mamba")
    found = answers(model)
    assert "MambaForCausalLM cannot go on from a prompt that was read" in str(found.reads_again)
    with counted(model) as sizes:
        list(found.answers(ASKS[:1], GREEDY, N))
    assert sizes[0] == N * len(found.job(0, ASKS[0], GREEDY).tokens)


def test_a_model_that_goes_on_otherwise_is_found_out() -> None:
    model = tiny_model()
    forget = model.model.layers[0].self_attn.v_proj

    def forgotten(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output * 2 if inputs[0].shape[1] == 1 else output

    handle = forget.register_forward_hook(forgotten)
    try:
        assert "logits differ" in str(answers(model).reads_again)
    finally:
        handle.remove()


@pytest.mark.parametrize("batch_tokens", [1, 60, 300])
def test_draws_do_not_depend_on_batches(batch_tokens: int) -> None:
    model = tiny_model()
    assert list(answers(model, batch_tokens).answers(ASKS, DRAWN, N)) == list(answers(model).answers(ASKS, DRAWN, N))


def test_a_call_repeats_bit_for_bit_and_every_answer_has_a_draw_of_its_own() -> None:
    model = tiny_model()
    sampling = Sampling(max_tokens=12, temperature=2.0, seed=1)
    first = list(answers(model).answers(ASKS, sampling, 8))
    assert list(answers(model).answers(ASKS, sampling, 8)) == first
    assert list(answers(model).answers(ASKS, sampling.model_copy(update={"seed": 2}), 8)) != first
    assert all(len({one.tokens for one in group}) == 8 for group in first)
    assert [len(group) for group in first] == [8] * len(ASKS)


def test_greedy_answers_of_a_prompt_are_equal() -> None:
    for group in answers(tiny_model()).answers(ASKS, GREEDY, N):
        assert len(set(group)) == 1


def test_no_answers_are_no_ask() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        answers(tiny_model()).answers(ASKS, GREEDY, 0)
    assert list(answers(tiny_model()).answers([], GREEDY, 2)) == []


def test_a_real_model_tells_several_stories(shared_data: Path) -> None:
    from tunesmith.core.run import ModelSpec

    spec = ModelSpec(path=str(shared_data / "model" / "stories260K"), device="cpu", dtype="float32")
    (stories,) = Local().open(spec).answers([Text("Once upon a time")], Sampling(max_tokens=30, temperature=0.8), 4)
    assert len({one.text for one in stories}) == 4
    assert all(one.text.startswith(", there was") for one in stories)


class TestDraws:
    LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, -3.0])

    def shares(self, sampling: Sampling, draws: int = 40_000) -> list[float]:
        """How often each token is drawn, by rows that all have the same scores."""
        scores = self.LOGITS.expand(draws, -1).contiguous()
        made = processors(sampling, range(draws), torch.device("cpu"))
        counts = Counter(made(torch.zeros(draws, 1, dtype=torch.long), scores).argmax(-1).tolist())
        return [counts[token] / draws for token in range(len(self.LOGITS))]

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_tokens_come_as_often_as_the_model_says(self, temperature: float) -> None:
        wanted = (self.LOGITS / temperature).softmax(-1).tolist()
        assert self.shares(Sampling(temperature=temperature)) == pytest.approx(wanted, abs=0.01)

    def test_what_is_cut_off_never_comes(self) -> None:
        wanted = [*self.LOGITS[:3].softmax(-1).tolist(), 0, 0, 0]
        assert self.shares(Sampling(temperature=1, top_k=3)) == pytest.approx(wanted, abs=0.01)
        wanted = [*self.LOGITS[:2].softmax(-1).tolist(), 0, 0, 0, 0]
        assert self.shares(Sampling(temperature=1, top_p=0.8)) == pytest.approx(wanted, abs=0.01)

    def test_steps_of_a_row_are_independent(self) -> None:
        made = processors(Sampling(temperature=1), range(2000), torch.device("cpu"))
        scores, before = torch.zeros(2000, 2), torch.zeros(2000, 1, dtype=torch.long)
        first, second = (made(before, scores).argmax(-1) for _ in range(2))
        assert float((first == second).float().mean()) == pytest.approx(0.5, abs=0.04)

    def test_the_likeliest_needs_no_draw(self) -> None:
        assert not processors(Sampling(), range(3), torch.device("cpu"))
