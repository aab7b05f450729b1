"""The verbs that train nothing, and how all of them are found, helped and failed."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from tunesmith.cli import __main__ as entry
from tunesmith.cli.verbs import doctor, version
from tunesmith.core.plugins import PACKAGE
from tunesmith.core.problem import Problem
from tunesmith.core.run import read_run

Call = Callable[..., tuple[int, str, str]]

CHATS = [{"instruction": "Say hello.", "output": "Hello."}, {"instruction": "Say bye.", "output": "Bye."}]
PAIRS = [{"instruction": "Say hello.", "chosen": "Hello.", "rejected": "No."}]
LABELLED = [{"text": "fine", "label": "good"}, {"text": "bad", "label": "poor"}]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run the command line in an empty folder; its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *words])
        with pytest.raises(SystemExit) as end:
            sys.exit(entry.main())
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run


def rows(folder: Path, name: str, values: list[dict[str, Any]]) -> str:
    (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    return name


def commands() -> list[tuple[str, Any]]:
    group = entry.Verbs(name="tunesmith")
    found: list[tuple[str, Any]] = []
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        inner = getattr(command, "commands", None)
        found += [(f"{name} {verb}", each) for verb, each in inner.items()] if inner else [(name, command)]
    return found


def test_the_folder_holds_the_verbs_that_the_help_lists() -> None:
    folder = PACKAGE / "cli" / "verbs"
    files = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.py")}
    assert {name.replace(" ", "/") for name, _ in commands()} == {f for f in files if not f.endswith("__init__")}


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_verb_and_option_has_help_and_examples(name: str, command: Any) -> None:
    assert command.help and command.help.splitlines()[0].endswith(".")
    assert f"\n  tunesmith {name}" in command.epilog or f" tunesmith {name}" in command.epilog
    assert max(map(len, command.epilog.splitlines())) <= 78
    for parameter in command.params:
        assert parameter.help and (parameter.name == "help" or parameter.help.endswith(".")), parameter.name


def test_help_lists_every_verb(call: Call) -> None:
    status, told, _ = call("--help")
    assert status == 0
    assert all(name in told for names in entry.PANELS.values() for name in names)
    assert "\x1b" not in told


def test_version(call: Call) -> None:
    assert call("version") == (0, "tunesmith 0.1.0\n", "")


def test_problems_are_one_paragraph_and_exit_2(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise Problem("rows.jsonl:3", "is not JSON", "Mend the line")

    monkeypatch.setattr(version, "version", fails)
    assert call("version") == (2, "", "rows.jsonl:3: is not JSON. Mend the line.\n")


def test_ctrl_c_is_a_sentence_and_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(version, "version", stops)
    status, told, error = call("version")
    assert (status, told) == (130, "")
    assert error.strip() == "Stopped. Nothing that was saved is lost."


@pytest.mark.parametrize("kind", [ZeroDivisionError, EOFError, OSError])
def test_bugs_keep_their_traceback(kind: type[Exception], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> None:
        raise kind("a bug")

    monkeypatch.setattr(version, "version", breaks)
    with pytest.raises(Exception, match="a bug") as caught:
        call("version")
    assert not isinstance(caught.value, SystemExit | typer.Abort)


def test_an_unknown_verb_gets_a_suggestion(call: Call) -> None:
    status, _, error = call("trian")
    assert status == 2
    assert "train" in error


def test_schema_is_printed_and_written(call: Call, tmp_path: Path) -> None:
    status, told, _ = call("schema")
    assert status == 0
    assert call("schema", "--output", "s.json")[0] == 0
    assert json.loads(told) == json.loads((tmp_path / "s.json").read_text())
    assert "properties" in json.loads(told)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora", ["lora (method)", "arXiv:2106.09685", "rank: int > 0", "method: {lora:"]),
        ("method.lora", ["lora (method)"]),
        ("lora.rank", ["method.lora.rank", "int > 0"]),
        ("train.warmup", ["train.warmup", "Warm-up", "float >= 0; default 0.03"]),
        ("warmup", ["train.warmup"]),
        ("data.0.path", ["data.path", "str, required"]),
        ("train", ["How long, in which portions", "epochs: float > 0; default 1.0"]),
        ("objective", ["What to get better at.", "sft", "dpo"]),
        ("output", ["The run folder"]),
        ("format", ["alpaca", "sharegpt"]),
        ("seed", ["train.seed"]),
    ],
)
def test_explain(name: str, said: list[str], call: Call) -> None:
    status, told, _ = call("explain", name)
    assert status == 0
    assert all(text in told for text in said), told


def test_explain_lists_everything_and_helps_with_names(call: Call) -> None:
    assert all(word in call("explain")[1] for word in ("objectives", "lora", "train", "validation"))
    assert call("explain", "train.warmpu")[0] == 2
    assert "Did you mean 'warmup'?" in call("explain", "warmpu")[2]


def test_data_check_accounts_for_rows(call: Call, tmp_path: Path) -> None:
    assert call("data", "check", rows(tmp_path, "good.jsonl", CHATS))[0] == 0
    bad = rows(tmp_path, "bad.jsonl", [*CHATS, {"instruction": "x", "output": 3}])
    status, told, _ = call("data", "check", bad)
    assert status == 1
    assert "3 rows in = 2 used + 1 rejected" in told
    (reject,) = map(json.loads, (tmp_path / "bad.rejects.jsonl").read_text().splitlines())
    assert reject["line"] == 3
    status, told, _ = call("data", "check", bad, "--json")
    assert (status, json.loads(told)["sources"][0]["used"]) == (1, 2)


def test_data_check_never_empties_what_it_reads(call: Call, tmp_path: Path) -> None:
    file = rows(tmp_path, "rows.jsonl", CHATS)
    before = (tmp_path / file).read_bytes()
    assert call("data", "check", file, "--rejects", file)[0] == 2
    assert (tmp_path / file).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.jsonl"], "absent.jsonl"),
        ([], "no file is given"),
        (["rows.jsonl", "--column", "text"], "PART=COLUMN"),
        (["rows.jsonl", "--run", "run.yaml"], "--run"),
    ],
)
def test_data_check_refuses(words: list[str], said: str, call: Call, tmp_path: Path) -> None:
    rows(tmp_path, "rows.jsonl", CHATS)
    status, _, error = call("data", "check", *words)
    assert status == 2
    assert said in error


def test_data_view_shows_the_exact_tokens(call: Call, tmp_path: Path) -> None:
    status, told, _ = call("data", "view", rows(tmp_path, "rows.jsonl", CHATS), "--row", "2")
    assert status == 0
    states = {line.split()[1]: line for line in told.splitlines() if line[:5].strip().isdigit()}
    learned = states["learned"].partition("│")[2].split("│")
    assert "".join(learned) == "Bye.<|im_end|>"
    listed = call("data", "view", "rows.jsonl", "--row", "2", "--ids")[1]
    assert sum(" learned " in line for line in listed.splitlines()[2:] if line[:5].strip().isdigit()) == len(learned)


def test_data_view_shows_pairs_apart(call: Call, tmp_path: Path) -> None:
    told = call("data", "view", rows(tmp_path, "pairs.jsonl", PAIRS))[1]
    assert [line.partition(" (")[0] for line in told.splitlines() if line[:1].isalpha() and line.endswith(")")][1:] == [
        "prompt",
        "chosen",
        "rejected",
    ]


def parts(told: str) -> list[str]:
    """The headings of the pieces of a row that was shown."""
    return [line.partition(" (")[0] for line in told.splitlines() if line[:1].isalpha() and line.endswith(")")][1:]


@pytest.mark.parametrize(
    ("row", "shown", "beside"),
    [
        ({"question": "1 + 1?", "answer": "2 [sic]"}, ["tokens"], "2 [sic]"),
        ({"tokens": ["in", "Rome"], "tags": ["O", "B-LOC"]}, ["tokens"], "in/O Rome/B-LOC"),
        ({"query": "q", "pos": ["a", "b"], "neg": ["c"]}, ["text", *["text of grade 1"] * 2, "text of grade 0"], ""),
    ],
)
def test_data_view_shows_what_is_judged(
    row: dict[str, Any], shown: list[str], beside: str, call: Call, tmp_path: Path
) -> None:
    told = call("data", "view", rows(tmp_path, "rows.jsonl", [row]))[1]
    assert parts(told) == shown
    assert (f"never shown to the model\n{beside}\n" in told) is bool(beside)


def test_data_view_shows_a_pair_as_two_ratings_where_a_run_learns_from_those(call: Call, tmp_path: Path) -> None:
    rows(tmp_path, "pairs.jsonl", PAIRS)
    run = {"model": "builtin:seedling", "data": "pairs.jsonl", "objective": "kto"}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    told = call("data", "view", "--run", "run.yaml")[1]
    assert parts(told) == ["prompt", "answer, found good", "prompt", "answer, found bad"]


def test_data_view_shows_what_a_run_cuts(call: Call, tmp_path: Path) -> None:
    rows(tmp_path, "rows.jsonl", [{"instruction": "Count.", "output": "one two three four five six seven eight"}])
    run = {"model": "builtin:seedling", "data": "rows.jsonl", "train": {"max_tokens": 24, "over_long": "truncate"}}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    status, told, _ = call("data", "view", "--run", "run.yaml", "--ids")
    places = [int(line.split()[0]) for line in told.splitlines() if " cut " in line and line[:5].strip().isdigit()]
    assert status == 0
    assert places and places[0] == 24 and places == list(range(24, places[-1] + 1))
    run["train"] = {"max_tokens": 24}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    assert "This row is not used" in call("data", "view", "--run", "run.yaml")[1]


def test_data_view_refuses_a_row_that_is_not_there(call: Call, tmp_path: Path) -> None:
    status, _, error = call("data", "view", rows(tmp_path, "rows.jsonl", CHATS), "--row", "3")
    assert status == 2
    assert "the last is 2" in error


@pytest.mark.parametrize(
    ("values", "objective"), [(CHATS, "sft"), (PAIRS, "dpo"), (LABELLED, "sft"), ([{"text": "hi"}], "pretrain")]
)
def test_new_finds_the_objective(values: list[dict[str, Any]], objective: str, call: Call, tmp_path: Path) -> None:
    assert call("new", "--data", rows(tmp_path, "rows.jsonl", values))[0] == 0
    assert read_run(tmp_path / "run.yaml").objective.name() == objective


def test_new_takes_flags_and_changes(call: Call, tmp_path: Path) -> None:
    file = rows(tmp_path, "rows.jsonl", LABELLED)
    words = ["--data", file, "--model", "Org/Name", "--prompt", "Which? {text}", "--method", "full", "train.epochs=2"]
    assert call("new", "mine.yaml", *words)[0] == 0
    run = read_run(tmp_path / "mine.yaml")
    assert (run.model.path, run.data[0].prompt, run.method.name(), run.train.epochs) == (
        "Org/Name",
        "Which? {text}",
        "full",
        2,
    )


def test_new_reads_rows_with_the_columns_that_are_named(call: Call, tmp_path: Path) -> None:
    file = rows(tmp_path, "rows.jsonl", [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}])
    assert call("new", "--data", file)[0] == 2
    named = ["data.0.columns.instruction=question", "data.0.columns.output=answer"]
    assert call("new", "--data", file, *named)[0] == 0
    run = read_run(tmp_path / "run.yaml")
    assert (run.objective.name(), run.data[0].columns) == ("sft", {"instruction": "question", "output": "answer"})


def test_new_never_overwrites_unasked(call: Call, tmp_path: Path) -> None:
    file = rows(tmp_path, "rows.jsonl", CHATS)
    (tmp_path / "run.yaml").write_text("mine")
    status, _, error = call("new", "--data", file)
    assert (status, (tmp_path / "run.yaml").read_text()) == (2, "mine")
    assert "--force" in error
    assert call("new", "--data", file, "--force")[0] == 0
    assert (tmp_path / "run.yaml").read_text() != "mine"


def test_new_needs_data_and_good_options(call: Call, tmp_path: Path) -> None:
    assert "--data" in call("new", "--yes")[2]
    file = rows(tmp_path, "rows.jsonl", CHATS)
    assert "Did you mean 'epochs'?" in call("new", "--data", file, "train.epoch=2")[2]
    assert not (tmp_path / "run.yaml").exists()


@pytest.mark.parametrize(
    "words", [["train", "absent.yaml"], ["resume", "absent"], ["chat", "./absent"], ["fold", "./absent"]]
)
def test_what_is_not_there_is_said(words: list[str], call: Call) -> None:
    status, _, error = call(*words)
    assert status == 2
    assert "absent" in error


def test_doctor_knows_every_extra(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    listed = {
        name: tuple(package.partition(">")[0] for package in packages)
        for name, packages in project["optional-dependencies"].items()
        if name != "dev"
    }
    assert listed == doctor.EXTRAS


def test_doctor_tells_what_works_and_the_fix(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> Any:
        yield doctor.Finding("one", "ok", "works")
        yield doctor._library("no-such-package")
        yield doctor._tried("broken", lambda: str(1 / 0))

    monkeypatch.setattr(doctor, "SECTIONS", {"machine": look})
    status, told, _ = call("doctor", "--output", "report.txt")
    assert status == 1
    assert "pip install" in told
    assert "ZeroDivisionError" in told
    assert Path("report.txt").read_text().count("fault") >= 2
    monkeypatch.setattr(doctor, "SECTIONS", {"machine": doctor._torch})
    assert call("doctor")[0] == 0
