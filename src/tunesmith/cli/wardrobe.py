"""Adapters in a conversation: which of those on a shelf the speakers wear, and the commands that change it.

/use legal          one          /use legal+terse    the sum of two
/base               none         /use legal terse    two side by side
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.cli import screen
from tunesmith.cli.conversation import Conversation, Speaker
from tunesmith.core.problem import Problem
from tunesmith.core.run import ModelSpec
from tunesmith.generate.moment import BASE, names_of
from tunesmith.generate.shelf import Shelf

COMMANDS = {
    "/use NAME …": "answer with an adapter, with NAME+NAME for the sum of two, or with several side by side",
    "/base": "answer with the base alone",
    "/adapters": "list the adapters",
}


class Wardrobe:
    """A base in memory and adapters to choose from."""

    def __init__(self, spec: ModelSpec, adapters: Sequence[str]) -> None:
        """adapters: as `NAME=FOLDER`.

        Raises:
            Problem: one is written otherwise, two have one name, or one cannot be loaded.
        """
        folders: dict[str, str] = {}
        for text in adapters:
            name, mark, folder = text.partition("=")
            if not mark or not folder or name in folders:
                what = "has a name that is taken" if name in folders else "does not say NAME=FOLDER"
                raise Problem(f"--adapter {text}", what, "Write --adapter NAME=FOLDER, each with a name of its own")
            folders[name] = folder
        self.shelf = Shelf.open(spec)
        for name, folder in folders.items():
            self.shelf.load(name, folder)

    def speakers(self, choices: Sequence[str], before: Sequence[Speaker] = ()) -> list[Speaker]:
        """A speaker for each choice, such as `legal`, `legal+terse` or `base`; they know what the first one said.

        Raises:
            Problem: an unknown name, adapters that cannot be added up, or a choice that comes twice.
        """
        if len(set(choices)) < len(choices):
            raise Problem(" ".join(choices), "names a choice twice", "Name each once")
        worn = {choice: self.shelf.wearing(*names_of(choice)) for choice in choices}
        said = before[0].said if before else []
        return [Speaker(choice if len(worn) > 1 else "", answers, list(said)) for choice, answers in worn.items()]

    def hears(self, talk: Conversation, question: str) -> bool:
        """Whether a line is one of the commands, which is then done.

        Raises:
            Problem: as `speakers`.
        """
        word, *choices = question.split()
        if word == "/adapters":
            screen.pairs((name, f"{worn.folder}{_alone(worn.single)}") for name, worn in self.shelf.adapters.items())
        elif word == "/base" or (word == "/use" and choices):
            chosen = choices if word == "/use" else [BASE]
            talk.speakers = self.speakers(chosen, talk.speakers)
            screen.say(f"Answers come from: {', '.join(chosen)}.", "dim")
        elif word == "/use":
            raise Problem("/use", "names no adapter", f"On the shelf: {', '.join(self.shelf.adapters)}")
        else:
            return False
        return True


def _alone(reason: str | None) -> str:
    return f" (used alone: {reason})" if reason else ""
