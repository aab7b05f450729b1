"""What every listener keeps: it hears a run from start to end, leaves it as it is, and can never stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from tunesmith.core.events import Event
from tunesmith.core.plugins import build, names
from tunesmith.core.rundir import RunDir
from tunesmith.train.listeners import Hears, Listener
from tunesmith.train.tell import Teller

LISTENERS = names("listener")
NEEDS = {"tensorboard": "tensorboard"}
"""The library behind a listener, where it is an extra."""


def listener_of(name: str) -> Listener:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    found = build("listener", name)
    assert isinstance(found, Listener)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The weights of a run that nobody listens to."""
    result = tiny.trained(base, tmp_path_factory.mktemp("alone"), validation={"fraction": 0.3})
    return tiny.tensors(result.folder.model)


@pytest.mark.parametrize("name", LISTENERS)
class TestListener:
    def test_hears_a_run_and_leaves_it_as_it_is(
        self, name: str, base: Path, alone: dict[str, Any], tmp_path: Path
    ) -> None:
        listener_of(name)
        result = tiny.trained(base, tmp_path, validation={"fraction": 0.3}, train={"listeners": [name]})
        assert not [event for event in tiny.events(result, "note") if "failed" in event.values["text"]]
        assert tiny.difference(tiny.tensors(result.folder.model), alone) == 0
        own = [path for path in result.folder.path.rglob("*") if path.is_file()]
        quiet = {"run.yaml", "record.json", "events.jsonl", "data_report.json", ".lock", "rejects.jsonl"}
        assert [path for path in own if path.name not in quiet and path.parent.name not in ("model",)]

    @pytest.mark.parametrize("where", ["open", "hear", "close"])
    def test_a_failing_one_never_stops_training(
        self, name: str, where: str, base: Path, alone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind = type(listener_of(name))
        own = kind.open

        class Fails(Hears):
            def hear(self, event: Event) -> None:
                if where == "hear":
                    raise ConnectionError("the tracker is gone")

            def close(self) -> None:
                if where == "close":
                    raise ConnectionError("the tracker is gone")

        def opens(self: Listener, folder: RunDir) -> Hears:
            if where == "open":
                raise ConnectionError("the tracker is gone")
            own(self, folder).close()
            return Fails()

        monkeypatch.setattr(kind, "open", opens)
        result = tiny.trained(base, tmp_path, validation={"fraction": 0.3}, train={"listeners": [name]})
        assert result.ended == "done"
        assert tiny.difference(tiny.tensors(result.folder.model), alone) == 0
        notes = [event.values["text"] for event in tiny.events(result, "note")]
        said = [note for note in notes if f"the listener {name} failed" in note]
        assert len(said) == 1
        assert "the tracker is gone" in said[0]

    def test_closes_on_a_run_without_steps(self, name: str, tmp_path: Path) -> None:
        listener_of(name)
        notes: list[Event] = []
        tell = Teller(RunDir(tmp_path), [listener_of(name)], notes.append)
        tell.close()
        assert notes == []


def test_one_that_fails_does_not_silence_the_others(tmp_path: Path) -> None:
    heard: list[str] = []

    class Good(Hears):
        def hear(self, event: Event) -> None:
            heard.append(event.kind)

    class Bad(Hears):
        def hear(self, event: Event) -> None:
            raise ValueError("bad")

    tell = Teller(RunDir(tmp_path), [], lambda event: None)
    tell.listening = [("bad", Bad()), ("good", Good())]
    for kind in ("start", "step", "end"):
        tell(Event(kind))
    tell.close()
    assert [kind for kind in heard if kind != "note"] == ["start", "step", "end"]


def test_only_the_main_rank_tells(tmp_path: Path) -> None:
    heard: list[Event] = []
    tell = Teller(RunDir(tmp_path), [listener_of("plot")], heard.append, main=False)
    tell(Event("step", 1, {"loss": 1.0}))
    tell.close()
    assert heard == []
    assert list(tmp_path.iterdir()) == []
