"""Puts the figures of docs/benchmarks into the pages and draws their plots; nothing is measured.

    python -m bench.page [--check] [NAME …]        in the folder benchmarks

A page says where they go, in comments that readers do not see:

    <!-- bench: sft --> … <!-- /bench -->             every group of docs/benchmarks/sft.json, and its plot
    <!-- bench: sft smollm2-135m --> … <!-- /bench --> one group, without a plot

--check changes nothing and exits 1 if a page is not what the figures say.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from bench import growth, plot
from bench.table import FIGURES, ROOT, Group, Tongue, about, markdown, read

PAGES: dict[Tongue, Path] = {"en": ROOT / "docs" / "benchmarks.md", "zh": ROOT / "docs" / "benchmarks.zh.md"}
IMAGES = ROOT / "docs" / "images"
BLOCK = re.compile(r"(<!-- bench: (\S+)(?: (\S+))? -->\n).*?(<!-- /bench -->)", re.DOTALL)
PLOT: dict[Tongue, str] = {"en": "a bar for each program, a dot for each round", "zh": "每个程序一条，每轮一个点"}
GROWTH: dict[Tongue, str] = {"en": "cost over size, beside cost in proportion", "zh": "成本随规模的变化，与正比线对照"}
UNMEASURED: dict[Tongue, str] = {"en": "Not measured yet.", "zh": "尚未测量。"}


def filled(text: str, tongue: Tongue, folder: Path = FIGURES) -> str:
    """A page with the blocks of its figures made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2], found[3], tongue, folder)}\n{found[4]}", text)


def block(name: str, only: str | None, tongue: Tongue, folder: Path = FIGURES) -> str:
    """The tables of a benchmark, or of one of its groups."""
    groups = [group for group in read(name, folder) if only in (None, group.name)]
    before = ["", *(group.command for group in groups)]
    parts = [section(group, tongue, shown=group.command != last) for group, last in zip(groups, before, strict=False)]
    if groups and only is None:
        shown = GROWTH if grows(groups) else PLOT
        parts.append(f"![{name}: {shown[tongue]}](images/{picture(name).name})")
    return "\n".join(["", "\n\n".join(parts) or UNMEASURED[tongue], ""])


def section(group: Group, tongue: Tongue, *, shown: bool = True) -> str:
    """A group: what the work is, its table, how it was measured; shown: whether its command is told."""
    said = group.en if tongue == "en" else group.zh
    command = f"\n\n```bash\n{group.command}\n```" if shown and group.command else ""
    return f"{said}{command}\n\n{markdown(group, tongue)}\n\n{about(group, tongue)}"


def grows(groups: list[Group]) -> bool:
    """Whether groups are of the same work in several sizes."""
    return all(group.across for group in groups)


def picture(name: str) -> Path:
    """Where the plot of a benchmark stands."""
    return IMAGES / f"bench-{name}.png"


def named(text: str) -> list[str]:
    """The benchmarks that a page names, each once."""
    return list(dict.fromkeys(found[2] for found in BLOCK.finditer(text)))


def main() -> None:
    """Fill both pages and draw the plots, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    parser.add_argument("names", nargs="*", help="draw the plots of these alone; by default all")
    asked = parser.parse_args()
    for tongue, page in PAGES.items():
        old = page.read_text("utf-8")
        new = filled(old, tongue)
        if asked.check and new != old:
            raise SystemExit(f"{page} is not what the figures say: run python -m bench.page")
        page.write_text(new, "utf-8")
    for name in [] if asked.check else asked.names or named(PAGES["en"].read_text("utf-8")):
        if groups := read(name):
            (growth if grows(groups) else plot).draw(groups, picture(name))


if __name__ == "__main__":
    main()
