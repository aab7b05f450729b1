"""Check and look at data before anything is trained on it."""

from __future__ import annotations

VERBS = ("check", "view")
"""The verbs of the group, in the order of the help."""
