"""Files and Batches beside the model server's own endpoints, misbehaving on purpose."""

import asyncio
import inspect
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from .openai_server import ModelServer, Reply

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Odd = Callable[[web.Request], web.StreamResponse | Awaitable[web.StreamResponse]]
Answer = Callable[[Reply], tuple[int, Reply]]


@dataclass
class Batch:
    """A batch at the server."""

    id: str
    input_file: str
    metadata: dict[str, str]
    behaviour: str
    state: str = "validating"
    looks: int = 0
    output_file: str | None = None
    error_file: str | None = None
    errors: list[dict[str, str]] = field(default_factory=list)

    @property
    def shown(self) -> Reply:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": self.input_file,
            "completion_window": "24h",
            "created_at": 1,
            "status": self.state,
            "output_file_id": self.output_file,
            "error_file_id": self.error_file,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "metadata": self.metadata,
        }


class BatchServer(ModelServer):
    """A model server with Files and Batches.

    Args:
        behaviours: what the first, second, ... batch does; the last one's is that of all further
            ones. `well`, `half fails`, `expires`, `invalid`, `too much`, `twice`, `stays`.
        bad_looks: how many times looking at a batch is answered with 500.
        odd: by step (`probe`, `upload`, `create`, `look`, `content`), what it answers instead.
        answer: gives the reply to a line's body; by default this server's own arithmetic.
    """

    def __init__(
        self,
        *behaviours: str,
        bad_looks: int = 0,
        answer: Answer | None = None,
        odd: dict[str, Odd] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.behaviours = behaviours or ("well",)
        self.bad_looks = bad_looks
        self.answer = answer or (lambda body: self.reply(body, f"Bearer {self.key}")[:2])
        self.odd = odd or {}
        self.files: dict[str, bytes] = {}
        self._numbers = itertools.count(1)
        self.batches: dict[str, Batch] = {}
        self.deleted: list[str] = []
        self.lines: list[int] = []
        """How many lines each batch had."""
        self.custom_ids: list[str] = []
        self.routes = [
            web.post("/v1/files", self._step("upload", self._upload)),
            web.delete("/v1/files/{id}", self._delete),
            web.get("/v1/files/{id}/content", self._step("content", self._content)),
            web.post("/v1/batches", self._step("create", self._create)),
            web.get("/v1/batches", self._list),
            web.get("/v1/batches/{id}", self._step("look", self._look)),
            web.post("/v1/batches/{id}/cancel", self._cancel),
        ]

    def _step(self, name: str, well: Handler) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            odd = self.odd.get(name)
            if odd is None:
                return await well(request)
            answered = odd(request)
            return await answered if inspect.isawaitable(answered) else answered

        return answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        return await self._step("probe", super()._answer)(request)

    async def _upload(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        form = await request.post()
        upload = form["file"]
        assert isinstance(upload, web.FileField)
        assert form["purpose"] == "batch"
        return web.json_response(self._file(upload.file.read()))

    def _file(self, content: bytes) -> Reply:
        number = f"file-{next(self._numbers)}"
        self.files[number] = content
        return {
            "id": number, "object": "file", "bytes": len(content), "created_at": 1,
            "filename": "x.jsonl", "purpose": "batch", "status": "processed",
        }  # fmt: skip

    async def _delete(self, request: web.Request) -> web.Response:
        number = request.match_info["id"]
        self.files.pop(number, None)
        self.deleted.append(number)
        return web.json_response({"id": number, "object": "file", "deleted": True})

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        behaviour = self.behaviours[min(len(self.lines), len(self.behaviours) - 1)]
        batch = Batch(
            f"batch-{len(self.lines) + 1}",
            body["input_file_id"],
            body.get("metadata") or {},
            behaviour,
        )
        self.batches[batch.id] = batch
        lines = self.files[batch.input_file].splitlines()
        self.lines.append(len(lines))
        self.custom_ids += [json.loads(line)["custom_id"] for line in lines]
        return web.json_response(batch.shown)

    async def _list(self, _request: web.Request) -> web.Response:
        newest = [batch.shown for batch in reversed(self.batches.values())]
        return web.json_response({"object": "list", "data": newest, "has_more": False})

    async def _look(self, request: web.Request) -> web.Response:
        if self.bad_looks:
            self.bad_looks -= 1
            return web.json_response({"error": {"message": "internal"}}, status=500)
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return web.json_response({"error": {"message": "No such batch"}}, status=404)
        batch.looks += 1
        if batch.looks >= 2 and batch.state in ("validating", "in_progress"):
            # In a thread: the lines may be answered by a real model, elsewhere.
            await asyncio.to_thread(self._work, batch)
        elif batch.state == "validating":
            batch.state = "in_progress"
        return web.json_response(batch.shown)

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        lines = self.files[batch.input_file].splitlines()
        batch.output_file = self._file(b"".join(map(self._answered, lines[: len(lines) // 4])))[
            "id"
        ]
        batch.state = "cancelled"
        return web.json_response(batch.shown)

    def _work(self, batch: Batch) -> None:
        lines = self.files[batch.input_file].splitlines()
        random.Random(len(lines)).shuffle(lines)  # noqa: S311
        half = len(lines) // 2
        match batch.behaviour:
            case "stays":
                batch.state = "in_progress"
                return
            case "invalid" | "too much":
                codes = {"invalid": "invalid_json_line", "too much": "token_limit_exceeded"}
                batch.errors = [{"code": codes[batch.behaviour], "message": "not taken"}]
                batch.state = "failed"
                return
            case "expires":
                answers, errors = lines[:half], lines[half:]
                batch.state = "expired"
            case "half fails":
                answers, errors = lines[:half], lines[half:]
                batch.state = "completed"
            case _:
                answers, errors = lines, []
                batch.state = "completed"
        output = [self._answered(line) for line in answers]
        if batch.behaviour == "twice":
            output += output[::2]
        batch.output_file = self._file(b"".join(output))["id"]
        if errors:
            batch.error_file = self._file(b"".join(map(_failed, errors)))["id"]

    def _answered(self, line: bytes) -> bytes:
        asked = json.loads(line)
        status, reply = self.answer(asked["body"])
        response = {"status_code": status, "request_id": "r", "body": reply}
        done = {"id": "b", "custom_id": asked["custom_id"], "response": response, "error": None}
        return json.dumps(done).encode() + b"\n"


def _failed(line: bytes) -> bytes:
    asked = json.loads(line)
    response = {"status_code": 500, "body": {"error": {"message": "internal"}}}
    error = {"code": "batch_expired", "message": "This request could not be executed in time."}
    failed = {"id": "b", "custom_id": asked["custom_id"], "response": response, "error": error}
    return json.dumps(failed).encode() + b"\n"
