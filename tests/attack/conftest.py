"""Tiny models and helpers on the path of every attack."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer; nobody may write into it."""
    return tiny.folder(tmp_path_factory.mktemp("attacked") / "base")
