"""A server that speaks the OpenAI protocol and misbehaves on purpose. Its verdicts are arithmetic.

A text "text number 17" is a match where 17 % 3 == 0; the odds of its answer are 9 to 1.
"""

import asyncio
import json
import math
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

NUMBER = re.compile(r"text number (\d+)")
Reply = dict[str, Any]


def is_match(number: int) -> bool:
    return number % 3 == 0


class ModelServer:
    """Answers on loopback from a thread of its own.

    Args:
        fault: called with the number asked and how often it was asked; the name of a fault, or None.
        top: how many logprobs it gives at most; 0 for a server that knows none.
    """

    def __init__(
        self,
        *,
        fault: Callable[[int, int], str | None] = lambda number, times: None,
        latency: float = 0.0,
        top: int = 20,
        key: str | None = None,
        model: str = "m",
        most_prompts: int = 128,
        refuses: tuple[str, ...] = (),
        port: int = 0,
        mass: float = 1.0,
        too_many: int = 400,
    ) -> None:
        self.fault, self.latency, self.top, self.key, self.model = fault, latency, top, key, model
        self.most_prompts, self.refuses, self.mass = most_prompts, refuses, mass
        self.too_many = too_many
        self.asked: Counter[int] = Counter()
        self.good: Counter[int] = Counter()
        self.bodies: list[Reply] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.paths: Counter[str] = Counter()
        self.routes: list[web.RouteDef] = []
        self._port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "ModelServer":
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run(started))
        self._loop.close()

    async def _run(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._answer),
                web.post("/v1/completions", self._answer),
                *self.routes,
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", self._port))
        self.port = listener.getsockname()[1]
        await web.SockSite(runner, listener).start()
        started.set()
        await self._stop.wait()
        await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.paths[request.path] += 1
        self.headers.append(dict(request.headers))
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer_one(request, body)
        finally:
            self.in_flight -= 1

    async def _answer_one(self, request: web.Request, body: Reply) -> web.StreamResponse:
        status, reply, headers = self.reply(body, request.headers.get("Authorization"))
        if self.latency:
            await asyncio.sleep(self.latency)
        match headers.pop("fault", None):
            case "reset":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "half":
                text = json.dumps(reply)
                return web.Response(text=text[: len(text) // 2], content_type="application/json")
            case "hang":
                await asyncio.sleep(30)
        return web.json_response(reply, status=status, headers=headers)

    def reply(self, body: Reply, authorization: str | None) -> tuple[int, Reply, dict[str, str]]:
        """Status, object and headers; the header `fault` names what the transport does wrong."""
        if self.key is not None and authorization != f"Bearer {self.key}":
            said = f"Incorrect API key provided: {authorization}"
            return 401, {"error": {"message": said, "code": "invalid_api_key"}}, {}
        if body["model"] != self.model:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist"}}, {}
        for setting in self.refuses:
            if setting in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{setting}'"}}, {}
        prompts = body.get("prompt") or [body["messages"][-1]["content"]]
        if len(prompts) > self.most_prompts:
            # As llama-cpp-python's server does, where 400 would be right.
            return self.too_many, {"error": {"message": "one prompt at a time"}}, {}
        numbers = [int(found[1]) if (found := NUMBER.search(text)) else -1 for text in prompts]
        kinds = []
        for number in numbers:
            kinds.append(self.fault(number, self.asked[number]))
            self.asked[number] += 1
        kind = next((each for each in kinds if each), None)
        if kind in FAULTS:
            return FAULTS[kind]
        choices = [self._choice(i, number, body, kind) for i, number in enumerate(numbers)]
        if kind is None:
            self.good.update(numbers)
        usage = {
            "prompt_tokens": sum(len(text) // 4 for text in prompts),
            "completion_tokens": len(prompts),
            "prompt_tokens_details": {"cached_tokens": 8 * len(prompts)},
        }
        model = "another" if kind == "wrong model" else self.model
        reply = {"id": "x", "model": model, "choices": choices, "usage": usage}
        return 200, reply, {"fault": kind} if kind in ("reset", "half", "hang") else {}

    def _choice(self, index: int, number: int, body: Reply, kind: str | None) -> Reply:
        yes = 0.9 if is_match(number) else 0.1
        word = "yes" if yes > 0.5 else "no"
        wants_json = "JSON" in str(body)
        if wants_json:
            content = json.dumps({"verdict": word, "confidence": 0.9, "reasons": ["so"]})
        else:
            content = word
        if kind == "no verdict":
            content = "I would rather talk about the weather."
        logprobs = self._logprobs(body, content, yes, kind) if self.top else None
        if "prompt" in body:
            if wants_json:
                content = content.removeprefix('{"verdict": "')
            return {"index": index, "text": content, "logprobs": logprobs, "finish_reason": "stop"}
        message = {"role": "assistant", "content": content}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": "stop"}

    def _logprobs(self, body: Reply, content: str, yes: float, kind: str | None) -> Reply | None:
        asked = body.get("top_logprobs") or (body.get("logprobs") if "prompt" in body else 0)
        if not asked:
            return None
        rest = 1 - self.mass
        names = ("9", " 8", "0", "1") if "one digit" in str(body) else ("yes", " Yes", "no", "NO")
        odds = (0.6 * yes, 0.4 * yes, 0.7 * (1 - yes), 0.3 * (1 - yes))
        likely = dict(zip(names, odds, strict=True))
        listed = {token: share * self.mass for token, share in likely.items()}
        if kind == "no verdict":
            listed = {"I": 0.7, "Well": 0.3}
        elif rest:
            listed["Perhaps"] = rest
        top = dict(sorted(listed.items(), key=lambda one: -one[1])[: min(int(asked), self.top)])
        top = {token: math.log(share) for token, share in top.items()}
        first = max(top, key=top.__getitem__)
        if "prompt" in body:
            return {"tokens": [first], "top_logprobs": [top]}
        best = [{"token": token, "logprob": each, "bytes": None} for token, each in top.items()]
        position = {"token": first, "logprob": top[first], "top_logprobs": best}
        if not content.startswith("{"):
            return {"content": [position]}
        lead = {"token": '{"verdict": "', "logprob": 0.0}
        lead["top_logprobs"] = [dict(lead)]
        return {"content": [lead, position]}


FAULTS: dict[str | None, tuple[int, Reply, dict[str, str]]] = {
    "500": (500, {"error": {"message": "internal"}}, {}),
    "429": (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"}),
    "400": (400, {"error": {"message": "context length exceeded"}}, {}),
    "401": (401, {"error": {"message": "key was revoked"}}, {}),
}


def one_in_a_hundred(*kinds: str, seed: int = 1) -> Callable[[int, int], str | None]:
    """Each of these faults strikes one request in a hundred."""
    chance = random.Random(seed)  # noqa: S311

    def fault(number: int, times: int) -> str | None:
        drawn = chance.random() * 100
        return kinds[int(drawn)] if drawn < len(kinds) else None

    return fault
