"""The benchmark for a GPU, as far as it goes without one: what it refuses, which sides it has, what it reckons."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks do not come with a source archive", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import gpu as benchmark  # noqa: E402
from bench import gpu, our_updates, ours, rows, updates  # noqa: E402
from bench.shapes import SHAPES, flops  # noqa: E402
from bench.side import Side  # noqa: E402
from bench.table import Told  # noqa: E402

from tunesmith.core.run import parse_run  # noqa: E402


def asked(*words: str) -> argparse.Namespace:
    return benchmark.options().parse_args(words)


@pytest.mark.parametrize(("words", "why"), [([], "no NVIDIA GPU is here"), (["--device", "cpu"], "add --dry")])
def test_without_a_gpu_it_says_so(
    words: list[str], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "is_there", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("work", ["sft", "dpo", "grpo"])
def test_every_side_is_a_function_that_is_there(work: str) -> None:
    sides = [*benchmark.ours(asked(), work), *benchmark.peers(asked(), work)]
    assert len({side.name for side in sides}) == len(sides)
    for side in sides:
        module, _, function = side.work.partition(":")
        text = (BENCHMARKS / f"{module.replace('.', '/')}.py").read_text("utf-8")
        assert function in {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
        assert not side.environment or (BENCHMARKS / "peers" / f"{side.environment}.txt").is_file()


@pytest.mark.parametrize("work", ["sft", "dpo", "grpo"])
def test_our_sides_are_runs(work: str, tmp_path: Path) -> None:
    rows.write(rows.instructions(2, 512), tmp_path / "rows")
    updates.write(updates.drawn("dpo", 8, 4, 512), tmp_path)
    for side in benchmark.ours(asked(), work):
        settings: dict[str, Any] = {**side.settings, "place": str(tmp_path)}
        plain = ours.run_of(settings, "rows", tmp_path / "run") if work == "sft" else our_updates.run_of(settings)
        run = parse_run(plain, "test")
        assert (run.model.device, run.model.dtype) == ("cuda", "bfloat16")
        assert run.model.fast == settings["model"]["fast"] or run.model.fast == tuple(settings["model"]["fast"])


def test_on_a_processor_our_sides_alone_are_tried() -> None:
    dry = asked("--device", "cpu", "--dry")
    assert [side.name for side in benchmark.ours(dry, "sft")] == ["tunesmith", "tunesmith, fast off"]
    assert benchmark.peers(dry, "sft") == []


def test_what_cannot_be_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def python_of(name: str) -> str:
        if name == "gpu_flash":
            raise subprocess.CalledProcessError(1, ["pip"])
        return sys.executable

    monkeypatch.setattr(benchmark, "python_of", python_of)
    sides = benchmark.peers(asked(), "sft")
    lost, left = benchmark.missing(sides)
    assert [side.environment for side in left] == [side.environment for side in sides if "flash-attn" not in side.name]
    assert all("cannot be installed" in side.fault for side in lost)
    assert len(lost) == 2


def test_shares_and_tokens_follow_from_wall_time() -> None:
    shape, lengths = SHAPES["tiny"], [(10, 20), (5, 7)]
    told = [Told("tunesmith", "ours", [{"wall": 0.5, "loss": 1.0}])]
    made = benchmark.group(asked("--device", "cpu"), shape, "sft", told, lengths, gflops=10.0)
    (figures,) = made.sides[0].rounds
    assert figures is not None
    assert figures["speed"] == 42 / 0.5
    assert figures["share"] == pytest.approx(100 * flops(shape, lengths, "lora") / 0.5 / 10e9)


def test_a_shared_prompt_is_counted_once(tmp_path: Path) -> None:
    lengths = benchmark.prepare(asked("--prompt", "20", "--answer", "8"), SHAPES["tiny"], "grpo", tmp_path)
    assert len(lengths) == 16
    assert [prompt > 0 for prompt, _ in lengths] == [True] * 2 + [False] * 14
    assert sum(map(sum, lengths)) == updates.read(tmp_path).tokens


def test_the_rate_is_that_of_the_products() -> None:
    settings = {"products": [(64, 32, 48)], "device": "cpu", "dtype": "float32"}
    assert gpu.limit(settings)["gflops"] > 0


def test_a_side_gets_what_was_prepared() -> None:
    side = benchmark.at(Side("a", "b:c", {"x": 1}), Path("there"))
    assert side.settings == {"place": "there", "x": 1}
