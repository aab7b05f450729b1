"""Every engine by the folder listing keeps the contract; the local one answers from a folder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
from made_benches import tiny_folder

from tunesmith.core.plugins import build, doc, find, names
from tunesmith.core.records import Chat, Message, Text
from tunesmith.core.run import ModelSpec
from tunesmith.generate.engines import Answer, Answers, Ask, Engine
from tunesmith.generate.sampling import Sampling

ASKS: Sequence[Ask] = (Chat((Message("user", "hello"),)), Text("the thing"), Text("a"))


@pytest.mark.parametrize("name", names("engine"))
def test_an_engine_is_options_that_open_a_model(name: str) -> None:
    engine = build("engine", name)
    assert isinstance(engine, Engine)
    assert engine.name() == name
    assert doc(find("engine", name))
    assert list(inspect.signature(engine.open).parameters) == ["model"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    engine = build("engine", "local")
    assert isinstance(engine, Engine)
    folder = tiny_folder(tmp_path_factory.mktemp("model"))
    return engine.open(ModelSpec(path=str(folder), device="cpu", dtype="float32"))


def test_an_answer_for_each_ask_in_order(answers: Answers) -> None:
    sampling = Sampling(max_tokens=8)
    found = list(answers.answer(ASKS, sampling))
    assert all(isinstance(one, Answer) and one.ended in ("stop", "length") for one in found)
    assert list(answers.answer(ASKS[::-1], sampling)) == found[::-1]
    assert list(answers.answer([], sampling)) == []


def test_an_answer_is_no_longer_than_asked_for(answers: Answers) -> None:
    for one in answers.answer(ASKS, Sampling(max_tokens=5, temperature=1.0)):
        assert 1 <= len(one.tokens) <= 5


def test_a_stream_can_be_left(answers: Answers) -> None:
    stream = answers.stream(ASKS[1], Sampling(max_tokens=50))
    next(stream, None)
    stream.close()
    assert list(stream) == []
