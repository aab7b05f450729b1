"""Brings everything in the docs that is generated up to date, so that no figure and no option is typed by hand.

    python docs/refresh.py            help, formats and options, from the code (seconds)
    python docs/refresh.py --check    change nothing; exit 1 if something of this is out of date
    python docs/refresh.py --runs     the demo and the tutorial too, run for real (minutes)
    python docs/refresh.py --results [NAME …]
                                      the results page, from runs/NAME that `tunesmith train docs/runs/NAME.yaml` made
    python docs/lessons.py            the four runs of "Reading the curves" in the tutorial, for real (minutes)

A page says where things go, in comments that readers do not see:

    <!-- generated: help train --> … <!-- /generated -->         what the code says
    <!-- run: tunesmith data check rows.jsonl --> … <!-- /run -->  a command and what it printed
    <!-- file: rows.jsonl -->                                     the next code block is this file
    <!-- demo output --> … <!-- /demo output -->                 what `tunesmith demo` printed
    <!-- result: NAME --> … <!-- /result -->                      curve and evaluation of runs/NAME
    <!-- comparison: NAME --> … <!-- /comparison -->              plot, table and verdict of runs/compare-NAME

`run` may have notes: `run, status 1: …` where the command is meant to fail, `run, Ctrl-C after step 20: …`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "src"))

import yaml  # noqa: E402

from tunesmith import builtin  # noqa: E402
from tunesmith.cli.manual import Manual, Option  # noqa: E402
from tunesmith.core.events import Event, read_events  # noqa: E402
from tunesmith.core.plugins import find  # noqa: E402

WIDTH = 100
RUN_WIDTH = 120
RUN = re.compile(r"(<!-- run((?:, [^:]+?)?): (.+?) -->\n).*?(<!-- /run -->)", re.DOTALL)
FILE = re.compile(r"<!-- file: (.+?) -->\n```\w*\n(.*?)```", re.DOTALL)
TUTORIALS = (DOCS / "en" / "tutorial.md", DOCS / "zh" / "tutorial.md")
RESULTS = (DOCS / "results.md", DOCS / "results.zh.md")
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
CURVE = {"loss": "loss", "accuracy": "accuracy"}
ONLINE_CURVE = {
    "reward": "reward",
    "length": "tokens an answer",
    "drawn_reward": "reward while training",
    "drawn_kl": "KL, nats a token",
    "drawn_kl_answer": "KL, nats an answer",
    "drawn_entropy": "entropy",
}
"""What a table of a run's course shows, by the name in its events."""
HEADS = {
    "en": ("option", "what it may be", "default", "help"),
    "zh": ("选项", "取值", "默认", "说明"),
}
REQUIRED = {"en": "required", "zh": "必填"}
PARTS = {"en": ("part", "what it holds"), "zh": ("部分", "内容")}
YIELDS = {"en": " Becomes `{}`.", "zh": "读成 `{}`。"}


def pages() -> list[Path]:
    """Every page: the two READMEs and all of docs/."""
    return [*READMES, *sorted(DOCS.rglob("*.md"))]


def language(page: Path) -> str:
    return "zh" if "zh" in page.relative_to(ROOT).parts or page.name.endswith(".zh.md") else "en"


Made = Callable[[str, str], str | None]
"""What stands in a block, from its name and the language of its page; None: what is there already."""


def filled(page: Path, text: str, mark: str, made: Made) -> str:
    """The text of a page with its blocks `<!-- MARK: NAME --> … <!-- /MARK -->` made anew; a name may be missing."""

    def put(found: re.Match[str]) -> str:
        content = made(found[2] or "", language(page))
        return found[0] if content is None else f"{found[1]}{content}\n{found[3]}"

    return re.sub(rf"(<!-- {mark}(?:: (.+?))? -->\n).*?(<!-- /{mark} -->)", put, text, flags=re.DOTALL)


def fill(pages: Iterable[Path], mark: str, made: Made) -> None:
    """Make blocks of pages anew in their files."""
    for page in pages:
        page.write_text(filled(page, page.read_text("utf-8"), mark, made), "utf-8")


# What the code says


def generated(page: Path, text: str) -> str:
    """The text of a page with its generated blocks made anew."""
    return filled(page, text, "generated", block)


def block(what: str, tongue: str) -> str:
    """One generated block by its name, such as `help train` or `options train`."""
    kind, _, name = what.partition(" ")
    return MAKERS[kind](name, tongue)


def help_of(verb: str, tongue: str) -> str:
    """The help of a verb as its own --help prints it."""
    from typer.testing import CliRunner

    told = CliRunner().invoke(_program(), [*verb.split(), "--help"], env={"COLUMNS": str(WIDTH)}, prog_name="tunesmith")
    lines = [line.rstrip() for line in told.output.strip("\n").splitlines()]
    return "```text\n" + "\n".join(lines).strip("\n") + "\n```"


def _program() -> Any:
    """The whole command line, as an application that can be asked."""
    import typer

    from tunesmith.cli import __main__ as entry

    app = typer.Typer(cls=entry.Verbs, name="tunesmith", add_completion=False, context_settings=entry.SETTINGS)
    app.callback()(lambda: None)
    return app


def options_of(section: str, tongue: str) -> str:
    """The options of a section of the run file; without a name, its top level."""
    manual = Manual.shipped()
    return table(manual.sections[section], section, tongue) if section else _top_level(manual, tongue)


def _top_level(manual: Manual, tongue: str) -> str:
    """The names at the top of a run file; what may stand under them has tables of its own."""
    name, _, default, said = HEADS[tongue]
    lines = [f"| {name} | {default} | {said} |", "| --- | --- | --- |"]
    for option in manual.fields.values():
        text = translations()["options"][f"run.{option.name}"] if tongue == "zh" else option.help
        usual = f"`{option.default}`" if isinstance(option.default, str) else ""
        lines.append(f"| `{option.name}` | {REQUIRED[tongue] if option.required else usual} | {text} |")
    return "\n".join(lines)


def family_of(name: str, tongue: str) -> str:
    """Every plug-in of a family, with its options."""
    words = translations()
    parts: list[str] = []
    for member in Manual.shipped().families[name]:
        place = f"{name}.{member.name}"
        summary = words["options"][place] if tongue == "zh" else member.summary
        parts += [f"### `{member.name}`", "", summary, ""]
        if member.options:
            parts += [table(member.options, place, tongue), ""]
    return "\n".join(parts).rstrip()


def settings_of(name: str, tongue: str) -> str:
    """The settings of an evaluation or of sampling, which are no part of a run file."""
    from tunesmith.core.schema import explain
    from tunesmith.evaluate.settings import Settings
    from tunesmith.generate.sampling import Sampling

    kinds: dict[str, Any] = {"evaluate": Settings, "sampling": Sampling}
    told = explain(kinds[name])["options"]
    listed = [
        Option(each, _short(each, part["type"]), part["help"], part.get("default"), "default" not in part)
        for each, part in told.items()
        if each != "sampling"
    ]
    return table(tuple(listed), name, tongue)


def _short(name: str, kind: str) -> str:
    return {"metrics": "list of metrics", "training": "list of sources"}.get(name, kind)


def table(options: tuple[Option, ...], place: str, tongue: str) -> str:
    """Options as a table."""
    rows = [HEADS[tongue], ("---",) * 4]
    for option in options:
        said = translations()["options"][f"{place}.{option.name}"] if tongue == "zh" else option.help
        kind = "" if option.type == "any value" else f"`{option.type}`"
        default = REQUIRED[tongue] if option.required else f"`{_plain(option.default)}`"
        rows.append((f"`{option.name}`", kind, default, said))
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


def _plain(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def formats(_: str, tongue: str) -> str:
    """Every format: what it is, rows of it, what they become, its parts."""
    words = translations()
    parts: list[str] = []
    for member in Manual.shipped().families["format"]:
        kind: Any = find("format", member.name)
        summary = words["options"][f"format.{member.name}"] if tongue == "zh" else member.summary
        rows = "\n".join(_rows(member.doc))
        parts += [f"### `{member.name}`", "", f"{summary}{YIELDS[tongue].format(kind.yields.__name__)}", ""]
        parts += ["```json", rows, "```", "", "| " + " | ".join(PARTS[tongue]) + " |", "| --- | --- |"]
        for part, said in kind.columns.items():
            parts.append(f"| `{part}` | {words['phrases'][said] if tongue == 'zh' else said} |")
        parts.append("")
    return "\n".join(parts).rstrip()


def tags(_: str, tongue: str) -> str:
    """The names of keys and roles that can be set for turns."""
    member = next(member for member in Manual.shipped().families["format"] if member.name == "sharegpt")
    return table(member.options, "tags", tongue)


def _rows(doc: str) -> Iterator[str]:
    """The lines of a docstring that are rows of data, and those that go on with one."""
    depth = 0
    for line in doc.splitlines():
        bare = line.strip()
        if depth or bare.startswith("{"):
            yield f" {bare}" if depth else bare
            depth += bare.count("{") + bare.count("[") - bare.count("}") - bare.count("]")


def file_of(path: str, tongue: str) -> str:
    """A file of the repository, whole."""
    return f"```{Path(path).suffix[1:]}\n{(ROOT / path).read_text('utf-8').rstrip()}\n```"


def difference(paths: str, tongue: str) -> str:
    """What the second of two files has otherwise than the first, comments left out."""
    one, other = (
        [line for line in (ROOT / path).read_text("utf-8").splitlines() if not line.startswith("#")]
        for path in paths.split()
    )
    lines = list(difflib.unified_diff(one, other, n=0, lineterm=""))[2:]
    return "\n".join(["```diff", *(line for line in lines if not line.startswith("@@")), "```"])


def translations() -> dict[str, Any]:
    """The Chinese help: `options` by their place, `phrases` by their English text."""
    return yaml.safe_load((DOCS / "zh" / "options.yaml").read_text("utf-8"))


MAKERS: dict[str, Callable[[str, str], str]] = {
    "difference": difference,
    "file": file_of,
    "help": help_of,
    "options": options_of,
    "family": family_of,
    "settings": settings_of,
    "formats": formats,
    "tags": tags,
}


# What commands print


@dataclass(frozen=True)
class Step:
    """One step of a page: a file to write, or a command with how it is to end."""

    command: str = ""
    status: int = 0
    stop_after: int = 0
    file: str = ""
    content: str = ""


def steps(text: str) -> list[Step]:
    """The files and commands of a page, in their order."""
    found = [(hit.start(), Step(file=hit[1], content=hit[2])) for hit in FILE.finditer(text)]
    found += [(hit.start(), _step(hit[2], hit[3])) for hit in RUN.finditer(text)]
    return [step for _, step in sorted(found, key=lambda pair: pair[0])]


def _step(notes: str, command: str) -> Step:
    status = re.search(r"status (\d+)", notes)
    stop = re.search(r"Ctrl-C after step (\d+)", notes)
    return Step(command, int(status[1]) if status else 0, int(stop[1]) if stop else 0)


class Session:
    """A folder in which the commands of a page are run one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        for name, words in (("python", ""), ("tunesmith", "-m tunesmith ")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
            (programs / name).chmod(0o755)
        self.env = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH")))),
            "TUNESMITH_CACHE": str(folder / "cache"),
            "COLUMNS": str(RUN_WIDTH),
        }

    def do(self, step: Step) -> str:
        """Do a step; what a command printed, on either stream.

        Raises:
            SystemExit: the command ended in another way than the page says.
        """
        if step.file:
            (self.folder / step.file).write_text(step.content, "utf-8")
            return ""
        print(f"$ {step.command}", flush=True)
        told, status = self._run(step)
        print(told, end="", flush=True)
        if status != step.status:
            raise SystemExit(f"{step.command}: exit status {status}, and the page says {step.status}")
        if foreign := [line for line in told.splitlines() if sys.prefix in line or "Warning: " in line]:
            raise SystemExit(f"{step.command}: a reader should not see this: {foreign[0]}")
        return told

    def _run(self, step: Step) -> tuple[str, int]:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {step.command}" if step.stop_after else step.command],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        lines: list[str] = []
        stop_after = step.stop_after
        for line in process.stdout or ():
            lines.append(line)
            found = re.match(r"\s+step +(\d+) of ", line)
            if stop_after and found and int(found[1]) >= stop_after:
                process.send_signal(signal.SIGINT)
                stop_after = 0
        return "".join(lines).replace(f"{self.folder}/", ""), process.wait()


def shown(command: str, told: str) -> str:
    """A command and what it printed, as a code block."""
    lines = [line.rstrip() for line in told.strip("\n").splitlines()]
    return "\n".join(["```console", f"$ {command}", *shorter(lines), "```"])


def shorter(lines: list[str], most: int = 5) -> list[str]:
    """Lines with long stretches of progress left out; `…` stands for them."""
    out: list[str] = []
    stretch: list[str] = []
    for line in [*lines, ""]:
        if re.match(r"  step +\d+", line):
            stretch.append(line)
            continue
        out += stretch if len(stretch) <= most else [*stretch[:2], "  …", *stretch[-2:]]
        stretch = []
        out.append(line)
    return out[:-1]


def fewer_rows(lines: list[str], most: int = 3) -> list[str]:
    """Lines with the rows of long boxed tables left out behind the first few; `…` stands for them."""
    out: list[str] = []
    rules = 0
    for line in lines:
        rules = rules + 1 if line.startswith("├") else 0 if line.startswith(("╭", "╰")) else rules
        if rules <= most:
            out.append(line)
        elif line.startswith("├") and rules == most + 1:
            out.append("  …")
    return out


def run_tutorial() -> None:
    """Run the commands of the tutorial once, and put what they print into both languages."""
    texts = [page.read_text("utf-8") for page in TUTORIALS]
    if steps(texts[0]) != steps(texts[1]):
        raise SystemExit("the two tutorials do not hold the same files and commands")
    with tempfile.TemporaryDirectory(prefix="tunesmith-docs-") as folder:
        session = Session(Path(folder))
        shutil.copytree(builtin.example("reviews").parent, session.folder / "examples")
        told = [(step.command, session.do(step)) for step in steps(texts[0])]
    blocks = [shown(command, text) for command, text in told if command]
    for page in TUTORIALS:  # read anew: what else was written into it in those minutes stays
        left, text = iter(blocks), page.read_text("utf-8")
        page.write_text(RUN.sub(lambda found, left=left: f"{found[1]}{next(left)}\n{found[4]}", text), "utf-8")


def run_demo() -> None:
    """Run the demo once, and put what it prints into both READMEs."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-docs-") as folder:
        told = Session(Path(folder)).do(Step("tunesmith demo --output runs/demo"))
    lines = fewer_rows(shorter([line.rstrip() for line in told.strip("\n").splitlines()]))
    text = "\n".join(["```text", *lines, "```"])
    fill(READMES, "demo output", lambda *_: text)


def take_results(only: list[str]) -> None:
    """Put the curve and the evaluation of each real run into both results pages, where the run is there.

    only: names of runs; empty for all.
    """
    names = re.findall(r"<!-- result: (.+?) -->", RESULTS[0].read_text("utf-8"))
    there = [name for name in names if (ROOT / "runs" / name / "events.jsonl").is_file()]
    made = {name: result(name) for name in there if not only or name in only}
    fill(RESULTS, "result", lambda name, _: made.get(name))
    fill(RESULTS, "comparison", lambda task, _: comparison(task))


def comparison(task: str) -> str | None:
    """A comparison's plot, table and verdict; None where the study is not here."""
    name = f"compare-{task}"
    study = ROOT / "runs" / name
    if not (study / "comparison.md").is_file():
        return None
    shutil.copyfile(study / "comparison.png", DOCS / "images" / f"{name}.png")
    said = (study / "comparison.md").read_text("utf-8").partition("\n")[2].replace("\n## ", "\n**").strip()
    table = re.sub(r"^\*\*(.+)$", r"**\1**", said, flags=re.MULTILINE)
    return f"![{name}](images/{name}.png)\n\n{table}"


def result(name: str) -> str:
    """What a run came to: its plot, its validation losses, and what `evaluate` says now."""
    run = ROOT / "runs" / name
    (DOCS / "images").mkdir(exist_ok=True)
    shutil.copyfile(run / "plots" / "loss.png", DOCS / "images" / f"{name}.png")
    curve = curve_of(list(read_events(run / "events.jsonl")))
    with tempfile.TemporaryDirectory(prefix="tunesmith-docs-") as folder:
        session = Session(Path(folder))
        session.folder = ROOT
        told = session.do(Step(f"tunesmith evaluate runs/{name}"))
    return f"![{name}](images/{name}.png)\n\n{curve}\n\n{shown(f'tunesmith evaluate runs/{name}', told)}"


def curve_of(events: list[Event]) -> str:
    """The validation figures of a run as a table; of one that learns from its own answers with those of the step."""
    told: dict[int, dict[str, float]] = {}
    for event in events:
        if event.kind in ("step", "validate"):
            known = {f"drawn_{key}": value for key, value in event.values.items()} if event.kind == "step" else {}
            told.setdefault(event.step, {}).update(known or event.values)
    measured = {step: figures for step, figures in told.items() if "best" in figures}
    online = any("reward" in figures for figures in measured.values())
    names = ONLINE_CURVE if online else CURVE
    shown_names = [name for name in names if any(name in figures for figures in measured.values())]
    head = ["step", *(names[name] for name in shown_names)]
    rows = [
        [f"{step:,}", *(f"{figures[name]:.3f}" if name in figures else "" for name in shown_names)]
        for step, figures in measured.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---:"] * len(head), *rows])


def outdated() -> Iterator[tuple[Path, str]]:
    """The pages whose generated blocks are not what the code says, and what they should be."""
    for page in pages():
        old = page.read_text("utf-8")
        new = generated(page, old)
        if new != old:
            yield page, new


def main() -> int:
    """Refresh the docs; returns the exit status."""
    parser = argparse.ArgumentParser(description="Bring what is generated in the docs up to date.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is out of date")
    parser.add_argument("--runs", action="store_true", help="run the demo and the tutorial too, for minutes")
    parser.add_argument("--results", nargs="*", metavar="NAME", help="fill the results page from runs/NAME, or all")
    asked = parser.parse_args()
    stale = list(outdated())
    for page, new in stale:
        print(f"{'out of date' if asked.check else 'refreshed'}: {page.relative_to(ROOT)}")
        if not asked.check:
            page.write_text(new, "utf-8")
    if asked.runs and not asked.check:
        run_tutorial()
        run_demo()
    if asked.results is not None and not asked.check:
        take_results(asked.results)
    return int(bool(stale) and asked.check)


if __name__ == "__main__":
    sys.exit(main())
