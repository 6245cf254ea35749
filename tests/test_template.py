"""Templates: the quick way for plain ones says what Jinja says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from tiers.template import _SANDBOX, Render, check_template, named_fields, renderer

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
