"""A chat server that costs next to nothing, for measuring its clients: `python -m bench.http_server`.

Raw bytes on uvloop: a few microseconds a request. It answers yes to every third number, with the
log-probabilities of five tokens, and counts what it is asked.
"""

import argparse
import asyncio
import os
import re
import sys
from typing import Any

import uvloop

NUMBER = re.compile(rb"text number (\d+)")
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def _reply(word: str, likely: dict[str, float]) -> bytes:
    top = ",".join(f'{{"token":"{t}","logprob":{p},"bytes":null}}' for t, p in likely.items())
    first = f'{{"token":"{word}","logprob":{likely[word]},"bytes":null,"top_logprobs":[{top}]}}'
    body = (
        '{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
        f'"message":{{"role":"assistant","content":"{word}"}},"logprobs":{{"content":[{first}]}},'
        '"finish_reason":"stop"}],"usage":{"prompt_tokens":180,"completion_tokens":1,'
        '"total_tokens":181}}'
    )
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


def _choice(number: int, index: int) -> str:
    """One of several answers to `/v1/completions`."""
    word, likely = ("yes", LIKELY_YES) if number % 3 == 0 else ("no", LIKELY_NO)
    top = ",".join(f'"{token}":{logprob}' for token, logprob in likely.items())
    logprobs = f'{{"tokens":["{word}"],"top_logprobs":[{{{top}}}]}}'
    return f'{{"index":{index},"text":"{word}","logprobs":{logprobs},"finish_reason":"stop"}}'


def _completion(request: bytes) -> bytes:
    """The answers to all prompts of a request."""
    numbers = [int(found) for found in NUMBER.findall(request)]
    choices = ",".join(_choice(number, index) for index, number in enumerate(numbers))
    usage = f'{{"prompt_tokens":{180 * len(numbers)},"completion_tokens":{len(numbers)}}}'
    body = f'{{"id":"cmpl-1","model":"m","choices":[{choices}],"usage":{usage}}}'
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


LIKELY_YES = {"yes": -0.1, "no": -2.5, "Yes": -5.0, "No": -6.0, "I": -8.0}
LIKELY_NO = {"no": -0.1, "yes": -2.5, "No": -5.0, "Yes": -6.0, "I": -8.0}
YES, NO = _reply("yes", LIKELY_YES), _reply("no", LIKELY_NO)


class Protocol(asyncio.Protocol):
    """One connection."""

    asked = 0
    count: int | None = None
    """A file that grows by a byte for every request, and outlives the process."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._buffer, 0, end)
            total = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < total:
                return
            request, self._buffer = self._buffer[:total], self._buffer[total:]
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET"):
            body = str(Protocol.asked).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            self._transport.write(head + body)
            return
        Protocol.asked += 1
        if Protocol.count is not None:
            os.write(Protocol.count, b".")
        if request.startswith(b"POST /v1/completions"):
            reply = _completion(request)
        else:
            number = NUMBER.search(request)
            reply = YES if number and int(number[1]) % 3 == 0 else NO
        if self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._transport.write, reply)
        else:
            self._transport.write(reply)


async def serve(delay: float, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Protocol(delay), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until the bench is gone


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    arguments.add_argument("--port", type=int, default=0, help="one that is free by default")
    arguments.add_argument("--count", help="a file that grows by a byte for every request")
    chosen = arguments.parse_args()
    if chosen.count:
        Protocol.count = os.open(chosen.count, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    uvloop.run(serve(chosen.delay, chosen.port))
