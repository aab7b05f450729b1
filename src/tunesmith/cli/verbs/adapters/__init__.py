"""Make one adapter of several, or of the difference of two models."""

from __future__ import annotations

VERBS = ("combine", "extract")
"""The verbs of the group, in the order of the help."""
