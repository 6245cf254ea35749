import math
from typing import Any

import orjson
import pytest

from tiers.backends.openai.chat import (
    UNTOLD,
    Conversation,
    Dialect,
    Unreadable,
    Usage,
    clean,
    read_listed,
    usage_of,
)
from tiers.prompt import DIGITS, YES_NO
from tiers.screenfile.tiers import HttpTier
from tiers.tier import Job

SPELLED = {s: i for i, name in enumerate(YES_NO.names) for s in YES_NO.spellings(name)}


def talk(ask: Any = "yes_no", *, top: int = 20, **settings: Any) -> Conversation:
    config = {"name": "a", "backend": "http", "base_url": "http://h/v1", "model": "m", "ask": ask}
    job = Job("rubric", HttpTier.model_validate(config | settings))
    return Conversation(job, Dialect(top))


def listed(**shares: float) -> list[tuple[str, float]]:
    return [(token.replace("_", " "), math.log(share)) for token, share in shares.items()]


def test_all_spellings_of_a_label_count():
    answer = read_listed(
        listed(yes=0.3, _Yes=0.2, YES=0.1, no=0.2, _no=0.1, maybe=0.1), SPELLED, YES_NO
    )
    assert answer.score == pytest.approx(0.6 / 0.9)
    assert answer.mass == pytest.approx(0.9)
    assert (answer.reading, answer.note) == ("yes", None)


@pytest.mark.parametrize("yes", [0.9, 0.5, 0.05])
def test_the_score_lies_within_what_a_missing_label_can_do(yes):
    # The list ends at 0.02, so that "no" has at most that, and at most what is left.
    rest = 1 - yes - 0.02
    answer = read_listed([("yes", math.log(yes)), ("well", math.log(0.02))], SPELLED, YES_NO)
    most = min(0.02, rest)
    assert answer.score is not None
    assert yes / (yes + most) <= answer.score <= 1.0
    assert answer.score == pytest.approx((yes / (yes + most) + 1) / 2)
    assert (answer.note is not None) == (1 - yes / (yes + most) > 0.05)


def test_no_label_among_the_likeliest_is_no_answer():
    assert read_listed(listed(I=0.9, well=0.1), SPELLED, YES_NO).score is None


@pytest.mark.parametrize("bad", [math.nan, -math.inf, -9999.0])
def test_a_probability_that_is_no_number_is_no_answer(bad):
    assert read_listed([("yes", -0.1), ("no", bad)], SPELLED, YES_NO).score is None


def test_digits_are_an_expectation():
    spelled = {s: i for i, name in enumerate(DIGITS.names) for s in DIGITS.spellings(name)}
    shares = [(str(digit), math.log(0.1)) for digit in range(10)]
    assert read_listed(shares, spelled, DIGITS).score == pytest.approx(0.5)


def test_a_body_is_the_prompt_around_the_candidate_whatever_it_holds():
    for text in ('quotes " and \\ back', "line\nbreak\tand \u2603", '"},{"role":"system"'):
        body = orjson.loads(talk().body([text]))
        prompt = talk().prompt
        assert body["messages"] == [
            {"role": "user", "content": f"{prompt.head}{text}{prompt.tail}"}
        ]
        assert body["logprobs"] is True
        several = orjson.loads(talk(api="completions").body([text, "other"]))
        assert several["prompt"] == [f"{prompt.head}{one}{prompt.tail}" for one in (text, "other")]


def test_the_verdict_of_a_json_reply_is_scored_where_it_stands():
    tokens = [
        ("{", listed(**{"{": 1.0})),
        ('"verdict"', listed(**{'"verdict"': 1.0})),
        (': "', listed(**{': "': 1.0})),
        ("yes", [("yes", math.log(0.8)), ("no", math.log(0.2))]),
        ('", "reasons": []}', listed(x=1.0)),
    ]
    content = [
        {"token": token, "top_logprobs": [{"token": t, "logprob": p} for t, p in top]}
        for token, top in tokens
    ]
    text = '{"verdict": "yes", "reasons": []}'
    choice = {"message": {"content": text}, "logprobs": {"content": content}}
    reading = talk("json").read(choice)
    assert reading.score == pytest.approx(0.8)
    assert orjson.loads(reading.reading) == {"verdict": "yes", "confidence": 0.8, "reasons": []}
    joined = [(t, p) for t, p in content[3].items()]
    assert joined
    content[2:4] = [
        {
            "token": ': "yes',
            "top_logprobs": [
                {"token": ': "no', "logprob": math.log(0.3)},
                {"token": ': "yes', "logprob": math.log(0.7)},
            ],
        }
    ]
    assert talk("json").read(choice).score == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("content", "score"),
    [
        ('{"verdict": "yes", "confidence": 0.8}', 0.8),
        ('{"verdict": "no", "confidence": 0.8}', 0.2),
        ('{"verdict": "no", "confidence": 0.1}', 0.5),
        ('```json\n{"verdict": "yes"}\n```', 1.0),
        ('{"verdict": "Yes"} and so on', 1.0),
        ("No.", 0.0),
        (" Yes, because", 1.0),
    ],
)
def test_what_a_model_without_probabilities_writes(content, score):
    assert talk(top=0).read({"message": {"content": content}}).score == pytest.approx(score)


@pytest.mark.parametrize(
    "content", ["", "perhaps", '{"verdict": "maybe"}', '{"verdict": "ye', None]
)
def test_what_is_no_verdict_is_never_one(content):
    with pytest.raises(Unreadable):
        talk(top=0).read({"message": {"content": content}})


def test_a_cut_reply_says_what_to_raise():
    choice = {"message": {"content": '{"verdict": "yes", "rea'}, "finish_reason": "length"}
    with pytest.raises(Unreadable, match="raise max_tokens"):
        talk("json", top=0).read(choice)


def test_refusals_name_what_to_leave_out():
    dialect = Dialect(20)
    assert dialect.without("top_logprobs must be at most 5") == Dialect(5)
    assert Dialect(5).without("logprobs are not supported") == Dialect(0)
    found = dialect.without("use 'max_completion_tokens' instead of max_tokens")
    assert found is not None
    assert found.limit == "max_completion_tokens"
    assert dialect.without("your text is too long") is None


def test_control_strings_are_broken_up_and_other_brackets_are_not():
    assert clean("a <|im_end|> b") == "a < |im_end|> b"
    assert clean("<think>[INST]</s>") == "< think>[ INST]< /s>"
    assert clean("1 < 2, <b>, [x], </sound>") == "1 < 2, <b>, [x], </sound>"


def test_usage_is_read_with_its_details():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    usage["completion_tokens_details"] = {"reasoning_tokens": 3}
    assert usage_of({"usage": usage}) == ((10, 4, 5, 3), None)
    assert usage_of({"usage": None}) == (Usage(), None)


@pytest.mark.parametrize("number", [2**64 - 1, 1e300, -1, 10_000_001, 1.5, float("nan"), "5", True])
@pytest.mark.parametrize("name", ["prompt", "cached", "completion", "reasoning"])
def test_a_number_of_tokens_that_cannot_be_is_not_told(name, number):
    usage: Any = {"prompt_tokens": 10, "completion_tokens": 5}
    inside = {"cached": "prompt_tokens_details", "reasoning": "completion_tokens_details"}.get(name)
    if inside:
        usage[inside] = {f"{name}_tokens": number}
    else:
        usage[f"{name}_tokens"] = number
    assert usage_of({"usage": usage}) == (Usage(), UNTOLD)


def test_more_tokens_from_the_cache_than_there_are_would_be_a_gift_and_are_not_told():
    usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 11}}
    assert usage_of({"usage": usage}) == (Usage(), UNTOLD)


def test_probabilities_that_add_up_to_more_than_one_are_unreadable():
    both = [("yes", 0.0), ("no", 0.0)]
    answer = read_listed(both, {"yes": 0, "no": 1}, YES_NO)
    assert answer == (None, None, None, "its probabilities add up to more than 1")
    assert read_listed([("yes", 3.0)], {"yes": 0, "no": 1}, YES_NO).score is None
    rounded = [("yes", math.log(0.7)), ("no", math.log(0.305))]
    assert read_listed(rounded, {"yes": 0, "no": 1}, YES_NO).score == pytest.approx(0.7, abs=0.01)
