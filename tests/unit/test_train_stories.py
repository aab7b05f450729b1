"""A published model that learns on: from where its authors left it, and on Shakespeare beside random weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunesmith.core.events import read_events
from tunesmith.core.run import parse_run
from tunesmith.train.verb import train

SEEDS = (1, 2)


@pytest.fixture(scope="module")
def stories(repository: Path, shared_data: Path) -> ModuleType:
    """docs/runs/stories.py, which prepares the models and the texts."""
    if not (shared_data / "model" / "stories260K").is_dir():
        pytest.skip("the published model is not in the shared data")
    spec = importlib.util.spec_from_file_location("docs_stories", repository / "docs" / "runs" / "stories.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def home(stories: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published model, the same with random weights, and some of the texts."""
    folder = tmp_path_factory.mktemp("stories")
    stories.base(folder / "base")
    stories.untrained(folder / "base", folder / "random")
    tales = stories.stories()
    plays = stories.plays()
    for name, (learned, held) in {"tales": (tales[30:], tales[:30]), "plays": plays}.items():
        stories.write(folder / f"{name}.jsonl", learned)
        stories.write(folder / f"{name}-held.jsonl", held[:16])
    return folder


def losses(home: Path, model: str, texts: str, method: Any, lr: float, *, steps: int, seed: int) -> dict[int, float]:
    """The held-out loss of a run by its step."""
    value = {
        "model": str(home / model),
        "data": str(home / f"{texts}.jsonl"),
        "objective": "pretrain",
        "method": method,
        "optimizer": {"adamw": {"lr": lr}},
        "validation": {"data": [{"path": str(home / f"{texts}-held.jsonl")}]},
        "train": {"steps": steps, "tokens_per_step": 2048, "max_tokens": 512, "over_long": "split", "seed": seed}
        | {"validate_every": steps, "checkpoint_every": steps, "listeners": []},
        "output": str(home / f"{model}-{texts}-{method if isinstance(method, str) else 'lora'}-{seed}"),
    }
    events = list(read_events(train(parse_run(value, "test")).folder.events))
    return {event.step: event.values["loss"] for event in events if event.kind == "validate"}


def test_the_texts_are_whole_and_apart(stories: ModuleType, shared_data: Path) -> None:
    tales = stories.stories()
    broken = json.loads((shared_data / "text" / "tinystories_1000.json").read_text("utf-8"))
    assert sum("â€" in text for text in broken) > 0
    assert len(tales) == len(broken) and not any("â€" in text for text in tales)
    learned, held = stories.plays()
    assert not set(learned) & set(held)
    assert 0.08 < len(held) / (len(learned) + len(held)) < 0.12


def test_random_weights_are_of_the_same_kind(home: Path) -> None:
    from safetensors.torch import load_file

    trained, drawn = (load_file(home / name / "model.safetensors") for name in ("base", "random"))
    assert {name: value.shape for name, value in trained.items()} == {n: value.shape for n, value in drawn.items()}
    assert sum(value.numel() for value in drawn.values()) == 260_032
    matrices = [name for name, value in trained.items() if value.dim() == 2]
    assert not any(trained[name].equal(drawn[name]) for name in matrices)


@pytest.mark.parametrize("seed", SEEDS)
def test_more_stories_lower_the_loss_from_where_its_authors_left_it(home: Path, seed: int) -> None:
    found = losses(home, "base", "tales", "full", 5e-4, steps=16, seed=seed)
    assert found[16] < found[0] - 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_lora_on_a_trained_model_is_ahead_of_all_weights_from_nothing(home: Path, seed: int) -> None:
    tuned = losses(home, "base", "plays", {"lora": {"rank": 8, "alpha": 16}}, 1e-2, steps=16, seed=seed)
    new = losses(home, "random", "plays", "full", 3e-3, steps=16, seed=seed)
    assert tuned[16] < tuned[0] - 0.5
    assert new[16] < new[0] - 0.5
    assert tuned[16] < new[16] - 0.5
