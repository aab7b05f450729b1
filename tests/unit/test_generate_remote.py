"""The engine for servers against a server in this process: what is asked, what is read, what is tried again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tunesmith.core.problem import Problem
from tunesmith.core.records import Chat, Message, Text
from tunesmith.core.run import ModelSpec
from tunesmith.generate.draws import seed_of
from tunesmith.generate.engines import Ask
from tunesmith.generate.engines.remote import Remote, RemoteAnswers
from tunesmith.generate.sampling import Sampling

ASKS: list[Ask] = [Chat((Message("user", "hi"),)), Text("once upon"), Chat((Message("user", "again"),))]
Seen = list[dict[str, Any]]


class Answering:
    """A server that says what it was told; `reply` may be replaced by a test."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.reply: Callable[[str, dict[str, Any]], tuple[int, Any]] = self.echo
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
                    status, said = outer.reply(self.path, body)
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", f"{outer.address}/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def echo(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        said = [f"{text} {number}" for number in range(body["n"])]
        whole = [{"text": one} if "prompt" in body else {"message": {"content": one}} for one in said]
        return 200, {"choices": [{**one, "finish_reason": "length" if k else "stop"} for k, one in enumerate(whole)]}


@pytest.fixture
def answering() -> Iterator[Answering]:
    made = Answering()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def opened(answering: Answering, **options: Any) -> RemoteAnswers:
    settings = {"address": answering.address, "pause_seconds": 0, "timeout_seconds": 5, **options}
    return Remote(**settings).open(ModelSpec(path="ORG/NAME"))


def after(faults: list[tuple[int, Any]], answering: Answering) -> Callable[[str, dict[str, Any]], tuple[int, Any]]:
    """A reply that is one of these first, each once."""
    return lambda path, body: faults.pop(0) if faults else answering.echo(path, body)


def test_each_ask_has_its_answers_in_order(answering: Answering) -> None:
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.9, stop=("x",), seed=2)
    groups = list(opened(answering).answers(ASKS, sampling, 2))
    texts = ["hi", "once upon", "again"]
    assert [[one.text for one in group] for group in groups] == [[f"{text} 0", f"{text} 1"] for text in texts]
    assert [one.ended for one in groups[0]] == ["stop", "length"]
    assert all(one.tokens == () for group in groups for one in group)
    seen = sorted(answering.seen, key=lambda one: one["seed"])
    assert [one["path"] for one in seen] == ["/v1/chat/completions", "/v1/completions", "/v1/chat/completions"]
    assert [one["seed"] for one in seen] == [seed_of(2, number) for number in (0, 2, 4)]
    assert seen[0]["messages"] == [{"role": "user", "content": "hi"}]
    told = {name: seen[1][name] for name in ("model", "n", "max_tokens", "temperature", "top_p", "stop")}
    assert told == {"model": "ORG/NAME", "n": 2, "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["x"]}
    assert not {"top_k", "repetition_penalty", "tools"} & seen[1].keys()


def test_what_is_not_in_the_api_is_sent_where_it_matters(answering: Answering) -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    ask = Chat((Message("user", "hi"),), tools)
    list(opened(answering, model="other").answer([ask], Sampling(top_k=3, repetition_penalty=1.2)))
    (seen,) = answering.seen
    assert (seen["top_k"], seen["repetition_penalty"], seen["tools"], seen["model"]) == (3, 1.2, list(tools), "other")


def test_without_a_temperature_one_answer_stands_for_all(answering: Answering) -> None:
    (group,) = opened(answering).answers(ASKS[:1], Sampling(), 3)
    assert [one.text for one in group] == ["hi 0"] * 3
    assert answering.seen[0]["n"] == 1
    assert list(opened(answering).answers([], Sampling(), 3)) == []


def test_the_key_comes_from_the_environment(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    list(opened(answering).answer(ASKS[:1], Sampling()))
    monkeypatch.setenv("MINE", "word")
    list(opened(answering, key_variable="MINE").answer(ASKS[:1], Sampling()))
    assert [one["key"] for one in answering.seen] == [None, "Bearer word"]


@pytest.mark.parametrize("address", ["http://example.com/v1", "http://10.0.0.1:8000/v1"])
def test_a_key_is_never_sent_in_clear_text(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "word")
    with pytest.raises(Problem, match="not encrypted, and a key would be sent"):
        Remote(address=address).open(ModelSpec(path="m"))
    monkeypatch.delenv("OPENAI_API_KEY")
    Remote(address=address).open(ModelSpec(path="m"))


@pytest.mark.parametrize("address", ["file:///etc/passwd", "127.0.0.1:8000", "http://", ""])
def test_an_address_is_one_of_a_server(address: str) -> None:
    with pytest.raises(Problem, match="is no address of a server"):
        Remote(address=address).open(ModelSpec(path="m"))


def test_a_redirect_is_not_followed(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "word")
    answering.reply = lambda path, body: (307, {})
    with pytest.raises(Problem, match="refused with status 307"):
        list(opened(answering).answer(ASKS[:1], Sampling()))
    assert len(answering.seen) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(answering: Answering, status: int) -> None:
    answering.reply = after([(status, {}), (status, {})], answering)
    (answer,) = opened(answering, retries=2).answer(ASKS[:1], Sampling())
    assert answer.text == "hi 0"
    assert len(answering.seen) == 3


def test_what_does_not_pass_is_a_problem_with_the_servers_words(answering: Answering) -> None:
    answering.reply = lambda path, body: (503, {"error": {"message": "overloaded"}})
    with pytest.raises(Problem, match=r"refused with status 503 \(overloaded\)"):
        list(opened(answering, retries=1).answer(ASKS[:1], Sampling()))
    assert len(answering.seen) == 2
    answering.reply = lambda path, body: (404, {"error": {"message": "no model NAME"}})
    with pytest.raises(Problem, match=r"status 404 \(no model NAME\)"):
        list(opened(answering).answer(ASKS[:1], Sampling()))
    assert len(answering.seen) == 3


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (b"<html>", "answered with no JSON"),
        (b"[]", "answered with list and no JSON object"),
        ({}, "was to have 1 answers, and the server gave no"),
        ({"choices": []}, "was to have 1 answers, and the server gave 0"),
        ({"choices": [{"message": {"content": None, "tool_calls": [{}]}}]}, "prompt 1: .*a call of a tool"),
        ({"choices": [{"message": {}}]}, "answered without a text"),
        ({"choices": [None]}, "answered without a text"),
    ],
)
def test_answers_that_are_none_are_problems(answering: Answering, said: Any, fault: str) -> None:
    answering.reply = lambda path, body: (200, said)
    with pytest.raises(Problem, match=fault):
        list(opened(answering).answer(ASKS[:1], Sampling()))


def test_nobody_there_is_a_problem() -> None:
    made = Answering()
    made.server.server_close()
    with pytest.raises(Problem, match=r"cannot be reached after 2 tries"):
        list(opened(made, retries=1).answer(ASKS[:1], Sampling()))


def test_a_server_that_says_nothing_is_left(answering: Answering) -> None:
    waiting = threading.Event()

    def silent(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        waiting.wait(5)
        return 200, {}

    answering.reply = silent
    try:
        with pytest.raises(Problem, match=r"cannot be reached.*timed out"):
            list(opened(answering, retries=0, timeout_seconds=0.05).answer(ASKS[:1], Sampling()))
    finally:
        waiting.set()


@pytest.mark.parametrize("ask", ASKS[:2])
def test_a_stream_comes_in_pieces(answering: Answering, ask: Ask) -> None:
    parts = [{"text": "a "}, {"text": ""}, {"text": "b"}]
    if isinstance(ask, Chat):
        parts = [{"delta": {"role": "assistant"}}, {"delta": {"content": "a "}}, {"delta": {"content": "b"}}]
    lines = [f"data: {json.dumps({'choices': [part]})}\n\n" for part in parts]
    answering.reply = lambda path, body: (200, "".join([": hello\n\n", *lines, "data: [DONE]\n\n"]).encode())
    assert list(opened(answering).stream(ask, Sampling())) == ["a ", "b"]
    assert answering.seen[0]["stream"] is True
    answering.reply = lambda path, body: (200, b"data: {\n\n")
    with pytest.raises(Problem, match="no JSON"):
        list(opened(answering).stream(ask, Sampling()))
