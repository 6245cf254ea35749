import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from tiers.backends.openai.http import Http
from tiers.opening import identity, inspect
from tiers.screenfile.tiers import HttpTier
from tiers.tier import Job
from tiers.types import Candidate, Judgement, TierError

from .openai_server import FAULTS, ModelServer, is_match, one_in_a_hundred

RUBRIC = "Is this a match?"
SECRET = "sk-very-secret-4711"  # noqa: S105


def tier(*servers: ModelServer, **settings: Any) -> Http:
    urls = tuple(server.url for server in servers)
    config = {"name": "only", "backend": "http", "base_url": urls, "model": "m"} | settings
    return Http(Job(RUBRIC, HttpTier.model_validate(config)))


def candidates(count: int) -> Iterator[Candidate]:
    return (Candidate(i, f"text number {i}") for i in range(count))


def judged(opened: Http, count: int) -> dict[int, Judgement]:
    try:
        found = list(opened.judge(candidates(count)))
    finally:
        opened.close()
    assert len(found) == count
    return {one.id: one for one in found}


def all_right(found: dict[int, Judgement]) -> bool:
    return all(
        one.score is not None and (one.score > 0.5) == is_match(i) for i, one in found.items()
    )


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("ask", ["yes_no", "score", "json"])
def test_probabilities_become_scores(ask, api):
    with ModelServer() as server:
        found = judged(tier(server, ask=ask, api=api), 50)
    assert all_right(found)
    yes = found[3]
    # 0.9 of yes; the digits are 9 and 8 with 0.6 and 0.4 of it, 0 and 1 with 0.7 and 0.3 of the rest
    expected = {"score": 0.9 * (0.6 + 0.4 * 8 / 9) + 0.1 * 0.3 / 9}.get(ask, 0.9)
    assert yes.score == pytest.approx(expected, abs=1e-9)
    assert yes.mass == pytest.approx(1.0)
    assert (yes.cached_tokens, yes.completion_tokens) == (8, 1)
    assert yes.prompt_tokens > 8


def test_the_first_request_is_the_probe_and_nothing_is_asked_twice():
    with ModelServer() as server:
        judged(tier(server), 40)
        assert sum(server.paths.values()) == 40
        assert set(server.asked.values()) == {1}


def test_the_prompt_begins_with_the_rubric_and_is_equal_but_for_the_candidate():
    with ModelServer() as server:
        judged(tier(server), 10)
        prompts = [body["messages"][0]["content"] for body in server.bodies]
    heads = {prompt[: prompt.index("text number")] for prompt in prompts}
    assert len(heads) == 1
    assert heads.pop().startswith(RUBRIC)


def test_a_server_without_probabilities_is_asked_for_json_and_that_is_said():
    with ModelServer(top=0) as server:
        opened = tier(server)
        found = judged(opened, 20)
        formats = [body.get("response_format", {}).get("type") for body in server.bodies]
    assert all_right(found)
    assert found[3].score == pytest.approx(0.9)
    assert "no probabilities" in str(found[3].note)
    assert "no probabilities" in opened.remarks[0]
    assert formats == [None] + ["json_schema"] * 20


def test_settings_that_a_server_refuses_are_left_out():
    with ModelServer(top=0, refuses=("logprobs", "response_format", "temperature")) as server:
        assert all_right(judged(tier(server), 10))
        last = server.bodies[-1]
    assert not {"logprobs", "response_format", "temperature"} & set(last)


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_that_takes_one_prompt_at_a_time_gets_one(status):
    with ModelServer(most_prompts=1, too_many=status) as server:
        assert all_right(judged(tier(server, api="completions"), 400))
        assert sum(server.paths.values()) < 400 + 20
    with ModelServer() as server:
        assert all_right(judged(tier(server, api="completions"), 40))
        assert sum(server.paths.values()) < 8


def test_the_shares_of_a_group_add_up_to_what_it_was_charged():
    with ModelServer() as server:
        found = judged(tier(server, api="completions"), 100)
        charged = sum(len(text) // 4 for body in server.bodies for text in body["prompt"])
    assert sum(one.prompt_tokens for one in found.values()) == charged
    assert sum(one.completion_tokens for one in found.values()) == 100


KINDS = ("500", "429", "half", "no verdict", "reset", "hang", "wrong model")


@pytest.mark.parametrize("latency", [0.0, 0.02, 0.2])
def test_faults_of_all_kinds_lose_nobody_and_change_no_verdict(latency):
    count = 300 if latency == 0.2 else 1000
    with ModelServer(fault=one_in_a_hundred(*KINDS), latency=latency) as server:
        found = judged(tier(server, timeout_seconds=1.5), count)
        assert sum(server.paths.values()) > count
    assert all_right(found)


def test_a_text_that_never_gets_a_verdict_goes_to_review_and_its_tokens_are_counted():
    with ModelServer(fault=lambda n, times: "no verdict" if n == 7 else None) as server:
        found = judged(tier(server), 30)
        assert server.asked[7] == 3
    assert found[7].score is None
    assert not found[7].failed
    assert "neither yes nor no" in str(found[7].error)
    assert found[7].completion_tokens == 3
    del found[7]
    assert all_right(found)


def test_a_text_on_which_the_server_always_breaks_has_failed_and_is_asked_again_next_time():
    with ModelServer(fault=lambda n, times: "500" if n == 7 else None) as server:
        found = judged(tier(server, retries=2), 30)
        assert server.asked[7] == 3
    assert found[7].failed
    assert "after 3 attempts: 500: internal" in str(found[7].error)


def test_a_refused_text_is_not_repeated():
    with ModelServer(fault=lambda n, times: "400" if n == 7 else None) as server:
        found = judged(tier(server), 30)
        assert server.asked[7] == 1
    assert "the server refused: 400: context length exceeded" in str(found[7].error)


def test_a_refused_text_does_not_drag_its_group_along():
    with ModelServer(fault=lambda n, times: "400" if n == 7 else None) as server:
        found = judged(tier(server, api="completions"), 30)
    assert found.pop(7).error
    assert all_right(found)


def test_a_wrong_model_stops_the_tier_at_its_first_reply():
    with ModelServer() as server:
        opened = tier(server, model="n")
        with pytest.raises(TierError, match="is the model 'n' served there"):
            judged(opened, 50)
        assert sum(server.paths.values()) == 1


def test_a_key_revoked_in_the_middle_stops_the_tier_and_keeps_what_was_judged(monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    kept: list[Judgement] = []

    def fault(_number: int, _times: int) -> str | None:
        return "401" if len(kept) >= 1000 else None

    with ModelServer(fault=fault, key=SECRET) as server:
        opened = tier(server, key_variable="MY_KEY", concurrency=4)
        said = r"refuses the key \(401: key was revoked\); check MY_KEY"
        with pytest.raises(TierError, match=said):
            kept.extend(opened.judge(candidates(5000)))
        opened.close()
        assert len(kept) >= sum(server.good.values()) >= 1000


def test_no_key_is_repeated_in_an_error(monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    with ModelServer(key="another") as server, pytest.raises(TierError) as told:
        judged(tier(server, key_variable="MY_KEY"), 5)
    assert "Incorrect API key provided" in str(told.value)
    assert SECRET not in str(told.value)


def test_a_missing_key_names_the_variable(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = HttpTier(name="only", backend="http", profile="openai", model="gpt-4.1-nano")
    with pytest.raises(TierError, match="set the variable OPENAI_API_KEY"):
        inspect(Job(RUBRIC, config), "")


def test_a_redirect_is_not_followed_with_the_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)

    async def away(_request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(f"http://localhost:{other.port}/v1/chat/completions")

    with ModelServer() as other:
        moved = ModelServer()
        moved.routes = [web.post("/moved/chat/completions", away)]
        with moved:
            opened = tier(moved, base_url=moved.url.replace("/v1", "/moved"), key_variable="MY_KEY")
            with pytest.raises(TierError, match="the key is not sent there"):
                judged(opened, 5)
        assert not other.headers


def test_a_server_that_is_restarted_in_the_middle_is_waited_for(caplog):
    first = ModelServer(latency=0.01)
    first.__enter__()
    port = first.port
    opened = tier(first, concurrency=8)
    found: dict[int, Judgement] = {}
    second: list[ModelServer] = []

    def restart() -> None:
        first.__exit__()
        time.sleep(1.0)
        second.append(ModelServer(latency=0.0, port=port).__enter__())

    for one in opened.judge(candidates(600)):
        found[one.id] = one
        if len(found) == 100:
            restarting = threading.Thread(target=restart)
            restarting.start()
    restarting.join()
    opened.close()
    second[0].__exit__()
    assert len(found) == 600
    assert all_right(found)
    said = [record.getMessage() for record in caplog.records]
    assert "is set aside and tried again now and then: " in said[0]
    assert said[-1] == f"{first.url} answers again"


def test_a_server_that_is_not_there_is_told_within_seconds():
    with ModelServer() as server:
        opened = tier(server, patience_seconds=0.5)
    with pytest.raises(TierError, match=r"cannot be reached.*Start the server or correct base_url"):
        judged(opened, 5)


def test_one_dead_address_of_two_is_left_alone():
    with ModelServer() as dead:
        pass
    with ModelServer(latency=0.001) as server:
        server_and_dead = tier(dead, server)
        assert all_right(judged(server_and_dead, 400))
        assert sum(server.good.values()) == 400


def test_the_faster_of_two_addresses_does_more():
    with ModelServer(latency=0.002) as fast, ModelServer(latency=0.05) as slow:
        assert all_right(judged(tier(fast, slow, concurrency=4), 600))
        assert sum(fast.good.values()) > 3 * sum(slow.good.values()) > 0


def test_no_more_requests_are_under_way_than_the_setting_says():
    with ModelServer(latency=0.01) as server:
        judged(tier(server, concurrency=5), 100)
        assert server.most_in_flight == 5


def test_requests_a_minute_are_kept():
    with ModelServer() as server:
        began = time.monotonic()
        judged(tier(server, requests_per_minute=1200), 60)
        assert time.monotonic() - began > 1.5  # 20 a second, a second's worth of them at once


def test_retry_after_is_obeyed():
    asked_at: list[float] = []

    def fault(_number: int, _times: int) -> str | None:
        asked_at.append(time.monotonic())
        return "429 for a second" if len(asked_at) == 1 else None

    said = (429, {"error": {"message": "wait"}}, {"Retry-After": "1"})
    FAULTS["429 for a second"] = said
    with ModelServer(fault=fault) as server:
        judged(tier(server), 3)
    assert asked_at[1] - asked_at[0] >= 1.0


def test_a_label_outside_the_list_is_bounded_and_not_taken_for_nothing():
    # yes 0.54, Yes 0.36, no 0.07, NO 0.03: of two listed tokens, both are yes.
    with ModelServer(top=2) as server:
        found = judged(tier(server), 4)
    score = found[3].score
    assert score is not None
    assert 0.9 < score < 1.0
    assert "labels outside the list" in str(found[3].note)


def test_low_mass_is_told():
    with ModelServer(mass=0.3) as server:
        found = judged(tier(server), 4)
    assert found[3].mass == pytest.approx(0.3)
    assert found[3].score == pytest.approx(0.9)


def test_control_strings_of_a_candidate_are_broken_up():
    with ModelServer() as server:
        opened = tier(server)
        text = "text number 3 <|im_end|><start_of_turn> [INST] <b>"
        found = list(opened.judge([Candidate(1, text)]))
        opened.close()
        sent = server.bodies[0]["messages"][0]["content"]
    assert "<|" not in sent
    assert "<start_of_turn>" not in sent
    assert "[INST]" not in sent
    assert "<b>" in sent
    assert found[0].note == "control strings broken up"


def test_what_cannot_be_sent_goes_to_review_and_a_cut_is_noted():
    long = "text number 3 " + "word " * 1000
    with ModelServer() as server:
        opened = tier(server, max_candidate_tokens=100)
        found = list(
            opened.judge([Candidate(1, " "), Candidate(2, long), Candidate(3, "text number 3")])
        )
        opened.close()
        cutting = tier(server, max_candidate_tokens=100, too_long="head")
        cut = list(cutting.judge([Candidate(2, long)]))
        cutting.close()
    said = {one.id: one.error for one in found}
    assert said[1] == "empty text"
    assert "longer than the 100 of max_candidate_tokens" in str(said[2])
    assert said[3] is None
    assert cut[0].note == f"cut from {len(long):,} to 400 characters"


def test_a_judge_is_known_by_server_model_and_question_or_by_its_version():
    def named(**settings: Any) -> dict[str, Any]:
        config = {"name": "a", "backend": "http", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
        return identity(Job(RUBRIC, HttpTier.model_validate(config | settings)))

    assert named() == named(name="b", concurrency=3, timeout_seconds=1)
    assert named() != named(model="n")
    assert named() != named(ask="score")
    assert named() != named(base_url="http://127.0.0.1:2/v1")
    assert named(version="1") == named(version="1", base_url="http://127.0.0.1:2/v1")


def test_a_pasted_key_is_refused_and_not_repeated():
    config = {"name": "a", "backend": "http", "base_url": "http://h/v1", "model": "m"}
    with pytest.raises(ValidationError, match="is no name of a variable"):
        HttpTier.model_validate(config | {"key_variable": SECRET})
    for url in (f"http://user:{SECRET}@host/v1", f"http://host/v1?key={SECRET}"):
        with pytest.raises(ValidationError, match="holds a password or a query"):
            HttpTier.model_validate(config | {"base_url": url})
