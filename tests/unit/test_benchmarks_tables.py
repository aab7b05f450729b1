"""Benchmarks: medians, ratios within rounds, tables, figures that are kept, pages; what counts as the same work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks do not come with a source archive", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import scale  # noqa: E402
from bench import growth, page, rounds, table  # noqa: E402
from bench.agree import disagreements  # noqa: E402
from bench.environments import Step, steps_of, torch_pin  # noqa: E402
from bench.side import Outcome, Side, run  # noqa: E402
from bench.table import Column, Group, Told, markdown  # noqa: E402

COLUMNS = [
    Column("cpu", "CPU s", "CPU 秒"),
    Column("cpu", "ratio", "比值", 2, ratio=True),
    Column("memory", "peak GB", "内存峰值 GB", 2, scale=1e-3),
]


def told(name: str, kind: str, *values: float | None) -> Told:
    return Told(name, kind, [None if value is None else {"cpu": value, "memory": 1234.0} for value in values])


def group(**changes: Any) -> Group:
    sides = [
        told("tunesmith", "ours", 1.0, 6.0, 3.0),
        told("slow", "peer", 20.0, None, None),
        told("good", "peer", 4.0, 12.0, 4.0),
        told("wrong", "other", 0.5, 0.5, 0.5),
        Told("absent", "peer", [None, None, None], fault="did not run: no such module"),
    ]
    machine = {"processor": "Some Processor", "cores": 2, "load": 0.5}
    about = {"name": "work", "en": "Some work.", "zh": "某项工作。"}
    parts: dict[str, Any] = {**about, "columns": COLUMNS, "sides": sides, "day": "2026-01-02", "machine": machine}
    return Group(**{**parts, **changes})


def test_ratios_are_medians_of_rounds_and_refer_to_the_best_other_program() -> None:
    found = group()
    ours, good = found.side("tunesmith"), found.side("good")
    assert found.reference is good
    assert ours.median("cpu") == 3.0
    # 1/4, 6/12 and 3/4: the median ratio is 0.5, the ratio of the medians would be 0.75
    assert ours.ratio("cpu", good) == 0.5
    # only the first round has both
    assert found.side("slow").ratio("cpu", good) == 5.0


def test_what_does_other_work_is_no_base_and_more_may_be_better() -> None:
    assert group().best("other") is not None
    assert group(base="slow").reference.name == "slow"  # type: ignore[union-attr]
    assert group(more=True).reference.name == "slow"  # type: ignore[union-attr]
    assert group(sides=[told("tunesmith", "ours", 1.0)]).reference is None


def test_a_ratio_without_a_common_round_is_that_of_the_medians() -> None:
    assert told("a", "peer", None, 6.0).ratio("cpu", told("b", "peer", 3.0, None)) == 2.0


def test_a_table_in_both_languages() -> None:
    assert markdown(group()).splitlines() == [
        "| program | CPU s | ratio | peak GB |",
        "| --- | --- | --- | --- |",
        "| **tunesmith** | 3.0 | 0.50 | 1.23 |",
        "| slow | 20.0 | 5.00 | 1.23 |",
        "| good | 4.0 | 1.00 | 1.23 |",
        "| wrong | 0.5 | 0.12 | 1.23 |",
        "| absent | did not run: no such module |  |  |",
    ]
    assert markdown(group(), "zh").splitlines()[0] == "| 程序 | CPU 秒 | 比值 | 内存峰值 GB |"


def test_figures_are_read_as_they_were_written_and_other_groups_stay(tmp_path: Path) -> None:
    first, second = group(name="first"), group(name="second")
    table.write("some", [first, second], tmp_path)
    changed = group(name="first", en="Measured again.")
    file = table.write("some", [changed], tmp_path)
    assert table.read("some", tmp_path) == [changed, second]
    assert [entry["name"] for entry in json.loads(file.read_text("utf-8"))] == ["first", "second"]
    assert table.read("never", tmp_path) == []


def test_a_page_is_filled_where_it_asks_and_nowhere_else(tmp_path: Path) -> None:
    table.write("some", [group(name="first"), group(name="second", en="Second work.")], tmp_path)
    text = (
        "Before.\n<!-- bench: some second -->\nold\n<!-- /bench -->\nAfter.\n<!-- bench: never -->\n<!-- /bench -->\n"
    )
    new = page.filled(text, "en", tmp_path)
    assert "old" not in new and "Some work." not in new and "Second work." in new
    assert new.startswith("Before.\n") and "After.\n" in new and "Not measured yet." in new
    assert "bench-some.png" not in new
    assert page.filled(new, "en", tmp_path) == new
    whole = page.filled("<!-- bench: some -->\n<!-- /bench -->\n", "zh", tmp_path)
    assert "images/bench-some.png" in whole and whole.count("某项工作。") == 2


def grown() -> Group:
    """A cost of 3 x size^1.5 over sizes of 1, 10, 100 and 1,000."""
    sides = [Told(f"{10**n:,}", "ours", [{"size": 10**n, "cost": 3 * 10 ** (1.5 * n), "cpu": 1.0}]) for n in range(4)]
    return group(sides=sides, columns=COLUMNS[:1], across="size", facts={"exponent": scale.exponent(sides)})


def test_the_exponent_of_growth_and_the_line_of_least_squares() -> None:
    assert grown().facts["exponent"] == pytest.approx(1.5)
    sizes, costs = [1.0, 2.0, 3.0, 10.0], [2.0, 4.5, 5.0, 21.0]
    slope, base = np.polyfit(sizes, costs, 1)
    assert scale.line([*zip(sizes, costs, strict=True)]) == pytest.approx((base, slope))


def test_growth_is_a_curve_over_size(tmp_path: Path) -> None:
    axis = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    growth.panel(axis, grown())
    line, curve, dots = axis.lines
    assert [*curve.get_xdata()] == [1, 10, 100, 1000] and [*dots.get_ydata()] == [*curve.get_ydata()]
    # in proportion, from 3 at size 1
    assert [*line.get_ydata()] == pytest.approx([3, 30, 300, 3000])
    assert axis.get_xscale() == axis.get_yscale() == "log"
    growth.draw([grown(), grown()], tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes()[:4] == b"\x89PNG"


def test_a_page_says_size_where_sides_are_sizes(tmp_path: Path) -> None:
    table.write("some", [grown()], tmp_path)
    assert table.read("some", tmp_path)[0].across == "size"
    text = page.filled("<!-- bench: some -->\n<!-- /bench -->\n", "en", tmp_path)
    assert "| size | CPU s |" in text and "![some: cost over size" in text


def test_pages_are_what_the_figures_say() -> None:
    for tongue, file in page.PAGES.items():
        text = file.read_text("utf-8")
        assert page.filled(text, tongue) == text, "run: cd benchmarks && python -m bench.page"
        assert all(page.picture(name).is_file() for name in page.named(text) if table.read(name))


def test_other_work_is_found() -> None:
    sides = [
        Told("tunesmith", "ours", [{"loss": 2.0, "learned": 10}]),
        Told("near", "peer", [{"loss": 2.00001, "learned": 10}]),
        Told("far", "peer", [{"loss": 2.1, "learned": 10}]),
        Told("fewer", "peer", [{"loss": 2.0, "learned": 9}]),
        Told("silent", "peer", [{"loss": 2.0}]),
        Told("absent", "peer", [None], fault="did not run"),
    ]
    within = {"loss": 1e-5, "learned": 0}
    found = disagreements(sides, within, {})
    assert [text.partition(":")[0] for text in found] == ["far", "fewer", "silent"]
    assert disagreements(sides[:3], within, {"far": {"loss": 0.1}}) == []


def test_rounds_alternate_and_far_settings_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"tunesmith": 1.0, "best": 2.0, "near": 2.9, "far": 3.1}
    order: list[str] = []

    def ran(side: Side, threads: int) -> Outcome:
        order.append(side.name)
        if side.name == "broken":
            raise RuntimeError("it broke\nat /some/place/file.py: it broke")
        return Outcome({"cpu": took[side.name]}, {})

    monkeypatch.setattr(rounds, "run", ran)
    kinds = {"tunesmith": "ours"}
    sides = [Side(name, "", kind=kinds.get(name, "peer")) for name in (*took, "broken")]  # type: ignore[arg-type]
    checked: list[int] = []
    found = rounds.alternate(sides, 2, check=lambda seen: checked.append(len(seen)))
    assert order == ["tunesmith", "best", "near", "far", "broken", "near", "best", "tunesmith"]
    assert [len(entry.rounds) for entry in found] == [2] * 5 and checked == [5]
    assert found[-1].fault == "did not run: at : it broke"


def test_a_side_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "import os\n"
        "def work(settings):\n"
        "    return {'cpu': settings['cpu'], 'process': os.getpid(), 'threads': int(os.environ['OMP_NUM_THREADS'])}\n"
        "def fail(settings):\n"
        "    raise ValueError('no luck')\n"
    )
    variables = {"PYTHONPATH": f"{BENCHMARKS}:{tmp_path}"}
    found = run(Side("some", "worker:work", {"cpu": 2.5}, variables=variables), threads=3)
    assert found.figures["cpu"] == 2.5 and found.figures["threads"] == 3
    assert found.figures["process"] not in (0, None) and found.figures["memory"] > 1
    with pytest.raises(RuntimeError, match="no luck"):
        run(Side("some", "worker:fail", {}, variables=variables))


def test_requirements_are_installed_paragraph_by_paragraph() -> None:
    text = "# A word.\na==1\nb==2\n\n# pip: --no-deps --pre\nc==3\n\n# nothing here\n"
    assert steps_of(text) == [Step((), ("a==1", "b==2")), Step(("--no-deps", "--pre"), ("c==3",))]
    assert torch_pin().startswith("torch==")
