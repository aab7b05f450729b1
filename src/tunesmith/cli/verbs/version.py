"""Which version this is."""

from __future__ import annotations

from tunesmith import __version__

EPILOG = """\
Example:

  tunesmith version"""


def version() -> None:
    """Print the version."""
    print(f"tunesmith {__version__}")
