"""Chats written without their template are what the template writes, or are not written so."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_codecs import TEMPLATES, codec

from tunesmith.core.problem import Problem
from tunesmith.data import shapes as module
from tunesmith.data.shapes import key_of
from tunesmith.data.template import CHATML, CHATML_PLAIN, Template, TemplateRefusal

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


def each(body: str) -> str:
    return "{% for m in messages %}[{{ m.role }}]" + body + "|{% endfor %}"


WRITERS = {
    "chatml": CHATML,
    "eos": CHATML_PLAIN,
    "plus": each("{{ m['content'] + eos_token }}"),
    "joined": each("{{ '<' ~ m.content ~ '>' ~ loop.index }}"),
    "trim": each("{{ m.content | trim }}"),
    "stripped": each("{{ m.content.rstrip('\\n').strip(' ') + m['content'] }}"),
    "get": each("{{ m.get('content') }}{{ m.get('name', '-') }}{% for k, v in m.items() %}{{ k ~ v }}{% endfor %}"),
    "kinds": each("{% if m.content is string and m.content is not none %}{{ m.content | default('?') }}{% endif %}"),
    "empty": each("{% if m.content %}{{ m.content }}{% else %}nothing{% endif %}{{ m.content == '' }}"),
    "macro": "{% macro w(x, y='-') %}({{ x }}{{ y }}){% endmacro %}" + each("{{ w(m.content) + w('a', m.content) }}"),
    "namespace": "{% set ns = namespace(t='') %}"
    + each("{% set ns.t = ns.t + m.content %}")
    + "{{ ns.t }}{{ messages | length }}{{ messages[1:] | length }}",
    "generation": each("{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}"),
    "in": each("{% if m.role in ['user', 'system'] and 'content' in m %}{{ m.content }}{% endif %}"),
    "raises": each("{% if loop.index > 3 %}{{ raise_exception('too many') }}{% endif %}{{ m.content }}"),
}
LOOKERS = {
    "equal": each("{{ 'yes' if m.content == 'a' else m.content }}"),
    "other way": each("{{ 'yes' if 'a' != m.content else m.content }}"),
    "less": each("{{ 'b' < m.content }}"),
    "part": each("{{ 'a' in m.content }}"),
    "part of": each("{{ m.content in 'aba <b>' }}"),
    "part of, twice": each("{{ 'a' in 'ab' in m.content in 'aab' }}"),
    "one of": each("{{ m.content in ['a', 'b'] }}"),
    "key": each("{{ {'a': 'A'}[m.content] }}"),
    "length": each("{{ m.content | length }}"),
    "slice": each("{{ m.content[:1] }}"),
    "item": each("{{ m.content[0] }}"),
    "letters": each("{% for c in m.content %}{{ c }}.{% endfor %}"),
    "upper": each("{{ m.content | upper }}"),
    "method": each("{{ m.content.upper() }}"),
    "split": each("{{ m.content.split('a') | last }}"),
    "starts": each("{{ m.content.startswith('a') }}"),
    "argument": each("{{ 'ab'.startswith(m.content) }}"),
    "replaced": each("{{ m.content | replace('a', 'b') }}"),
    "json": each("{{ m | tojson }}"),
    "shown": each("{{ m }}"),
    "format": each("{{ '%s' % m.content }}{{ '{}'.format(m.content) }}"),
    "times": each("{{ m.content * 2 }}"),
    "strip of a sum": each("{{ (' ' + m.content + ' ') | trim }}"),
    "stripped empty": each("{% if m.content | trim %}full{% endif %}"),
    "macro": "{% macro w(x) %}{{ x }}{% endmacro %}" + each("{{ w(m.content) | length }}"),
    "block set": each("{% set x %}{{ m.content }}{% endset %}{{ x | length }}"),
    "filter block": each("{% filter upper %}{{ m.content }}{% endfilter %}"),
    "joined list": "{{ messages | map(attribute='content') | join('') | length }}",
    "sorted": "{% for m in messages | sort(attribute='content') %}{{ m.content }}{% endfor %}",
    "chosen": "{% for m in messages | selectattr('content', 'equalto', 'a') %}{{ m.role }}{% endfor %}",
    "whole": "{{ messages[0] == messages[1] }}{{ messages[0].content == messages[1].content }}",
    "mark": each("{{ '\\ufdd5\\U00100000' }}{{ m.content }}"),
    "written mark": each("\ufdd5\U00100000{{ m.content }}"),
    "sum": "{% set ns = namespace(t='') %}" + each("{% set ns.t = ns.t ~ m.content %}") + "{{ ns.t == 'aa' }}",
    "changed": each("{{ loop.changed(m.content) }}"),
}
TEMPLATES_HERE = {
    **{style: codec(style).template for style in TEMPLATES},
    **{f"writes {n}": s for n, s in WRITERS.items()},
}
TEMPLATES_HERE |= {f"looks: {n}": s for n, s in LOOKERS.items()}

PIECES = ["a", "b", "", " ", "\n", "\r\n", "\t", "\u3000", "\x00", "\x1f", "<|im_end|>", "</s>", "<b>&amp;", "{{ x }}"]
PIECES += ["你好。", "🙂", "\ud83d", "\ufeff", "\u200b", "<think>\nwell\n</think>", "\\ufdd5", "\ufdd2\U00100000"]
TEXTS = st.one_of(
    st.sampled_from(PIECES), st.lists(st.sampled_from(PIECES), max_size=5).map("".join), st.text(max_size=8)
)
ROLES = st.sampled_from(
    [
        ("user",),
        ("user", "assistant"),
        ("system", "user", "assistant"),
        ("user", "assistant") * 2,
        ("assistant", "tool"),
    ]
)


@cache
def made(name: str) -> Template:
    return Template(TEMPLATES_HERE[name], SPECIALS)


def said(template: Template, chat: list[dict[str, Any]], ask: bool, **more: Any) -> Any:
    try:
        return template.render(chat, (), ask, **more)
    except (TemplateRefusal, Problem) as fault:
        return type(fault), str(fault)


def both(template: Template, chat: list[dict[str, Any]], ask: bool = False) -> tuple[Any, Any]:
    """As the template is asked, and as it is asked with a name that it does not read, which is never a known shape."""
    return said(template, chat, ask), said(template, chat, ask, unread=1)


def chat_of(roles: tuple[str, ...], texts: list[str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


@pytest.mark.parametrize("name", TEMPLATES_HERE)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_is_written_is_what_the_template_writes(name: str, data: st.DataObject) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "RETURNS", 1)
    try:
        template = made(name)
        roles, ask = data.draw(ROLES), data.draw(st.booleans())
        for _ in range(5):
            texts = data.draw(st.lists(TEXTS, min_size=len(roles), max_size=len(roles)))
            fast, plain = both(template, chat_of(roles, texts), ask)
            assert fast == plain
    finally:
        patch.undo()


def known(source: str, roles: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shape of a template for chats of full texts; None where it has none."""
    monkeypatch.setattr(module, "RETURNS", 1)
    template = Template(source, SPECIALS)
    chat = chat_of(roles, ["b "] * len(roles))
    said(template, chat, False)
    key = key_of(chat, False)
    assert key is not None
    return template._shapes._known[key]  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("name", WRITERS)
def test_templates_that_only_write_texts_have_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known(WRITERS[name], ("user", "assistant"), monkeypatch) is not None


@pytest.mark.parametrize("name", LOOKERS)
def test_templates_that_look_into_texts_have_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known(LOOKERS[name], ("user", "assistant"), monkeypatch) is None


def test_only_chats_of_roles_and_texts_have_shapes() -> None:
    assert key_of([{"role": "user", "content": "a"}], False) != key_of([{"role": "user", "content": ""}], False)
    assert key_of([{"role": "user", "content": "a"}], False) != key_of([{"role": "user", "content": "a"}], True)
    for odd in ({"role": "narrator", "content": "a"}, {"role": "user", "content": ["a"]}, {"role": "user"}):
        assert key_of([odd], False) is None
    assert key_of([{"role": "user", "content": "a", "name": "b"}], False) is None


def test_a_shape_is_looked_at_when_it_comes_back_and_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SHAPES", 2)
    template = Template(CHATML, SPECIALS)
    shapes = template._shapes  # pyright: ignore[reportPrivateUsage]
    for number in range(module.RETURNS):
        assert not shapes._known  # pyright: ignore[reportPrivateUsage]
        template.render(chat_of(("user",), [f"text {number}"]))
    assert len(shapes._known) == 1  # pyright: ignore[reportPrivateUsage]
    for turns in range(2, 9):
        for _ in range(module.RETURNS):
            template.render(chat_of(("user",) * turns, ["a"] * turns))
    assert len(shapes._known) <= 2  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("doublings", [4, 9, 14])
def test_limits_are_passed_where_the_template_passes_them(doublings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETURNS", 1)
    twice = f"{{% for i in range({doublings}) %}}{{% set ns.t = ns.t + ns.t %}}{{% endfor %}}{{{{ ns.t }}}}"
    template = Template("{% set ns = namespace(t=messages[0].content) %}" + twice, SPECIALS)
    for size in (1, 10, 1000, 2**24 >> doublings, (2**24 >> doublings) + 1):
        fast, plain = both(template, chat_of(("user",), ["x" * size]))
        assert fast == plain
        assert isinstance(fast, tuple) == (size << doublings > 2**24)


def test_a_shape_that_is_not_what_the_template_wrote_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETURNS", 1)
    monkeypatch.setattr(module.Shape, "fill", lambda shape, texts: "wrong")
    template = Template(CHATML, SPECIALS)
    for _ in range(3):
        fast, plain = both(template, chat_of(("user", "assistant"), ["a", "b"]))
        assert fast == plain
