"""Templates: the quick way for plain ones says what Jinja says."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import StrictUndefined, TemplateError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from db.store import Row
from flows.files.ingest import Record, to_rows
from tiers.prompt import Prompt, in_chat
from tiers.sandbox import TooMuch
from tiers.screenfile.file import Candidates
from tiers.screenfile.template import _SANDBOX, Render, check_template, named_fields, renderer

VALUES = st.one_of(st.none(), st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False))


@given(st.dictionaries(st.sampled_from(["name", "age"]), VALUES))
@pytest.mark.parametrize("template", ["{{ name }}", "a {{name}}\n\n{{ age }} b\n", "{{ age }}"])
def test_a_plain_template_is_what_jinja_makes_of_it(
    template: str, fields: dict[str, object]
) -> None:
    def said(render: Render) -> str:
        try:
            return render(fields)
        except UndefinedError as error:
            return f"error: {error}"

    assert said(renderer(template, "id")) == said(_SANDBOX.from_string(template).render)


def test_a_template_may_do_more() -> None:
    render = renderer("{% for x in jobs %}{{ x.title | upper }};{% endfor %}", "id")
    assert render({"jobs": [{"title": "cook"}, {"title": "clerk"}]}) == "COOK;CLERK;"


def test_a_template_cannot_reach_out_of_its_record() -> None:
    render = renderer("{{ name.__class__.__mro__ }}", "id")
    with pytest.raises(Exception, match="unsafe"):
        render({"name": "x"})


def test_a_template_is_checked_and_its_fields_known() -> None:
    assert named_fields("{{ a }} {% if b %}{{ c.d }}{% endif %}") == {"a", "b", "c"}
    with pytest.raises(ValueError, match="names no field"):
        check_template("no field")
    with pytest.raises(ValueError, match="no Jinja2"):
        check_template("{{ a")


ENDLESS = [
    "{{ name * 10**9 }}",
    "{{ 10**9 * name }}",
    "{{ 'a' * 10**9 }}{{ name }}",
    "{{ [name] * 10**9 }}",
    "{{ 10 ** (10 ** 9) }}{{ name }}",
    "{{ 9 ** (9 ** (9 ** 9)) }}{{ name }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ name }}",
    "{% for a in 'x' * 99999 %}{% for b in [1] * 99999 %}{{ name }}{% endfor %}{% endfor %}",
    "{% for a in [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] recursive %}{{ loop([1, 2, 3, 4, 5, 6, 7, 8, 9, 0]) }}"
    "{% endfor %}{{ name }}",
    "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}{{ name }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}{{ name }}",
    "{% set ns = namespace(x=name) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=name) %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[name]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "{% set ns = namespace(x=name) %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}"
    "{% endset %}{% endfor %}",
    "{% set ns = namespace(x=name) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x)|join %}{% endfor %}",
    "{% set ns = namespace(x=name) %}{% for i in range(99) %}"
    "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x == ns.x }}",
    "{{ name.ljust(10**9) }}",
    "{{ name.encode().center(10**9) }}",
    "{{ (5).to_bytes(10**9, 'big') }}{{ name }}",
    "{{ name.zfill(10**9) }}",
    "{{ name | center(10**9) }}",
    "{{ name | center(width=10**9) }}",
    "{{ (name * 9999) | indent(99999) }}",
    "{{ (name * 9999) | replace('a', name * 9999) }}",
    "{{ (name * 9999).replace('a', name * 9999) }}",
    "{{ (name * 9999).join(['a'] * 9999) }}",
    "{{ range(99999) | map('string') | join(name * 999) }}",
    "{{ ('\t' * 99999).expandtabs(99999) }}{{ name }}",
    "{{ '%1000000000d' % 5 }}{{ name }}",
    "{{ '%*d' % (1000000000, 5) }}{{ name }}",
    "{{ '{:1000000000}'.format(name) }}",
    "{{ '{:{}}'.format(name, 1000000000) }}",
    "{{ ('{0}' * 9999).format(name * 9999) }}",
    "{{ ('%(a)s' * 9999) % {'a': name * 9999} }}",
    "{{ 1.5 | round(10**9, 'ceil') }}{{ name }}",
    "{{ [1] | slice(10**9) | list }}{{ name }}",
    "{{ [1] | batch(10**9, name) | list }}",
    "{{ {'a': [1] * 9999} | tojson(indent=99999) }}{{ name }}",
    "{% for i in range(99999) %}{{ name * 999 }}{% endfor %}",
    # Values that are not made, but looked at.
    *(
        f"{{% set a = name * 3000000 %}}{{% set b = name * 3000000 %}}{{% for i in range(99999) %}}{does}{{% endfor %}}"
        for does in (
            "{% if a == b %}{% endif %}",
            "{% if 'x' in a %}{% endif %}",
            "{% if 'x' < a < b %}{% endif %}",
            "{% if a is eq b %}{% endif %}",
            "{% if a is lower %}{% endif %}",
            "{% if 'x' is in a %}{% endif %}",
            "{% set c = a[1:] %}",
            "{% set c = a[::-1] %}",
            "{% set c = a|min %}",
            "{{ a.find('x') }}",
            "{% set c = a.split('x') %}",
            "{{ 1 if a > b }}",
        )
    ),
    "{% set a = name * 1500000 %}{% set b = name * 700000 ~ 'b' %}{% for i in range(999) %}{{ b in a }}{% endfor %}",
    "{% set a = [name] * 500000 %}{% for i in range(9999) %}{% set b = a[1:] %}{% endfor %}",
    "{% for i in range(9999) %}{{ range(99999) | groupby('real') | length }}{{ name }}{% endfor %}",
    "{% filter center(10**9) %}{{ name }}{% endfilter %}",
]


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_makes_too_much_ends_and_its_record_is_reviewed(template):
    candidates = Candidates.model_validate({"from": "x.jsonl", "key": "id", "text": template})
    [row] = to_rows([Record(1, {"id": "a", "name": "ada"})], candidates, Path("x.jsonl"))
    assert isinstance(row, Row)
    assert row.text == ""
    assert str(row.problem).startswith("the template fails: ")
    assert "recursion" in str(row.problem) or TOO_MUCH.search(str(row.problem)), row.problem


TOO_MUCH = re.compile(r"it makes|it takes more steps|a format asks|it rounds|Exceeds the limit")

JOB = {"title": "cook", "since": 1999, "at": ["a", "b"]}
ORDINARY = [
    "{{ name | upper }}: {{ jobs | map(attribute='title') | join(', ') }}",
    "{% for job in jobs %}{{ loop.index }}/{{ loop.length }} {{ job.title.title() }}{{ ', ' if not loop.last }}"
    "{% else %}none{% endfor %}",
    "{% for job in jobs recursive %}{{ job.title }}{{ loop(job.more) if job.more }}{% endfor %}",
    "{% for key, value in jobs[0].items() %}{{ key }}={{ value }};{% endfor %}",
    "{{ '%s is %05.1f' % (name, 3.14159) }} {{ '{:>10}|{}'.format(name, 123456789) }}",
    "{{ name | truncate(3) }} {{ name[:2] }} {{ name * 3 }} {{ name ~ ' ' ~ 1 ~ none }} {{ 2 ** 10 }}",
    "{% set ns = namespace(n=0) %}{% for job in jobs %}{% set ns.n = ns.n + job.since %}{% endfor %}{{ ns.n }}",
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(name) }}{{ jobs | tojson }}{{ [1, [2, (3, 4)]] }}",
    "{{ jobs | groupby('title') | length }} {{ jobs | selectattr('since', '>', 1) | list | length }}",
    "{% if name in ['ada', 'bob'] %}yes{% endif %}{{ name | replace('a', 'o') | wordwrap(2) | indent(2) }}",
    "{% set a, b = 1, [2] %}{{ a }}{{ b }}{% filter upper %}{{ name }}{% endfilter %}{{ jobs | items | list if 0 }}",
    "{{ range(3) | list }}{{ name | reverse }}{{ dict(a=1).a }}{{ jobs | batch(2) | list | length }}",
]


@pytest.mark.parametrize("template", ORDINARY)
@pytest.mark.parametrize("jobs", [[], [JOB], [JOB, {**JOB, "more": [JOB]}]])
def test_an_ordinary_template_says_what_jinja_says(template, jobs):
    plain = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, finalize=lambda value: "" if value is None else value
    )

    def said(render: Any) -> str:
        try:
            return str(render({"id": "a", "name": "ada", "jobs": jobs}))
        except TemplateError as error:
            return f"error: {error}"

    assert said(renderer(template, "id")) == said(plain.from_string(template).render)


def test_a_bound_holds_for_each_record_and_not_for_all_together():
    render = renderer("{% for i in range(50000) %}{{ name }}{% endfor %}", "id")
    assert {len(render({"name": "ada"})) for _ in range(5)} == {150_000}
    with pytest.raises(TooMuch):
        render({"name": "ada" * 1_000})
    assert len(render({"name": "b"})) == 50_000


def test_a_long_text_is_no_reason_to_refuse_it():
    text = "word " * 400_000
    assert renderer("{{ body | trim | upper }}", "id")({"body": text}) == text.strip().upper()
    assert renderer("{{ body | replace('\n', ' ') }}", "id")({"body": text}) == text
    assert renderer("{{ body }}", "id")({"body": text * 9}) == text * 9


@pytest.mark.parametrize(
    "template", ["{{ a }}" * 50_000, "{{ " + "(" * 5000 + "a" + ")" * 5000 + " }}", "{{ a }}" + "{% for x in a %}" * 30 + "{% endfor %}" * 30, "{{ a + " + "9" * 5000 + " }}"],
)  # fmt: skip
def test_a_template_that_cannot_be_compiled_is_refused_with_the_screen(template):
    with pytest.raises(ValueError, match="the template is"):
        check_template(template)


def test_a_models_chat_template_without_an_end_is_refused():
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match="the model's chat template fails: it takes more steps"):
        in_chat(Prompt("a", "b"), endless)
