"""What libcurl does for us: connections that end, TLS, HTTP/2, proxies, signals."""

import datetime
import ipaddress
import json
import select
import signal
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

from tiers.types import Candidate, Judgement, TierError

from .openai_server import NUMBER, ModelServer
from .test_http import all_right, candidates, judged, tier

HOST = "model.test"
"""A name that only a proxy knows."""


class Wire:
    """Accepts connections and has each one spoken to by `speak(server, connection)` in a thread."""

    def __init__(self, speak: Callable[["Wire", Any], None], tls: ssl.SSLContext | None = None):
        self._speak, self._tls = speak, tls
        self.connections = 0
        self.said: Counter[str] = Counter()
        self.model = ModelServer()

    def __enter__(self) -> "Wire":
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Any) -> None:
        with suppress(OSError), closing(connection):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with closing(connection):
                self._speak(self, connection)

    def answer(self, body: bytes) -> bytes:
        return json.dumps(self.model.reply(json.loads(body), None)[1]).encode()


def requests(connection: Any) -> Iterator[bytes]:
    """The bodies of the requests that come over a connection."""
    with connection.makefile("rb") as stream:
        while stream.readline():
            headers = dict(line.decode().lower().split(": ", 1) for line in _head(stream))
            yield stream.read(int(headers["content-length"]))


def _head(stream: Any) -> Iterator[bytes]:
    while line := stream.readline().rstrip():
        yield line


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("reads_the_next", [False, True])
def test_a_connection_that_the_server_closes_between_requests_costs_no_attempt(reads_the_next):
    def speak(server: Wire, connection: Any) -> None:
        bodies = requests(connection)
        connection.sendall(whole(server.answer(next(bodies))))
        if reads_the_next:
            next(bodies, None)

    with Wire(speak) as server:
        assert all_right(judged(tier(server, retries=0, concurrency=1), 20))
        assert server.connections == 20


def test_a_connection_is_used_again():
    def speak(server: Wire, connection: Any) -> None:
        for body in requests(connection):
            connection.sendall(whole(server.answer(body)))

    with Wire(speak) as server:
        assert all_right(judged(tier(server, concurrency=2), 100))
        assert server.connections <= 2


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_a_reply_that_ends_with_the_connection_is_read(version):
    def speak(server: Wire, connection: Any) -> None:
        body = server.answer(next(requests(connection)))
        connection.sendall(version + b" 200 OK\r\nConnection: close\r\n\r\n" + body)

    with Wire(speak) as server:
        assert all_right(judged(tier(server, retries=0), 20))


def test_a_reply_that_ends_too_early_is_asked_for_again():
    def speak(server: Wire, connection: Any) -> None:
        for body in requests(connection):
            reply = server.answer(body)
            number = int(NUMBER.search(body.decode())[1])  # type: ignore[index]
            if number % 3 == 0 and server.model.asked[number] == 1:
                connection.sendall(whole(reply)[:-20])
                return
            connection.sendall(whole(reply))

    with Wire(speak) as server:
        assert all_right(judged(tier(server, retries=1), 20))
        assert server.model.asked == {n: 1 + (n % 3 == 0) for n in range(20)}


def test_what_is_no_http_is_told():
    def speak(_: Wire, connection: Any) -> None:
        next(requests(connection))
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    with Wire(speak) as server:
        opened = tier(server, patience_seconds=1, timeout_seconds=0.5)
        with pytest.raises(TierError, match=r"the last was: the connection broke: .*HTTP/0\.9"):
            judged(opened, 3)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A key and a certificate that it signed itself, for this machine and `HOST`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tamis test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(pem) + secret)
    return path


def spoken_by(certificate: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(list(protocols))
    return context


@pytest.fixture
def trusted(certificate, monkeypatch) -> Path:
    from tiers.backends.openai import client

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    client._authorities.cache_clear()
    yield certificate
    client._authorities.cache_clear()


def over_http2(server: Wire, connection: Any) -> None:
    server.said[str(connection.selected_alpn_protocol())] += 1
    http2 = H2Connection(H2Configuration(client_side=False))
    http2.initiate_connection()
    connection.sendall(http2.data_to_send())
    bodies: dict[int, bytes] = {}
    while data := connection.recv(1 << 16):
        for event in http2.receive_data(data):
            if isinstance(event, DataReceived):
                stream = event.stream_id
                bodies[stream] = bodies.get(stream, b"") + event.data
                http2.acknowledge_received_data(event.flow_controlled_length, stream)
            if isinstance(event, StreamEnded):
                server.said["streams"] += 1
                http2.send_headers(event.stream_id, [(":status", "200")])
                reply = server.answer(bodies.pop(event.stream_id))
                http2.send_data(event.stream_id, reply, end_stream=True)
        connection.sendall(http2.data_to_send())


def over_http1(server: Wire, connection: Any) -> None:
    for body in requests(connection):
        server.said[str(connection.selected_alpn_protocol())] += 1
        connection.sendall(whole(server.answer(body)))


def test_a_server_that_speaks_http2_is_asked_over_few_connections(trusted):
    with Wire(over_http2, spoken_by(trusted, "h2", "http/1.1")) as server:
        assert all_right(judged(tier(server), 200))
        assert server.said["streams"] == 200
        assert server.said["h2"] == server.connections < 8


def test_a_server_with_tls_and_http1_is_asked(trusted):
    with Wire(over_http1, spoken_by(trusted, "http/1.1")) as server:
        assert all_right(judged(tier(server), 50))
        assert server.said["http/1.1"] == 50


def test_a_certificate_that_nobody_knows_is_told_with_what_to_set(certificate):
    with Wire(over_http1, spoken_by(certificate, "http/1.1")) as server:
        with pytest.raises(TierError, match=r"certificate is not trusted.*set SSL_CERT_FILE to a"):
            judged(tier(server), 5)
        assert not server.said


def test_an_address_with_a_bad_certificate_leaves_its_candidates_to_the_others(certificate):
    with Wire(over_http1, spoken_by(certificate, "http/1.1")) as bad, ModelServer() as good:
        opened = tier(bad, good)
        assert all_right(judged(opened, 30))
    assert f"{bad.url} is set aside: its certificate is not trusted" in opened.remarks[0]


def proxy(server: Wire, connection: Any) -> None:
    """Opens tunnels, all of them to the one server that it knows."""
    with connection.makefile("rb") as stream:
        asked = stream.readline().decode()
        server.said[asked.split(" HTTP")[0]] += 1
        assert not any(b"Authorization" in line for line in _head(stream))
    connection.sendall(b"HTTP/1.1 200 Connection established\r\nRetry-After: 99\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.behind)) as there:  # type: ignore[attr-defined]
        while True:
            for one in select.select([connection, there], [], [])[0]:
                if not (data := one.recv(1 << 16)):
                    return
                (there if one is connection else connection).sendall(data)


@pytest.fixture
def no_proxies(monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


def test_a_server_is_asked_through_the_proxy_of_the_environment(trusted, no_proxies, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret-4711")
    monkeypatch.setenv("TAMIS_TRUSTED_HOSTS", f"MY_KEY@{HOST}")
    with Wire(over_http1, spoken_by(trusted, "http/1.1")) as server, Wire(proxy) as between:
        between.behind = server.port  # type: ignore[attr-defined]
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{between.port}")
        opened = tier(server, base_url=f"https://{HOST}:{server.port}/v1", key_variable="MY_KEY")
        assert all_right(judged(opened, 30))
        assert set(between.said) == {f"CONNECT {HOST}:{server.port}"}
        assert server.said["http/1.1"] == 30


def test_a_server_on_this_machine_is_asked_without_a_proxy(no_proxies, monkeypatch):
    with Wire(proxy) as between, ModelServer() as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{between.port}")
        assert all_right(judged(tier(server), 10))
        assert not between.said


def test_a_proxy_that_refuses_is_told(no_proxies, monkeypatch):
    def refuse(_: Wire, connection: Any) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with Wire(refuse) as between:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{between.port}")
        opened = tier(base_url=f"https://{HOST}/v1", patience_seconds=0.5)
        with pytest.raises(TierError, match=r"cannot be reached: .*403"):
            judged(opened, 3)


def test_a_signal_ends_judging_at_once_and_what_was_judged_is_handed_out_first():
    main = threading.main_thread().ident
    with ModelServer(fault=lambda number, _: "hang" if number > 20 else None) as server:
        opened = tier(server, timeout_seconds=30)
        timer = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        found: list[Judgement] = []
        with pytest.raises(KeyboardInterrupt):
            found.extend(opened.judge(candidates(100)))
        opened.close()
    assert len(found) == 21


def test_a_source_that_breaks_is_told_after_what_was_judged():
    def broken() -> Iterator[Any]:
        yield from candidates(30)
        yield Candidate(99, " ")  # judged without a server, and not handed out yet
        raise OSError("the disk is gone")

    with ModelServer() as server:
        opened = tier(server, concurrency=1)
        found: list[Judgement] = []
        with pytest.raises(OSError, match="the disk is gone"):
            found.extend(opened.judge(broken()))
        opened.close()
    assert found[-1].id == 99
    assert len(found) >= 30
