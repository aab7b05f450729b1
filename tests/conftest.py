"""What every test stands on: no network, one thread, a cache of its own, and the shared data where it is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Read by the libraries when they are first imported, so they have to stand before any test imports one.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

# The same examples on every machine and no clock: a red test is red everywhere.
settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of tunesmith, empty at the start and gone with the session's other temporary folders."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["TUNESMITH_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data is not beside the repository (../shared/data)")
    return folder


@pytest.fixture(params=["wide", "narrow"])
def digit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The digit that products in whole numbers are made with in a test: each that is exact on this machine."""
    from made_digits import EACH

    from tunesmith.models import whole

    found = EACH[request.param]
    if why := whole.fault(found):
        pytest.skip(f"products in whole numbers: {why}")
    monkeypatch.setattr(whole, "widest", lambda: found)
    return found
