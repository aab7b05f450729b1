"""Hubs: a model and a data set are really fetched from one that runs here, and what cannot be fetched is said."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import small_runs as runs
import tiny
import yaml
from attacks import command, forked, one_paragraph, trap
from small_hub import Hub

import tunesmith
from tunesmith.core.problem import Problem
from tunesmith.models.source import find


@pytest.fixture(scope="module")
def repositories(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a data set of the organisation `small`, with pickles and code beside what is wanted."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(base, root / "models" / "small" / "model")
    (root / "datasets" / "small" / "rows").mkdir(parents=True)
    tiny.rows_file(root / "datasets" / "small" / "rows" / "train.jsonl", tiny.CHATS)
    trap(root / "models" / "small" / "model" / "pytorch_model.bin", root / "canary")
    (root / "models" / "small" / "model" / "modeling_evil.py").write_text(f"open({str(root / 'canary')!r}, 'w')")
    return root


@pytest.fixture(scope="module")
def hub(repositories: Path) -> Iterator[str]:
    """The address of a hub that serves them."""
    Hub.root = repositories
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def environment(**changes: str) -> dict[str, str]:
    """An environment without what keeps the tests off the network; every name leads to this machine."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODELSCOPE_"))}
    own = {name: value for name, value in own.items() if "proxy" not in name.lower()}
    source = str(Path(tunesmith.__file__).parents[1])
    return {
        **own,
        "PYTHONPATH": source,
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        **changes,
    }


def python(*words: object, where: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, env=environment(**changes), cwd=where, capture_output=True, text=True)


def test_a_model_and_a_data_set_come_from_a_hub(hub: str, repositories: Path, base: Path, tmp_path: Path) -> None:
    """`python -m tunesmith train` with two ids; HF_ENDPOINT and HF_HOME are honoured, pickles and code stay there."""
    plain = runs.run(base, tmp_path).plain()
    plain["model"]["path"] = "small/model"
    plain["data"][0]["path"] = "small/rows"
    plain["train"]["steps"] = 2
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain))
    home = tmp_path / "home"
    done = python("-m", "tunesmith", "train", "run.yaml", where=tmp_path, HF_ENDPOINT=hub, HF_HOME=str(home))
    assert done.returncode == 0, done.stdout + done.stderr
    fetched = {path.name for path in (home / "hub" / "models--small--model" / "snapshots").rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert fetched.isdisjoint({"pytorch_model.bin", "modeling_evil.py"})
    adapter = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "small/model"
    assert f"{len(tiny.CHATS)} rows in = {len(tiny.CHATS)} used" in done.stdout
    assert (home / "datasets").is_dir()
    assert not (repositories / "canary").exists()


FIND = "import sys; from tunesmith.models.source import find; print(find(sys.argv[1]).base)"
FETCH = "import sys; from tunesmith.data.hub import fetch_modelscope; print(fetch_modelscope(sys.argv[1], None))"


def test_a_model_and_a_data_set_come_from_modelscope(hub: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("modelscope") is None:
        pytest.skip("the package modelscope is not installed")
    cache = tmp_path / "scope"
    settings = {"MODELSCOPE_ENDPOINT": hub, "MODELSCOPE_CACHE": str(cache), "HOME": str(tmp_path)}
    model = python("-c", FIND, "modelscope:small/model", where=tmp_path, **settings)
    assert model.returncode == 0, model.stdout + model.stderr
    folder = Path(model.stdout.splitlines()[-1])
    assert folder.is_relative_to(cache) and (folder / "model.safetensors").is_file()
    assert not (folder / "pytorch_model.bin").exists()
    rows = python("-c", FETCH, "small/rows", where=tmp_path, **settings)
    assert rows.returncode == 0, rows.stdout + rows.stderr
    folder = Path(rows.stdout.splitlines()[-1])
    assert folder.is_relative_to(cache) and (folder / "train.jsonl").is_file()


def test_modelscope_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(Problem) as caught:
        find("modelscope:small/model")
    one_paragraph(str(caught.value))
    assert 'pip install "tunesmith[modelscope]"' in str(caught.value)


@pytest.mark.parametrize(
    "name", ["no-such-org/no-such-model", "a/b/c", "../x/y", "a b/c", "org/", "/org", "x" * 300 + "/y"]
)
def test_a_model_that_is_nowhere(name: str) -> None:
    with pytest.raises(Problem) as caught:
        find(name)
    one_paragraph(str(caught.value))


def test_a_hub_that_cannot_be_reached(base: Path, tmp_path: Path) -> None:
    """Offline, for a model and for a data set, through the command line."""
    for section, path in (("model", "small/absent"), ("data", "small/absent-rows")):
        plain = runs.run(base, tmp_path).plain()
        (plain["data"][0] if section == "data" else plain["model"])["path"] = path
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain))
        end = forked(command("train", tmp_path / "run.yaml"), tmp_path / "log")
        assert end.status == 2, end.text
        assert "Traceback" not in end.text and path in end.text


def test_a_hub_that_answers_that_there_is_no_such_model(hub: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tunesmith.models.source import find\nfrom tunesmith.core.problem import Problem\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        find(name)\n    except Problem as problem:\n        print(problem)\n"
    )
    closed = "http://127.0.0.1:9"
    for endpoint in (hub, closed):
        done = python("-c", code, "small/absent", where=tmp_path, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "home"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("small/absent: ") and done.stdout.count("\n") == 1, done.stdout
