"""Servers that are wrong in ways of their own: nothing is lost, and nobody waits for them."""

import asyncio
import gzip
import threading
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from tiers.backends.openai.chat import Dialect
from tiers.types import Judgement, TierError

from .openai_server import ModelServer
from .test_http import all_right, candidates, judged, tier


class Odd(ModelServer):
    """A server whose chat replies are made by `answer(number of the request, body)`."""

    def __init__(self, answer: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self._odd = answer
        self.count = 0

    def reply(self, body: Any, authorization: str | None) -> Any:
        self.count += 1
        status, reply, headers = super().reply(body, authorization)
        return self._odd(self.count, body, reply) or (status, reply, headers)


def refuse(status: int, message: str) -> Any:
    return lambda *_: (status, {"error": {"message": message}}, {})


@pytest.mark.parametrize("bad_one_first", [True, False])
@pytest.mark.parametrize("fault", ["hang", "429", "500", "no probabilities", "refuses"])
def test_one_bad_address_stops_nobody(fault, bad_one_first):
    settings: dict[str, Any] = {
        "hang": {"fault": lambda *_: "hang"},
        "no probabilities": {"top": 0},
        "refuses": {"refuses": ("top_logprobs",)},
    }.get(fault, {})
    bad = ModelServer(**settings)
    if fault.isdigit():
        bad = Odd(refuse(int(fault), "no capacity"))
    with bad, ModelServer(latency=0.01) as good:
        both = (bad, good) if bad_one_first else (good, bad)
        opened = tier(*both, timeout_seconds=1.5, patience_seconds=30, retries=2)
        found = judged(opened, 200)
        assert all_right(found)
        gives_less = fault in ("no probabilities", "refuses")
        # What the first address gives is asked of all: then both answer.
        assert sum(good.asked.values()) >= (1 if gives_less and bad_one_first else 200)
    if gives_less and not bad_one_first:
        assert "is left out, as other addresses give more" in " ".join(opened.remarks)


def test_a_busy_server_is_asked_less_and_less_often():
    with Odd(refuse(429, "slow down")) as server:
        opened = tier(server, patience_seconds=2, timeout_seconds=1)
        with pytest.raises(TierError, match="no good answer for 2 s; the last was: 429: slow down"):
            judged(opened, 500)
        assert server.count < 12


def test_a_server_that_asks_to_wait_for_too_long_is_not_waited_for(caplog):
    def answer(number: int, *_: Any) -> Any:
        headers = {"Retry-After": "3600"}
        return (429, {"error": {"message": "tomorrow"}}, headers) if number > 40 else None

    with Odd(answer) as server:
        opened = tier(server, patience_seconds=1.5, timeout_seconds=1)
        began = time.monotonic()
        with pytest.raises(TierError, match=r"no good answer for 1\.5 s; the last was: 429"):
            judged(opened, 500)
        assert time.monotonic() - began < 10
    assert "is left alone for 3600 s: 429: tomorrow" in caplog.text


def test_refusals_that_name_both_limits_come_to_an_end():
    first = Dialect(20)
    second = first.without("use 'max_completion_tokens' instead of 'max_tokens'")
    assert second is not None
    assert second.limit == "max_completion_tokens"
    assert second.without("max_tokens or the model's limit was reached") is None


def test_a_server_that_refuses_everything_from_now_on_leaves_the_rest_waiting():
    with Odd(lambda number, *_: refuse(400, "billing")() if number > 60 else None) as server:
        opened = tier(server, concurrency=4)
        found: list[Judgement] = []
        with pytest.raises(TierError, match="refuses the request: 400: billing"):
            found.extend(opened.judge(candidates(300)))
        opened.close()
    assert len(found) == 60
    assert all(one.error is None for one in found)


def test_one_refused_candidate_is_reviewed():
    def answer(_: int, body: Any, __: Any) -> Any:
        text = body["messages"][-1]["content"]
        return refuse(400, "content policy")() if "number 7\n" in f"{text}\n" else None

    with Odd(answer) as server:
        found = judged(tier(server), 40)
    assert "content policy" in str(found[7].error)
    assert not found[7].failed
    del found[7]
    assert all_right(found)


def test_the_model_must_not_change_between_replies():
    def answer(number: int, _: Any, reply: Any) -> Any:
        return 200, {**reply, "model": "other" if number % 2 else "m"}, {}

    with Odd(answer) as server:
        opened = tier(server, concurrency=1)
        found = judged(opened, 20)
        assert server.count >= 39  # every second reply was asked for again
    assert all_right(found)
    assert "calls the model 'other', not 'm'" in opened.remarks[0]


def test_addresses_that_serve_different_models_are_told():
    def quantized(_: int, __: Any, reply: Any) -> Any:
        return 200, {**reply, "model": "m-q4"}, {}

    with ModelServer(latency=0.01) as whole, Odd(quantized, latency=0.01) as small:
        opened = tier(whole, small)
        assert all_right(judged(opened, 60))
        said = [f"{url} calls the model" for url in (whole.url, small.url)]
    assert len(opened.remarks) == 1
    assert opened.remarks[0].startswith(tuple(said))
    assert "scores of different models do not compare" in opened.remarks[0]


@pytest.mark.parametrize(
    "change",
    [
        {"message": "yes", "logprobs": None},
        {"logprobs": [1]},
        {"logprobs": {"content": [{"token": "yes", "top_logprobs": ["yes"]}]}},
        {"index": None},
        {"index": 1},
        {"index": [1]},
        {"usage": {"prompt_tokens": "abc"}},
        {"usage": {"prompt_tokens": 2**64 - 1}},
        {"usage": {"prompt_tokens": 1e300}},
        {"usage": {"prompt_tokens": 5, "prompt_tokens_details": [1]}},
    ],
)
def test_a_reply_of_another_shape_is_read_or_asked_again(change):
    def answer(number: int, _: Any, reply: Any) -> Any:
        if number not in (2, 20, 45):
            return None
        usage = change.get("usage", reply["usage"])
        choice = {**reply["choices"][0], **change}
        return 200, {**reply, "choices": [choice], "usage": usage}, {}

    with Odd(answer) as server:
        assert all_right(judged(tier(server), 60))


@pytest.mark.parametrize("reply", [{"error": {"message": "who are you"}}, {"choices": 5}, {}])
def test_a_server_of_something_else_is_told_within_seconds(reply):
    with Odd(lambda *_: (200, reply, {})) as server:
        opened = tier(server, patience_seconds=1, timeout_seconds=0.5)
        with pytest.raises(TierError, match=r"the reply holds no choices: (who are you|{)"):
            judged(opened, 20)


def test_tokens_of_replies_that_were_thrown_away_are_counted():
    def answer(number: int, _: Any, reply: Any) -> Any:
        return (200, {**reply, "model": "another"}, {}) if number == 3 else None

    with Odd(answer) as server:
        found = judged(tier(server, concurrency=1), 10)
        charged = sum(len(body["messages"][0]["content"]) // 4 for body in server.bodies)
    assert sum(one.prompt_tokens for one in found.values()) == charged


def test_judging_can_be_ended_from_another_thread():
    with ModelServer(fault=lambda number, _: "hang" if number > 20 else None) as server:
        opened = tier(server, timeout_seconds=30)
        timer = threading.Timer(1.0, opened.interrupt)
        timer.start()
        began = time.monotonic()
        found = list(opened.judge(candidates(100)))
        assert time.monotonic() - began < 8
        opened.close()
    assert len(found) == 21


def test_what_tamis_writes_itself_cannot_be_written_in_extra():
    with pytest.raises(ValidationError, match="'model' is written by Tamis; leave it out of extra"):
        tier(extra={"model": "x"})


def test_a_prompt_with_quotes_and_brackets_stays_json():
    with ModelServer() as server:
        prompt = 'Rubric: {{ rubric }}\nRecord: ["{{ candidate }}"], yes or no?'
        assert all_right(judged(tier(server, api="completions", prompt=prompt), 40))
        assert server.bodies[-1]["prompt"][0].count('["text number') == 1


def test_a_vllm_server_whose_tokenizer_answers_oddly_is_read_by_its_lists():
    async def tokens(_: web.Request) -> web.Response:
        return web.json_response([1, 2])

    server = ModelServer()
    server.routes = [web.post("/tokenize", tokens)]
    with server:
        assert all_right(judged(tier(server, profile="vllm"), 20))


class Raw(ModelServer):
    """A server whose chat replies are written byte by byte by `answer(request)`."""

    def __init__(self, answer: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self._raw = answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.paths[request.path] += 1
        found: web.StreamResponse = await self._raw(request)
        return found


def packed(encoding: str, body: bytes) -> Any:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    return answer


async def endless(request: web.Request, status: int = 200) -> web.StreamResponse:
    response = web.StreamResponse(status=status)
    response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" " * 65_536)
    except (ConnectionError, asyncio.CancelledError):
        return response


async def huge(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(400 << 20)})
    await response.prepare(request)
    try:
        for _ in range(400 << 4):
            await response.write(b" " * 65_536)
    except (ConnectionError, asyncio.CancelledError):
        pass
    return response


BOMB = packed("gzip", gzip.compress(bytes(300 << 20)))
DEFLATE_BOMB = packed("deflate", zlib.compress(bytes(300 << 20)))


@pytest.mark.parametrize(
    "answer", [endless, huge, BOMB, DEFLATE_BOMB], ids=["endless", "huge", "gzip", "deflate"]
)
def test_a_reply_without_bounds_sets_its_address_aside_and_nobody_is_judged(answer):
    with Raw(answer) as server:
        opened = tier(server, timeout_seconds=20)
        found: list[Judgement] = []
        tracemalloc.start()
        try:
            with pytest.raises(TierError, match=r"is set aside.*longer than 4,202,496 bytes"):
                found.extend(opened.judge(candidates(3)))
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
        finally:
            tracemalloc.stop()
            opened.close()
        assert server.paths.total() == 1
    assert found == []


def test_an_address_that_is_set_aside_leaves_its_candidates_to_the_others():
    with Raw(endless) as bad, ModelServer() as good:
        opened = tier(bad, good)
        assert all_right(judged(opened, 100))
        assert bad.paths.total() == 1
    assert f"{bad.url} is set aside: its reply is longer" in opened.remarks[0]


def test_an_error_without_an_end_is_told_by_its_beginning():
    async def answer(request: web.Request) -> web.StreamResponse:
        return await endless(request, 404)

    with Raw(answer) as server, pytest.raises(TierError, match="answers 404: no words"):
        judged(tier(server), 3)


def test_a_reply_that_drips_is_given_up_at_the_time_out():
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(300):
                await response.write(b" ")
                await asyncio.sleep(0.1)
        except (ConnectionError, asyncio.CancelledError):
            pass
        return response

    with Raw(drip) as server:
        opened = tier(server, timeout_seconds=0.5, patience_seconds=1)
        with pytest.raises(TierError, match=r"the last was: no answer within 0\.5 s"):
            judged(opened, 3)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate", "identity"])
def test_a_reply_that_is_packed_unasked_is_read(encoding):
    async def pack(request: web.Request) -> web.Response:
        reply = await ModelServer._answer(server, request)
        assert isinstance(reply, web.Response)
        assert request.headers["Accept-Encoding"] == "identity"
        body = bytes(reply.body)  # type: ignore[arg-type]
        raw = zlib.compressobj(wbits=-15)
        done = {
            "gzip": gzip.compress,
            "deflate": zlib.compress,
            "raw deflate": lambda text: raw.compress(text) + raw.flush(),
        }.get(encoding, bytes)(body)
        return web.Response(body=done, headers={"Content-Encoding": encoding.split()[-1]})

    server = Raw(pack)
    with server:
        assert all_right(judged(tier(server), 20))


def test_a_reply_packed_otherwise_is_told():
    with Raw(packed("br", b"x")) as server:
        opened = tier(server, patience_seconds=1, timeout_seconds=0.5)
        with pytest.raises(TierError, match="packed as 'br', which nobody asked for"):
            judged(opened, 3)


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("number", [2**64 - 1, 1e300, -5])
def test_answers_are_kept_whose_tokens_cannot_be_counted_and_that_is_noted(api, number):
    def answer(_: int, __: Any, reply: Any) -> Any:
        return 200, {**reply, "usage": {"prompt_tokens": 10, "completion_tokens": number}}, {}

    with Odd(answer) as server:
        found = judged(tier(server, api=api), 40)
    assert all_right(found)
    assert {(one.prompt_tokens, one.completion_tokens) for one in found.values()} == {(0, 0)}
    assert all("tokens are not counted" in str(one.note) for one in found.values())


def test_tokens_are_not_counted_where_one_attempt_tells_what_cannot_be():
    def answer(number: int, _: Any, reply: Any) -> Any:
        if number == 3:
            return 200, {**reply, "model": "another", "usage": {"prompt_tokens": -1}}, {}
        return None

    with Odd(answer) as server:
        found = judged(tier(server, concurrency=1), 10)
    assert all_right(found)
    assert sorted(one.prompt_tokens > 0 for one in found.values()) == [False] + [True] * 9


def test_a_list_of_probabilities_that_cannot_be_is_no_verdict():
    def answer(_: int, body: Any, reply: Any) -> Any:
        if "text number 7\n" not in body["messages"][-1]["content"]:
            return None
        best = [{"token": word, "logprob": 0.5} for word in ("yes", "no")]
        logprobs = {"content": [{"token": "yes", "logprob": 0.5, "top_logprobs": best}]}
        return 200, {**reply, "choices": [{**reply["choices"][0], "logprobs": logprobs}]}, {}

    with Odd(answer) as server:
        found = judged(tier(server), 20)
    assert (found[7].score, found[7].error) == (None, "its probabilities add up to more than 1")
