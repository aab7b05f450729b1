"""Reward of a form:  r = 1 if the whole answer has it else 0  (the format reward of DeepSeek-R1, arXiv:2501.12948).

    think_answer    <think> … </think> <answer> … </answer>
    think           <think> … </think> …
    json            one JSON object or array
    pattern         whatever the regular expression says

A tag counts once: what is between tags holds no further one. White space around an answer is left out, and what stands
between tags is more than white space.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn

import regex
from pydantic import Field, field_validator, model_validator

from tunesmith.core.problem import Problem
from tunesmith.rewards import Asked
from tunesmith.rewards._rule import Rule

_NO_TAG = r"(?!</?(?:think|answer)>)"
_INSIDE = rf"\s*+{_NO_TAG}\S(?:{_NO_TAG}.)*+"
_FORMS = {
    "think_answer": rf"<think>{_INSIDE}</think>\s*<answer>{_INSIDE}</answer>",
    "think": rf"<think>{_INSIDE}</think>{_INSIDE}",
}


class Format(Rule):
    """1 for an answer of a given form, 0 for any other."""

    form: Literal["think_answer", "think", "json", "pattern"] = "think_answer"
    """The form: thoughts and an answer in tags, thoughts in tags before the answer, JSON, or a pattern of your own."""
    pattern: str = ""
    """For the form `pattern`: the regular expression that the whole answer matches; a dot matches line ends too."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """How long a pattern may take for one answer; a pattern that takes longer ends the run with its name."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            regex.compile(value, regex.DOTALL)
        except regex.error as error:
            raise ValueError(Problem("", f"is no regular expression ({error}); the value seen is {value!r}")) from error
        return value

    @model_validator(mode="after")
    def _has_a_pattern(self) -> Format:
        if (self.form == "pattern") != bool(self.pattern):
            what = f"form is {self.form} and pattern is {self.pattern!r}"
            raise ValueError(Problem("", what, "Set both, form to pattern, or leave pattern out"))
        return self

    def value(self, asked: Asked) -> float:
        text = asked.text.strip()
        return float(_is_json(text) if self.form == "json" else self._matches(text))

    def _matches(self, text: str) -> bool:
        pattern = self.pattern or _FORMS[self.form]
        try:
            return regex.fullmatch(pattern, text, regex.DOTALL, timeout=self.seconds) is not None
        except TimeoutError as error:
            what = f"takes more than {self.seconds:g} seconds for an answer of {len(text):,} characters"
            hint = "Repeat nothing that can match the same text in several ways, such as (a|aa)+"
            raise Problem(f"reward format.pattern {pattern!r}", what, hint) from error


def _is_json(text: str) -> bool:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        value: Any = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)
