"""Where what can be made again is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """`TUNESMITH_CACHE`, or `~/.cache/tunesmith`."""
    return Path(os.environ.get("TUNESMITH_CACHE") or "~/.cache/tunesmith").expanduser()
