"""Chat templates under limits: what they may do, and what each attack ends in."""

from __future__ import annotations

import threading

import pytest

from tunesmith.core.problem import Problem
from tunesmith.data import sandbox
from tunesmith.data import template as module
from tunesmith.data.template import CHATML, Template, TemplateRefusal

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]

BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}",
    "output": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "product": "{{ 'a' * 10**9 }}",
    "list": "{{ [1] * 10**9 }}",
    "power": "{{ 10 ** (10 ** 7) }}",
    "joins": "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "sums": "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "percent": "{{ '%0999999999d' % 3 }}",
    "starred percent": "{{ '%*d' % (10**9, 3) }}",
    "format": "{{ '{:>999999999}'.format(3) }}",
    "nested format": "{{ '{:{}}'.format(3, 10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "replace": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "range": "{{ range(10**9) | list }}",
}

INJECTIONS = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.json }}",
    "init": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "attr filter": "{{ (messages | attr('__class__')).__mro__ }}",
    "format string": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "mutation": "{{ messages.append(1) }}",
    "pop": "{{ messages[0].pop('role') }}",
}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_WORK", 500_000)
    monkeypatch.setattr(sandbox, "MAX_TEXT", 1 << 20)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_problem(name: str) -> None:
    with pytest.raises(Problem, match="chat template: was stopped"):
        Template(BOMBS[name], {}).render(CHAT)


@pytest.mark.parametrize("name", [name for name in BOMBS if name != "endless macro"])
def test_bombs_are_stopped_without_timer_and_memory_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[BaseException] = []

    def render() -> None:
        try:
            Template(BOMBS[name], {}).render(CHAT)
        except Problem as problem:
            found.append(problem)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert len(found) == 1


@pytest.mark.parametrize("name", INJECTIONS)
def test_an_injection_reaches_nothing(name: str) -> None:
    with pytest.raises((Problem, TemplateRefusal)) as found:
        Template(INJECTIONS[name], {}).render(CHAT)
    assert CHAT == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert "subclasses" not in str(found.value) or "unsafe" in str(found.value)


def test_a_timer_stops_what_the_meter_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(sandbox, "MAX_WORK", 10**15)
    monkeypatch.setattr(sandbox, "MAX_TEXT", 10**15)
    slow = "{% for a in range(999999) %}{% for b in range(999999) %}{% endfor %}{% endfor %}"
    with pytest.raises(Problem, match="takes longer than"):
        Template(slow, {}).render(CHAT)


def test_too_much_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEGABYTES", 64)
    monkeypatch.setattr(sandbox, "MAX_TEXT", 10**15)
    monkeypatch.setattr(sandbox, "MAX_WORK", 10**15)
    with pytest.raises(Problem, match="MB of memory"):
        Template("{{ 'a' * 10**9 }}", {}).render(CHAT)


def test_limits_leave_no_trace() -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    Template(CHATML, {}).render(CHAT)
    with pytest.raises(Problem):
        Template(BOMBS["product"], {}).render(CHAT)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_is_no_template_is_a_problem_with_its_line() -> None:
    with pytest.raises(Problem, match="line 2 is not Jinja"):
        Template("ok\n{% for x in %}", {})


def test_a_template_that_refuses_a_chat_is_no_problem_of_the_template() -> None:
    with pytest.raises(TemplateRefusal, match="roles must alternate"):
        Template("{{ raise_exception('roles must alternate') }}", {}).render(CHAT)
    with pytest.raises(TemplateRefusal, match="no attribute"):
        Template("{{ messages[0].content.nothing.deep }}", {}).render(CHAT)


def test_loops_keep_their_length_and_filters_their_features() -> None:
    source = "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }};{% endfor %}"
    assert Template(source, {}).render(CHAT).text == "1/2;2/2 last;"
    source = "{% for m in messages if m.role == 'user' %}{{ m.content ~ '!' ~ 1 }}{% break %}{% endfor %}"
    assert Template(source, {}).render(CHAT).text == "hi!1"
    source = "{{ messages | map(attribute='content') | join(',') }}{{ {'é': '<'} | tojson(indent=1) }}"
    assert Template(source, {}).render(CHAT).text == 'hi,yo{\n "é": "<"\n}'


def test_generation_spans_are_where_the_text_is() -> None:
    source = "{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}"
    rendered = Template(source, {}).render(CHAT)
    assert rendered.text == "[hi][yo]"
    assert [rendered.text[start:stop] for start, stop in rendered.spans] == ["hi", "yo"]


def test_the_date_stands_still() -> None:
    source = "{{ strftime_now('%Y-%m-%d') }}"
    assert Template(source, {}, date="2031-05-06").render(CHAT).text == "2031-05-06"
    assert Template(source, {}).render(CHAT).text == module.FROZEN_DATE
