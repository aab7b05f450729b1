"""The JSON schema of run files, from which editors complete and check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """\
Examples:

  tunesmith schema --output tunesmith.schema.json
  tunesmith schema | jq '.properties | keys'

Editors with the YAML language server (VS Code, Neovim, Helix …) complete
and check a run file that begins with

  # yaml-language-server: $schema=tunesmith.schema.json"""


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write it to, instead of printing it.")
    ] = None,
) -> None:
    """Print the JSON schema of run files, which editors complete and check them with."""
    from tunesmith.core import schema as shipped
    from tunesmith.core.rundir import write_json

    value = shipped.load()
    if output is None:
        print(json.dumps(value, ensure_ascii=False, indent=2))
        return
    write_json(output, value)
    print(f"{output}: the schema of run files. Begin a run file in the same folder with this line:")
    print(f"# yaml-language-server: $schema={output.name}")
