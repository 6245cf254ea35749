"""Requests under way, by libcurl: bytes out, bytes in. Knows neither addresses nor models.

One loop adds requests, waits, and takes what has ended: there is no event loop, and signals arrive
between two steps. Every callback that libcurl gets is a function written in C: an exception that
a signal raises in one of Python's would be lost there.
"""

import ssl
import time
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import certifi
import pycurl

from tiers.backends.openai.account import is_this_machine, shown
from tiers.backends.openai.errors import Failure, Unfit
from tiers.types import TierError

OLDEST = 0x080400
"""Of libcurl: before 8.4, a reply that does not tell its length is not bounded."""
CONNECT_SECONDS = 10
IDLE_SECONDS = 60
"""How long a connection may be idle and still be used again."""
BREATH_SECONDS = 0.005
"""How long to wait where there is no socket to wait for, such as while a name is looked up."""
SELECTABLE = 900
"""With more requests under way, some sockets have numbers that select(2) cannot see."""

UNREACHABLE = frozenset(
    {
        pycurl.E_COULDNT_RESOLVE_PROXY,
        pycurl.E_COULDNT_RESOLVE_HOST,
        pycurl.E_COULDNT_CONNECT,
        pycurl.E_SSL_CONNECT_ERROR,
        97,  # CURLE_PROXY, which pycurl does not name
    }
)
UNTRUSTED = frozenset({pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE})


class Reply(NamedTuple):
    """What came back."""

    status: int
    """Of HTTP."""
    raw: bytes
    """The body as it was sent, perhaps packed; nothing that goes beyond the longest."""
    lines: Sequence[bytes]
    """The header lines, those of a proxy before them."""
    too_long: bool = False
    """Whether the body was broken off, because it is longer than allowed."""

    def header(self, name: str) -> str | None:
        """The server's last header of this name; None where there is none."""
        wanted = f"{name.lower()}:".encode()
        for line in reversed(self.lines):
            if line.lower().startswith(wanted):
                return line[len(wanted) :].decode("latin-1").strip()
            if line.startswith(b"HTTP/"):
                break
        return None


Ended = Reply | Failure | Unfit


class Client:
    """Requests under way to any number of addresses, all with the same headers and limits.

    Args:
        key: sent along as a bearer's token; None for none.
        most_bytes: of a body; the rest of a longer one is not read.
        timeout_seconds: for a whole reply, however slowly it drips.

    Raises:
        TierError: libcurl is too old.
    """

    def __init__(self, key: str | None, *, most_bytes: int, timeout_seconds: float) -> None:
        if pycurl.version_info()[2] < OLDEST:
            raise TierError(
                f"libcurl {pycurl.version_info()[1]} is too old, and does not bound what a server "
                "sends; run: pip install --force-reinstall --only-binary pycurl pycurl"
            )
        headers = ["Content-Type: application/json", "Accept: application/json"]
        # A reply of a few kB can become gigabytes: it is unpacked by us, within bounds.
        headers += ["Accept-Encoding: identity", "Expect:"]
        if key is not None:
            headers.append(f"Authorization: Bearer {key}")
        self._options: dict[int, Any] = {
            pycurl.POST: 1,
            pycurl.NOSIGNAL: 1,
            pycurl.HTTPHEADER: headers,
            pycurl.CONNECTTIMEOUT: CONNECT_SECONDS,
            pycurl.TIMEOUT_MS: max(int(timeout_seconds * 1000), 1),
            pycurl.MAXFILESIZE_LARGE: most_bytes,
            pycurl.MAXAGE_CONN: IDLE_SECONDS,
        }
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._multi = pycurl.CurlMulti()
        self._idle: dict[str, list[Any]] = {}
        """Handles of requests that are over: all but the body is set, so that it need not be."""
        self._busy: set[Any] = set()

    @property
    def under_way(self) -> int:
        return len(self._busy)

    def begin(self, url: str, body: bytes, tag: Any) -> None:
        """Send a request; `wait` gives its end with this tag."""
        idle = self._idle.get(url)
        handle = idle.pop() if idle else self._handle(url)
        handle.tag = tag
        handle.setopt(pycurl.POSTFIELDS, body)
        self._busy.add(handle)
        self._multi.add_handle(handle)

    def wait(self, seconds: float) -> list[tuple[Any, Ended]]:
        """The requests that are over, each with its tag; none after so many seconds."""
        multi, over = self._multi, time.monotonic() + seconds
        while True:
            multi.perform()
            if ended := self._ended():
                return ended
            left = over - time.monotonic()
            if left <= 0:
                return []
            self._sleep(left)

    def ask(self, url: str, body: bytes) -> Reply:
        """Send one request while no other is under way, and wait for its reply.

        Raises:
            Failure: there is none.
            Unfit: the server cannot be trusted.
        """
        self.begin(url, body, None)
        while not (ended := self.wait(1.0)):
            pass
        reply = ended[0][1]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def drop(self) -> None:
        """Break off all that is under way."""
        for handle in self._busy:
            self._multi.remove_handle(handle)
            handle.close()
        self._busy.clear()

    def close(self) -> None:
        self.drop()
        for handles in self._idle.values():
            for handle in handles:
                handle.close()
        self._idle.clear()
        self._multi.close()

    def _handle(self, url: str) -> Any:
        handle: Any = pycurl.Curl()
        parts = urlsplit(url)
        for option, value in self._options.items():
            handle.setopt(option, value)
        handle.setopt(pycurl.URL, url)
        if parts.scheme == "https":
            for option, path in _authorities():
                handle.setopt(option, path)
        if is_this_machine(parts):
            handle.setopt(pycurl.PROXY, "")  # a proxy would look for the server on itself
        handle.url, handle.pieces, handle.lines = url, [], []
        handle.setopt(pycurl.WRITEFUNCTION, handle.pieces.append)
        handle.setopt(pycurl.HEADERFUNCTION, handle.lines.append)
        return handle

    def _sleep(self, seconds: float) -> None:
        """Until a socket has something, or curl has something to do at this time."""
        due = self._multi.timeout()
        if due >= 0:
            seconds = min(seconds, due / 1000)
        if len(self._busy) > SELECTABLE:
            seconds = min(seconds, BREATH_SECONDS)
        if not self._busy:
            time.sleep(seconds)
            return
        began = time.monotonic()
        if not self._multi.select(seconds):
            left = began + seconds - time.monotonic()
            if left > 0:  # it came back at once: there is no socket yet
                time.sleep(min(left, BREATH_SECONDS))

    def _ended(self) -> list[tuple[Any, Ended]]:
        _, good, bad = self._multi.info_read()
        ended: list[tuple[Any, Ended]] = [(one.tag, self._reply(one)) for one in good]
        ended += [(one.tag, self._fault(one, code, said)) for one, code, said in bad]
        for handle in (*good, *(one for one, _, _ in bad)):
            self._free(handle)
        return ended

    def _free(self, handle: Any) -> None:
        """Make a handle ready for the next request to its address."""
        self._busy.discard(handle)
        self._multi.remove_handle(handle)
        handle.pieces.clear()
        handle.lines.clear()
        self._idle.setdefault(handle.url, []).append(handle)

    @staticmethod
    def _reply(handle: Any, *, too_long: bool = False) -> Reply:
        pieces = handle.pieces
        raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return Reply(handle.getinfo(pycurl.RESPONSE_CODE), raw, tuple(handle.lines), too_long)

    def _fault(self, handle: Any, code: int, said: str) -> Ended:
        """What an error of libcurl means."""
        said = shown(said, self._key) or f"error {code} of libcurl"
        if code == pycurl.E_FILESIZE_EXCEEDED:
            return self._reply(handle, too_long=True)
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return Failure(f"no answer within {self._timeout_seconds:g} s", slow=True)
        if code in UNTRUSTED:
            return Unfit(
                f"its certificate is not trusted ({said}); if it is the right server, set "
                "SSL_CERT_FILE to a file with the certificate of its authority (PEM)"
            )
        if code in UNREACHABLE or handle.getinfo(pycurl.HTTP_CONNECTCODE) >= 400:  # of a proxy
            return Failure(f"{handle.url} cannot be reached: {said}", counts=False)
        return Failure(f"the connection broke: {said}")


@cache
def _authorities() -> list[tuple[int, str]]:
    """Whose certificates are trusted: SSL_CERT_FILE's or the system's, as Python has it.

    libcurl itself knows the paths of the machine on which it was built.
    """
    system = ssl.get_default_verify_paths()
    found = [(pycurl.CAINFO, system.cafile or certifi.where())]
    return found + [(pycurl.CAPATH, system.capath)] * bool(system.capath)


def unpacked(reply: Reply, most: int) -> bytes:
    """The body, unpacked; of one that is longer than `most` bytes, some bytes more than these.

    Raises:
        Failure: it is packed in a way that nobody asked for.
    """
    encoding = (reply.header("Content-Encoding") or "identity").lower()
    if encoding == "identity":
        return reply.raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Failure(
            f"the reply is packed as '{encoding[:40]}', which nobody asked for", lasting=True
        )
    # Of gzip, or of deflate with its header or without, as servers do it.
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        try:
            return zlib.decompressobj(window).decompress(reply.raw, most + 1)
        except zlib.error as error:
            fault = error
    raise Failure(f"the reply cannot be unpacked: {fault}")
