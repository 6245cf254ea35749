"""What is asked, and how an answer is read."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiers.prompt import (
    DIGITS,
    YES_NO,
    Prompt,
    check_layout,
    compose,
    field_schema,
    in_chat,
    question_for,
    read_labels,
    reply_schema,
)

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<model>"


def test_the_rubric_comes_first_and_the_candidate_is_the_only_gap() -> None:
    prompt = compose("Knows Python.\n", question_for("yes_no"))
    assert prompt.head.startswith("Knows Python.\n\n")
    assert prompt.head.endswith(":\n")
    assert prompt.tail.endswith("yes or no.")


def test_a_rubric_with_braces_is_left_alone() -> None:
    prompt = compose(
        "Say {{ candidate }} or {{ x }}", "why?", "{{ rubric }}|{{ candidate }}|{{ question }}"
    )
    assert prompt == Prompt("Say {{ candidate }} or {{ x }}|", "|why?")


def test_a_chat_wraps_around_the_candidate() -> None:
    assert in_chat(Prompt("head ", " tail"), CHAT) == Prompt("<user>head ", " tail</user><model>")


@pytest.mark.parametrize(
    "template", ["{{ nothing", "{{ raise() }}", "no turn", "{{ messages[0].content * 2 }}"]
)
def test_a_chat_template_that_fails_is_told(template: str) -> None:
    with pytest.raises(ValueError, match="chat template"):
        in_chat(Prompt("a", "b"), template)


def test_a_chat_template_cannot_reach_out() -> None:
    with pytest.raises(ValueError, match="unsafe"):
        in_chat(Prompt("a", "b"), "{{ messages.__class__.__mro__ }}")


@pytest.mark.parametrize(
    "layout", ["none", "{{ candidate }}{{ candidate }}", "{{ candidate }} {{ who }}"]
)
def test_a_layout_that_cannot_work_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match="the prompt names"):
        check_layout(layout)


@given(st.lists(st.floats(-30, 0), min_size=4, max_size=4))
def test_yes_and_no_are_summed_over_their_spellings(logprobs: list[float]) -> None:
    label = [0, 1, 0, 1]
    answer = read_labels(np.array(logprobs), label, YES_NO)
    yes = math.exp(logprobs[0]) + math.exp(logprobs[2])
    no = math.exp(logprobs[1]) + math.exp(logprobs[3])
    assert answer.score == pytest.approx(yes / (yes + no))
    assert answer.mass == pytest.approx(min(yes + no, 1.0))
    assert answer.reading == ("yes" if yes >= no else "no")


def test_digits_are_read_as_their_expected_value() -> None:
    logprobs = np.log(np.array([0.0, 0, 0, 0, 0, 0, 0, 0.5, 0, 0.5]) + 1e-30)
    answer = read_labels(logprobs, range(10), DIGITS)
    assert answer.score == pytest.approx(8 / 9)
    assert answer.reading in ("7", "9")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_no_number_is_no_score(value: float) -> None:
    assert read_labels(np.array([value, value]), [0, 1], YES_NO).score is None


def test_fields_become_a_schema_with_the_verdict_first() -> None:
    schema = reply_schema({"reasons": "list of str", "level": "junior | mid", "age": "int"})
    assert list(schema["properties"]) == ["verdict", "reasons", "level", "age"]
    assert schema["properties"]["level"] == {"enum": ["junior", "mid"]}
    assert schema["properties"]["reasons"]["items"] == {"type": "string"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("kind", ["text", "list", "a |", "list of things", ""])
def test_a_kind_that_is_none_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="is no kind of field"):
        field_schema(kind)
