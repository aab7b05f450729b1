"""What the docs say exists: links, commands with their options, YAML, tables; both languages say the same things."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docpages import FENCE, REPOSITORY, blocks, commands, name, pages, refresh, twins

from tunesmith.cli import __main__ as entry
from tunesmith.cli.manual import Manual
from tunesmith.core.plugins import PACKAGE, find
from tunesmith.core.run import parse_run
from tunesmith.core.yaml_file import assign

LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)
MINIMAL: dict[str, Any] = {"model": "builtin:seedling", "data": "rows.jsonl"}


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    found = (re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in HEADING.findall(prose(page)))
    return set(found)


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken: list[str] = []
    for link in LINK.findall(prose(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize(("english", "chinese"), sorted(twins().items()))
def test_both_languages_have_the_same_page(english: str, chinese: str) -> None:
    ours, theirs = REPOSITORY / english, REPOSITORY / chinese
    levels = [[level for level, _ in HEADING.findall(prose(page))] for page in (ours, theirs)]
    assert levels[0] == levels[1]
    mark = r"<!-- (?:generated|run|file|result|comparison|lessons)\b.+? -->"
    made = [re.findall(mark, page.read_text("utf-8")) for page in (ours, theirs)]
    assert made[0] == made[1]
    shapes = [
        [(block.language, block.language in ("yaml", "python", "bash") and block.text) for block in blocks(page)]
        for page in (ours, theirs)
    ]
    if english != "README.md":
        assert shapes[0] == shapes[1]


def test_no_page_stands_alone() -> None:
    listed = {*twins(), *twins().values(), "CONTRIBUTING.md"}
    assert {name(page) for page in pages()} == listed


def test_a_page_for_every_verb() -> None:
    folder = PACKAGE / "cli" / "verbs"
    verbs = {"-".join(file.relative_to(folder).with_suffix("").parts) for file in folder.rglob("*.py")}
    verbs = {verb for verb in verbs if not verb.endswith("__init__")}
    assert {page.stem for page in (REPOSITORY / "docs" / "en" / "verbs").glob("*.md")} == verbs


@pytest.mark.parametrize("page", pages(), ids=name)
def test_commands_are_ones_that_the_program_takes(page: Path) -> None:
    for place, (_, *words) in commands(page):
        try:
            accept(words)
        except Exception as error:
            pytest.fail(f"{place}: tunesmith {' '.join(words)}: {error}")


def test_commands_are_found() -> None:
    found = {" ".join(words[:2]) for page in pages() for _, words in commands(page)}
    assert {f"tunesmith {name}" for names in entry.PANELS.values() for name in names} <= found


def accept(words: list[str]) -> None:
    """Parse a command line as the program does, without running it; changes to a run are tried on a small one."""
    verb, *rest = words
    command: Any = entry.Verbs(name="tunesmith").get_command(None, verb)
    assert command is not None, f"there is no verb {verb}"
    if hasattr(command, "commands"):
        verb, *rest = rest
        command = command.commands[verb]
    context = command.make_context(verb, rest)
    if verb in ("train", "plan", "new"):
        value: dict[str, Any] = {"model": {"path": "builtin:seedling"}, "data": [{"path": "rows.jsonl"}]}
        for change in context.params.get("changes") or ():
            assign(value, change)
        parse_run(value, "docs")


@pytest.mark.parametrize(
    "page", [page for page in pages() if any(b.language == "yaml" for b in blocks(page))], ids=name
)
def test_yaml_is_a_run(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            parse_run({**MINIMAL, **yaml.safe_load(block.text)}, block.place)


@pytest.mark.parametrize(
    "page", [page for page in pages() if any(b.language == "python" for b in blocks(page))], ids=name
)
def test_python_is_python(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text, block.place)


def pinned(package: str) -> bool:
    """Whether a package is installed as constraints.txt has it; the look of --help follows from the version."""
    text = (REPOSITORY / "constraints.txt").read_text("utf-8")
    return f"{package}=={importlib.metadata.version(package)}" in text.lower().splitlines()


@pytest.mark.parametrize("page", pages(), ids=name)
def test_what_is_generated_is_fresh(page: Path) -> None:
    text = page.read_text("utf-8")
    if not (pinned("typer") and pinned("rich")) and "<!-- generated: help" in text:
        pytest.skip("typer or rich is not the pinned version, and help looks different")
    assert refresh.generated(page, text) == text, "run: python docs/refresh.py"


def option_places() -> Iterator[str]:
    """Every place that the Chinese help must have."""
    manual = Manual.shipped()
    yield from (f"run.{name}" for name in manual.fields)
    for section, options in manual.sections.items():
        yield from (f"{section}.{option.name}" for option in options)
    for family, members in manual.families.items():
        for member in members:
            yield f"{family}.{member.name}"
            start = "tags" if family == "format" else f"{family}.{member.name}"
            yield from (f"{start}.{option.name}" for option in member.options)


def other_places() -> Iterator[str]:
    from tunesmith.evaluate.settings import Settings
    from tunesmith.generate.sampling import Sampling

    yield from (f"evaluate.{field}" for field in Settings.model_fields if field != "sampling")
    yield from (f"sampling.{field}" for field in Sampling.model_fields)


def test_the_chinese_help_is_whole() -> None:
    words = refresh.translations()
    assert set(words["options"]) == {*option_places(), *other_places()}
    assert all(isinstance(text, str) and text.strip() for text in words["options"].values())
    formats: list[Any] = [find("format", member.name) for member in Manual.shipped().families["format"]]
    assert set(words["phrases"]) == {said for kind in formats for said in kind.columns.values()}


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_every_reason_of_rejection_is_told(tongue: str) -> None:
    text = (REPOSITORY / "docs" / tongue / "data.md").read_text("utf-8")
    untold = {reason for reason in reasons() if f"`{reason}`" not in text}
    assert not untold


def reasons() -> Iterator[str]:
    """The names of reasons, as the sources of `data` give them to RowFault, NoMask, Rejected and the like."""
    for file in (PACKAGE / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield from _reason(node)


def _reason(node: ast.Call) -> Iterator[str]:
    called = node.func.id if isinstance(node.func, ast.Name) else ""
    at = {"RowFault": 0, "NoMask": 0, "Rejected": 1, "_rejected": 1, "filled": 2, "from_json": 2}.get(called)
    if at is not None and len(node.args) > at:
        value = node.args[at]
        if isinstance(value, ast.Constant):
            yield str(value.value)


def test_reasons_are_found() -> None:
    assert {"bad-json", "empty-output", "too long", "refused by the template"} <= set(reasons())


@pytest.mark.parametrize("page", [page for page in pages() if refresh.language(page) == "zh"], ids=name)
def test_chinese_keeps_its_distance_from_latin(page: Path) -> None:
    """A half-width space stands between Chinese and Latin letters or digits."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", "", prose(page))
    touching = re.findall(r"[\u4e00-\u9fff][A-Za-z0-9]+|[A-Za-z0-9]+[\u4e00-\u9fff]", text)
    assert not touching
