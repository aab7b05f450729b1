"""The local engine: batches, streams, stops, seeds and contexts give what one prompt alone gives."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from made_benches import CONTEXT, tiny_codec, tiny_folder, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Text
from tunesmith.core.run import ModelSpec
from tunesmith.data.tokenizer import Codec
from tunesmith.generate.engines import Ask
from tunesmith.generate.engines.local import Local, LocalAnswers
from tunesmith.generate.opened import open_model
from tunesmith.generate.sampling import Sampling

ASKS: list[Ask] = [
    Chat((Message("user", "hello"),)),
    Chat((Message("system", "Be kind."), Message("user", "the thing in the thing, and a longer question"))),
    Text("hello the"),
    Chat((Message("user", "你好吗?"),)),
    Text("in the thing"),
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_model()


def answers(model: LlamaForCausalLM, batch_tokens: int = 16384) -> LocalAnswers:
    return Local(batch_tokens=batch_tokens).bind(model, tiny_codec())


def alone(model: LlamaForCausalLM, ask: Ask, sampling: Sampling) -> tuple[int, ...]:
    """The oracle: one prompt, one token at a time, no cache, no padding, the likeliest token."""
    codec = tiny_codec()
    ids = codec.encode_text(ask.text) if isinstance(ask, Text) else codec.encode_chat(ask.messages, (), True)
    drawn: list[int] = []
    for _ in range(min(sampling.max_tokens, CONTEXT - len(ids))):
        with torch.no_grad():
            drawn.append(int(model(torch.tensor([ids + drawn])).logits[0, -1].argmax()))
        if drawn[-1] in codec.end_tokens:
            break
    return tuple(drawn)


@pytest.mark.parametrize("batch_tokens", [1, 150, 16384])
def test_batched_answers_are_those_of_each_prompt_alone(model: LlamaForCausalLM, batch_tokens: int) -> None:
    sampling = Sampling(max_tokens=20)
    found = list(answers(model, batch_tokens).answer(ASKS, sampling))
    assert [one.tokens for one in found] == [alone(model, ask, sampling) for ask in ASKS]


def test_answers_end_at_any_end_token(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_tokens=20)
    drawn = [alone(model, ask, sampling) for ask in ASKS]
    ends = (drawn[0][4], drawn[1][9])
    monkeypatch.setattr(Codec, "end_tokens", property(lambda self: ends))
    found = list(answers(model).answer(ASKS, sampling))
    assert [one.tokens for one in found] == [alone(model, ask, sampling) for ask in ASKS]
    assert [one.ended for one in found] == ["stop" if one.tokens[-1] in ends else "length" for one in found]
    assert [found[0].ended, found[1].ended] == ["stop", "stop"]
    assert found[0].text == tiny_codec().decode(found[0].tokens[:-1])
    assert ["".join(answers(model).stream(ask, sampling)) for ask in ASKS] == [one.text for one in found]


def test_stop_texts_end_each_row_of_a_batch_by_itself(model: LlamaForCausalLM) -> None:
    sampling = Sampling(max_tokens=20)
    free = list(answers(model).answer(ASKS, sampling))
    stop = next(one.text[k] for one in free for k in range(3, len(one.text)) if one.text[k].isprintable())
    stopped = sampling.model_copy(update={"stop": (stop,)})
    found = list(answers(model).answer(ASKS, stopped))
    assert [one.text for one in found] == [one.text.partition(stop)[0] for one in free]
    assert [one.ended for one in found] == ["stop" if stop in one.text else "length" for one in free]
    assert all(one.tokens == other.tokens[: len(one.tokens)] for one, other in zip(found, free, strict=True))
    assert ["".join(answers(model).stream(ask, stopped)) for ask in ASKS] == [one.text for one in found]


def test_a_penalty_meets_no_padding(model: LlamaForCausalLM) -> None:
    sampling = Sampling(max_tokens=15, repetition_penalty=1.5)
    together = list(answers(model).answer(ASKS, sampling))
    each = [next(answers(model).answer([ask], sampling)) for ask in ASKS]
    assert together == each
    assert together != list(answers(model).answer(ASKS, Sampling(max_tokens=15)))


def test_the_same_call_repeats_and_leaves_the_global_generator_alone(model: LlamaForCausalLM) -> None:
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9, top_k=50, seed=3)
    before = torch.get_rng_state()
    first = list(answers(model, 200).answer(ASKS, sampling))
    assert torch.equal(before, torch.get_rng_state())
    assert list(answers(model, 200).answer(ASKS, sampling)) == first
    other = sampling.model_copy(update={"seed": 4})
    assert list(answers(model, 200).answer(ASKS, other)) != first


def test_generation_settings_of_the_model_do_not_count(model: LlamaForCausalLM) -> None:
    sampling = Sampling(max_tokens=10)
    expected = list(answers(model).answer(ASKS, sampling))
    own = model.generation_config
    own.repetition_penalty, own.min_new_tokens, own.no_repeat_ngram_size = 3.0, 9, 2
    try:
        assert list(answers(model).answer(ASKS, sampling)) == expected
        assert model.generation_config is own
    finally:
        own.repetition_penalty = own.min_new_tokens = own.no_repeat_ngram_size = None


def test_training_goes_on_in_training_mode(model: LlamaForCausalLM) -> None:
    model.train()
    try:
        list(answers(model).answer(ASKS[:1], Sampling(max_tokens=2)))
        assert model.training
    finally:
        model.eval()


def test_a_prompt_as_long_as_the_context_is_a_problem_with_numbers(model: LlamaForCausalLM) -> None:
    with pytest.raises(Problem, match=r"prompt 2: has 400 tokens, and the model reads 256"):
        answers(model).answer([Text("a"), Text("a" * 400)], Sampling())
    with pytest.raises(Problem, match="400"):
        answers(model).stream(Text("a" * 400), Sampling())


def test_an_answer_ends_where_the_context_is_full(model: LlamaForCausalLM) -> None:
    asks = [Text("b" * 250), Text("c" * 20)]
    long, short = answers(model).answer(asks, Sampling(max_tokens=30))
    assert long.tokens == alone(model, asks[0], Sampling(max_tokens=30))
    assert len(long.tokens) <= 6
    assert short.tokens == alone(model, asks[1], Sampling(max_tokens=30))


def test_a_template_that_refuses_is_a_problem(model: LlamaForCausalLM) -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    with pytest.raises(Problem, match="prompt 1: the chat template refuses it"):
        answers(model).answer([Chat((Message("user", "a"),), tools)], Sampling())


@pytest.mark.parametrize("ask", ASKS)
def test_a_stream_is_the_answer_in_pieces(model: LlamaForCausalLM, ask: Ask) -> None:
    sampling = Sampling(max_tokens=25)
    (whole,) = answers(model).answer([ask], sampling)
    assert "".join(answers(model).stream(ask, sampling)) == whole.text


def nobody_streams() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "tunesmith-stream"]


def test_a_closed_stream_stops_the_model(model: LlamaForCausalLM) -> None:
    calls: list[int] = []
    closing = threading.Event()

    def wait(*_: object) -> None:
        calls.append(1)
        if len(calls) == 10:
            closing.wait()

    hook = model.register_forward_pre_hook(wait)
    try:
        stream = answers(model).stream(Text("hello"), Sampling(max_tokens=200))
        next(stream)
        closing.set()
        stream.close()
    finally:
        hook.remove()
    assert len(calls) < 100
    assert nobody_streams()


def test_an_interrupted_reader_stops_the_model(model: LlamaForCausalLM) -> None:
    calls: list[int] = []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 10:
            signal.pthread_kill(reader, signal.SIGINT)

    reader = threading.get_ident()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hook = model.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(answers(model).stream(Text("hello"), Sampling(max_tokens=200)))
    finally:
        hook.remove()
        signal.signal(signal.SIGINT, before)
    assert 10 <= len(calls) < 100
    assert nobody_streams()


def test_a_failure_in_a_stream_reaches_its_reader(model: LlamaForCausalLM) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory left")

    hook = model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="no memory left"):
            list(answers(model).stream(Text("hello"), Sampling()))
    finally:
        hook.remove()


def test_answers_of_the_base_while_an_adapter_is_on() -> None:
    sampling = Sampling(max_tokens=10)
    plain = list(answers(tiny_model()).answer(ASKS, sampling))
    adapted = get_peft_model(
        tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    entered: list[bool] = []

    @contextmanager
    def off() -> Iterator[None]:
        entered.append(True)
        with adapted.disable_adapter():
            yield

    base = Local().bind(adapted, tiny_codec(), off)
    tuned = Local().bind(adapted, tiny_codec())
    assert list(base.answer(ASKS, sampling)) == plain
    assert "".join(base.stream(ASKS[0], sampling)) == plain[0].text
    assert [one.text for one in tuned.answer(ASKS, sampling)] != [one.text for one in plain]
    assert len(entered) == 2


def test_an_adapter_that_does_not_fit_is_a_problem(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_model(), config)
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    opened = open_model(ModelSpec(path=str(tmp_path / "adapter"), device="cpu", dtype="float32"))
    assert opened.adapted
    assert not any(weight.requires_grad for weight in opened.trained.parameters())
    settings = (tmp_path / "adapter" / "adapter_config.json").read_text()
    (tmp_path / "adapter" / "adapter_config.json").write_text(settings.replace('"q_proj"', '"v_proj"'))
    with pytest.raises(Problem, match="does not fit its base"):
        open_model(ModelSpec(path=str(tmp_path / "adapter"), device="cpu", dtype="float32"))


def test_a_real_model_tells_its_story(shared_data: Path) -> None:
    spec = ModelSpec(path=str(shared_data / "model" / "stories260K"), device="cpu", dtype="float32")
    found = Local().open(spec)
    (answer,) = found.answer([Text("Once upon a time")], Sampling(max_tokens=40))
    assert answer.text.startswith(", there was a little girl named Lily.")
    (cut,) = found.answer([Text("Once upon a time")], Sampling(max_tokens=40, stop=("girl",)))
    assert (cut.text, cut.ended) == (", there was a little ", "stop")
    streamed = "".join(found.stream(Text("Once upon a time"), Sampling(max_tokens=40, stop=("girl",))))
    assert streamed == cut.text
