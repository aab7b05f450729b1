"""Words that YAML takes for truth values."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.core.run import read_run


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_are_words_in_a_run_file_and_on_the_command_line(tmp_path: Path, word: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: a\ndata: b\ntrain: {{checkpoint_activations: {word}}}\n")
    assert read_run(file).train.checkpoint_activations == word
    file.write_text("model: a\ndata: b\n")
    assert read_run(file, (f"train.checkpoint_activations={word}",)).train.checkpoint_activations == word
