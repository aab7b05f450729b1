"""Turns of a chat, as the two families of chat data write them.

    sharegpt   {"from": "human", "value": "…"}        names of keys and roles can be set (`data.tags`)
    OpenAI     {"role": "user", "content": "…"}       content may be a list of typed parts

Both become the same messages: a call of a function is an assistant's turn with `tool_calls`, what the function gave
back is a tool's turn. The order of turns is checked, since templates render a broken order in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from tunesmith.core.records import Message, Role
from tunesmith.data.formats import Format, Row, RowFault
from tunesmith.data.parts import as_list, as_object, as_string, from_json, given, kind_of

STANDARD: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Roles by the names that OpenAI's messages use."""
FOLLOWS: Mapping[str, tuple[Role, ...]] = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("assistant", "tool"),
}
"""Which role may follow which; a call is an assistant's turn with tool calls."""


class ChatFormat(Format):
    """A format whose rows hold turns; its options name the keys and roles of sharegpt turns."""

    role_tag: str = "from"
    """The key that holds the role of a turn."""
    content_tag: str = "value"
    """The key that holds the content of a turn."""
    user_tag: str = "human"
    """The role of the user."""
    assistant_tag: str = "gpt"
    """The role of the assistant."""
    observation_tag: str = "observation"
    """The role of what a function gave back."""
    function_tag: str = "function_call"
    """The role of a call of a function."""
    system_tag: str = "system"
    """The role of the system."""

    def messages(self, value: Any, part: str) -> tuple[Message, ...]:
        """The turns of a list, or of a single turn.

        Raises:
            RowFault: no turn, an unknown role, or content of a wrong type.
        """
        if isinstance(value, Mapping):
            value = [value]
        turns = as_list(from_json(value, part, "wrong-type"), part)
        if not turns:
            raise RowFault("no-turns", f"`{part}` holds no turn")
        return tuple(self._message(as_object(turn, f"{part}[{i}]"), f"{part}[{i}]") for i, turn in enumerate(turns))

    def has_turns(self, value: Any) -> bool:
        """Whether a value is a list of turns, as far as its first one tells."""
        turns = cast("Sequence[Any]", value if isinstance(value, (list, tuple)) else [value])
        first = turns[0] if turns else None
        return isinstance(first, Mapping) and (self.role_tag in first or "role" in first)

    def is_open(self, value: Any) -> bool:
        """Whether a value is a list of turns that waits for an answer, as far as its last one tells."""
        if not self.has_turns(value):
            return False
        last = cast("Sequence[Any]", value if isinstance(value, (list, tuple)) else [value])[-1]
        if not isinstance(last, Mapping):
            return False
        turn = cast("Mapping[str, Any]", last)
        role = turn.get(self.role_tag, turn.get("role"))
        return role not in (self.assistant_tag, self.function_tag, "assistant")

    def _message(self, turn: Mapping[str, Any], where: str) -> Message:
        if self.role_tag not in turn and "role" in turn:
            return _standard_message(turn, _role(turn["role"], STANDARD, where), where)
        if self.role_tag not in turn:
            raise RowFault("missing-role", f"`{where}` has no `{self.role_tag}`; its keys are {', '.join(turn)}")
        named = turn[self.role_tag]
        if named == self.function_tag:
            return Message(
                "assistant", "", tool_calls=_calls(turn.get(self.content_tag), where), **_learning(turn, where)
            )
        role = _role(named, {**STANDARD, **self._roles()}, where)
        key = self.content_tag if self.content_tag in turn else "content"
        return _standard_message({**turn, "content": turn.get(key)}, role, where)

    def _roles(self) -> dict[str, Role]:
        return {
            self.user_tag: "user",
            self.assistant_tag: "assistant",
            self.observation_tag: "tool",
            self.system_tag: "system",
        }


def read_chat(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """A whole chat, with its system turn: in order, and ending with an answer that is not empty.

    Raises:
        RowFault: the order is broken, there is no answer at the end, or an answer is empty.
    """
    messages = with_system(messages, system)
    check_order(messages)
    if messages[-1].role != "assistant":
        raise RowFault("no-final-answer", f"the last turn is the {messages[-1].role}'s; a chat ends with an answer")
    check_answers(messages)
    return messages


def with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The chat headed by a system turn, if there is one to add.

    Raises:
        RowFault: the chat has a system turn already.
    """
    if not system:
        return messages
    if messages and messages[0].role == "system":
        raise RowFault("two-systems", "a `system` column and a system turn are both there; keep one")
    return (Message("system", system), *messages)


def check_order(messages: Sequence[Message]) -> None:
    """Refuse a chat whose turns do not follow each other: [system], then user and assistant in turn.

    Raises:
        RowFault: with the first turn that is out of order.
    """
    before = ""
    for number, message in enumerate(messages):
        if message.role == "system" and number == 0:
            continue
        if message.role not in FOLLOWS[before]:
            after = {"": "the start", "call": "a tool call"}.get(before, f"the {before}'s turn")
            wanted = " or ".join(FOLLOWS[before])
            raise RowFault("role-order", f"turn {number + 1} is the {message.role}'s; after {after} comes {wanted}")
        before = "call" if message.tool_calls else message.role


def check_answers(messages: Sequence[Message]) -> None:
    """Refuse an answer with nothing in it.

    Raises:
        RowFault: with the first empty answer.
    """
    for number, message in enumerate(messages):
        if message.role == "assistant" and not message.content.strip() and not message.tool_calls:
            raise RowFault("empty-output", f"turn {number + 1}, the assistant's, is empty")


def read_tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    """The functions a chat may call, each as {"type": "function", "function": {…}}.

    Raises:
        RowFault: neither a list of objects with a name nor such a list as JSON in a string.
    """
    if not given(row, "tools") or row["tools"] == "":
        return ()
    tools = from_json(row["tools"], "tools", "bad-tools")
    return tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(as_list(tools, "tools")))


def _tool(value: Any, where: str) -> Mapping[str, Any]:
    tool = as_object(value, where)
    function = as_object(tool["function"] if given(tool, "function") else tool, where)
    if not isinstance(function.get("name"), str):
        raise RowFault("bad-tools", f"`{where}` names no function")
    return tool if given(tool, "function") else {"type": "function", "function": function}


def _role(named: Any, known: Mapping[str, Role], where: str) -> Role:
    role = known.get(named) if isinstance(named, str) else None
    if role is None:
        shown = repr(named) if isinstance(named, str) else kind_of(named)
        raise RowFault("unknown-role", f"`{where}` has the role {shown}; known: {', '.join(known)}")
    return role


def _standard_message(turn: Mapping[str, Any], role: Role, where: str) -> Message:
    content, reasoning, calls = _content(turn, where)
    if given(turn, "tool_calls"):
        calls = _calls(turn["tool_calls"], where)
    elif given(turn, "function_call"):
        calls = _calls(turn["function_call"], where)
    if calls and role != "assistant":
        raise RowFault("bad-tool-call", f"`{where}` is the {role}'s turn and calls a tool; only the assistant does")
    if given(turn, "reasoning_content"):
        reasoning = as_string(turn["reasoning_content"], f"{where}.reasoning_content")
    name = as_string(turn["name"], f"{where}.name") if given(turn, "name") else None
    return Message(role, content, calls, reasoning, name, **_learning(turn, where))


def _content(turn: Mapping[str, Any], where: str) -> tuple[str, str | None, tuple[Mapping[str, Any], ...]]:
    """The content of a turn: text, reasoning, tool calls."""
    content = turn.get("content")
    if content is None and (given(turn, "tool_calls") or given(turn, "function_call")):
        return "", None, ()
    if not isinstance(content, (list, tuple)):
        return as_string(content, f"{where}.content"), None, ()
    text, reasoning, calls = "", "", ()
    for number, item in enumerate(as_list(content, where)):
        kind, value = _part(item, f"{where}.content[{number}]")
        if kind == "text":
            text += as_string(value, f"{where}.content[{number}]")
        elif kind == "reasoning":
            reasoning += as_string(value, f"{where}.content[{number}]")
        else:
            calls = (*calls, *_calls(value, where))
    return text, reasoning or None, calls


def _part(item: Any, where: str) -> tuple[str, Any]:
    part = as_object(item, where)
    kind = {"thinking": "reasoning", "input_text": "text", "output_text": "text"}.get(
        part.get("type", ""), part.get("type")
    )
    if kind not in ("text", "reasoning", "tool_call"):
        raise RowFault("not-text", f"`{where}` is of type {part.get('type')!r}; tunesmith learns from text only")
    keys = ("value", "text", "reasoning", "thinking", "tool_call")
    return str(kind), next((part[key] for key in keys if given(part, key)), None)


def _calls(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Tool calls from one or several, as objects or as JSON in a string."""
    value = from_json(value, where, "bad-tool-call")
    items: list[Any] = [value] if isinstance(value, Mapping) else as_list(value, where)
    return tuple(_call(as_object(item, where), where) for item in items)


def _call(call: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    function = as_object(call["function"], where) if given(call, "function") else call
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise RowFault("bad-tool-call", f"`{where}` calls a tool without naming it")
    arguments = from_json(function.get("arguments") or {}, f"{where}.arguments", "bad-tool-call")
    if not isinstance(arguments, Mapping):
        raise RowFault(
            "bad-tool-call", f"the arguments of `{name}` in `{where}` are {kind_of(arguments)}; they must be an object"
        )
    out: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {**out, "id": call["id"]} if isinstance(call.get("id"), str) else out


def _learning(turn: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`train` and `weight` of a turn, which say whether and how much it is learned."""
    out: dict[str, Any] = {}
    if given(turn, "train"):
        if not isinstance(turn["train"], bool):
            raise RowFault("wrong-type", f"`{where}.train` is {kind_of(turn['train'])}; it must be true or false")
        out["learn"] = turn["train"]
    if given(turn, "weight"):
        weight = turn["weight"]
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight >= 0:
            raise RowFault("wrong-type", f"`{where}.weight` is {kind_of(weight)}; it must be a number, 0 or more")
        out["weight"] = float(weight)
    return out
