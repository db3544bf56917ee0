# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Requests over a real Unix socket, byte by byte."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from ovirt_imageio.common.errors import OperationCancelled
from ovirt_imageio.daemon.errors import HttpError, Overloaded
from ovirt_imageio.daemon.http.connection import Connection, Timeouts
from ovirt_imageio.daemon.http.cors import local_only
from ovirt_imageio.daemon.http.message import Request, Response, StreamedBody
from ovirt_imageio.daemon.http.router import Route, Router

SOON = 0.02


class Answer(NamedTuple):
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


class Client:
    """Raw requests on one connection, and the answers to them."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def answer(self, *, head_only: bool = False) -> Answer:
        line = self._file.readline()
        match = re.fullmatch(rb"HTTP/1\.1 (\d{3}) ([^\r\n]*)\r\n", line)
        assert match, f"no status line: {line!r}"
        headers: dict[str, str] = {}
        while True:
            field = self._file.readline()
            assert field.endswith(b"\r\n"), f"the head ends early: {field!r}"
            if field == b"\r\n":
                break
            name, _, value = field.decode("latin-1").strip().partition(": ")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        status = int(match[1])
        body = b"" if head_only or status < 200 else self._body(headers)
        return Answer(status, match[2].decode(), headers, body)

    def get(self, path: str, *fields: str, method: str = "GET", body: bytes = b"") -> Answer:
        self.send(request(method, path, *fields, body=body))
        return self.answer(head_only=method == "HEAD")

    def is_closed(self) -> bool:
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            length = int(headers["content-length"]) if "content-length" in headers else -1
            data = self._file.read(length)
            assert length in (-1, len(data)), "the body ends early"
            return data
        parts = []
        while True:
            size = int(self._file.readline(), 16)
            parts.append(self._file.read(size))
            assert self._file.readline() == b"\r\n"
            if not size:
                return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        self.sock.close()


def request(method: str, path: str, *fields: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Stream(StreamedBody):
    """Sends parts; an exception among them is raised."""

    def __init__(self, parts: list[Any], length: int | None) -> None:
        self.parts, self.length = parts, length

    def _pieces(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def send(self, connection: Connection, head: bytes) -> None:
        if self.length is None:
            await connection.chunks_out(self._pieces(), head=head)
        else:
            for part in self._pieces():
                await connection.send(head, part)
                head = b""


class App:
    """Toy handlers."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.gate = threading.Event()

    def routes(self) -> list[Route]:
        return [
            Route("/echo", {"GET": self.echo, "PUT": self.echo}),
            Route("/named/{id}/x", {"GET": self.named}),
            Route("/named/{id}", {"GET": self.named, "DELETE": self.named}),
            Route("/unread", {"PUT": self.unread, "GET": self.unread}),
            Route("/fail/{how}", {"GET": self.fail, "PUT": self.fail, "OPTIONS": self.fail}),
            Route("/stream/{how}", {"GET": self.stream}),
            Route("/worker", {"GET": self.send_by_worker, "PUT": self.receive_by_worker}),
            Route("/header", {"GET": self.header}),
            Route("/empty", {"GET": self.no_content}),
        ]

    async def echo(self, request: Request) -> Response:
        self.requests.append(request)
        return Response(200, [("X-Method", request.method)], await request.body.read(1000))

    async def named(self, request: Request) -> Response:
        return Response(200, body=request.params["id"].encode())

    async def unread(self, request: Request) -> Response:
        return Response(200, body=b"done")

    async def fail(self, request: Request) -> Response:
        how = request.params["how"]
        if how == "http":
            raise HttpError(416, "no such range", headers=[("Content-Range", "bytes */5")])
        if how == "forbidden":
            raise HttpError(403, "no ticket")
        if how == "overload":
            raise Overloaded
        if how == "cancel":
            raise OperationCancelled("secret")
        if how == "bug":
            raise KeyError("secret")
        if how.isupper():
            raise OSError(getattr(errno, how), "secret", "/path")
        raise OSError("secret /path")

    async def stream(self, request: Request) -> Response:
        parts: dict[str, tuple[list[Any], int | None]] = {
            "known": ([b"hello", b"world"], 10),
            "unknown": ([b"hello", b"", b"world"], None),
            "nothing": ([], None),
            "fails-first": ([OSError("secret")], 10),
            "fails-first-chunk": ([OSError("secret")], None),
            "fails-later": ([b"hello", OSError("secret")], 10),
            "fails-later-chunk": ([b"hello", OSError("secret")], None),
            "forgets": ([], 5),
        }
        fields = [("Content-Disposition", "attachment"), ("Content-Type", "image/raw")]
        return Response(200, fields, Stream(*parts[request.params["how"]]))

    def be_patient(self, request: Request) -> None:
        """Give the client as little time as it says itself."""
        if "patience" in request.query:
            request.connection.inactivity_timeout = float(request.query["patience"])

    async def send_by_worker(self, request: Request) -> Response:
        class Body(StreamedBody):
            length = 3 << 20

            async def send(self, connection: Connection, head: bytes) -> None:
                await connection.in_worker(fill, head=head)

        def fill(peer: Any) -> None:
            for i in range(3):
                peer.send_all(bytes([i]) * (1 << 20))

        self.be_patient(request)
        return Response(200, body=Body())

    async def receive_by_worker(self, request: Request) -> Response:
        def receive(peer: Any) -> bytes:
            data = [peer.take(5)]
            view = memoryview(bytearray(1000))
            left = request.body.length
            while left is None or len(b"".join(data)) < left:
                n = peer.recv_into(view)
                if not n:
                    break
                data.append(bytes(view[:n]))
            return b"".join(data)

        self.be_patient(request)
        data = await request.connection.in_worker(receive, body=request.body)
        return Response(200, body=b"%d %d" % (len(data), sum(data)))

    async def header(self, request: Request) -> Response:
        return Response(200, [("X-Name", request.query["value"])])

    async def no_content(self, request: Request) -> Response:
        return Response(204)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def router(app: App) -> Router:
    return Router(app.routes(), name="test", server="imageio/3", cors=True)


@pytest.fixture
def client(start: Any, router: Router) -> Iterator[Client]:
    client = Client(start(router).connect())
    yield client
    client.close()


# Heads and bodies.


def test_response_head(client: Client) -> None:
    answer = client.get("/echo")
    assert (answer.status, answer.reason, answer.body) == (200, "OK", b"")
    date = answer.headers.pop("date")
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
    assert answer.headers == {"server": "imageio/3", "x-method": "GET", "content-length": "0"}


def test_body_is_read_and_the_connection_kept(client: Client) -> None:
    for _ in range(3):
        assert client.get("/echo", method="PUT", body=b"hello").body == b"hello"


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    client.send(request("PUT", "/echo", body=b"1") + request("GET", "/fail/http") + request("PUT", "/echo", body=b"2"))
    assert [client.answer().body for _ in range(3)] == [b"1", b"no such range\n", b"2"]


def test_flood_of_pipelined_requests_lets_others_have_their_turn(start: Any) -> None:
    order: list[str] = []

    async def note(asked: Request) -> Response:
        if not order:
            other.sendall(request("GET", "/from/other"))
        order.append(asked.params["who"])
        return Response(200)

    server = start(Router([Route("/from/{who}", {"GET": note})]))
    with server.connect() as flood, server.connect() as other:
        flood.sendall(request("GET", "/from/flood") * 100)
        assert other.recv(1000).startswith(b"HTTP/1.1 200")
        data = b""
        while data.count(b"HTTP/1.1 200") < 100:
            data += flood.recv(65536)
    assert order.index("other") < 10, "it waited for what the flood had sent before"


def test_request_in_single_bytes(client: Client) -> None:
    for i in request("PUT", "/echo", body=b"xyz"):
        client.send(bytes([i]))
    assert client.answer().body == b"xyz"


def test_chunked_body(client: Client) -> None:
    client.send(
        request("PUT", "/echo", "Transfer-Encoding: chunked")
        + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
        + request("GET", "/named/next")
    )
    assert client.answer().body == b"abcde"
    assert client.answer().body == b"next"


def test_empty_line_before_a_request_is_skipped(client: Client) -> None:
    client.send(b"\r\n" + request("GET", "/echo"))
    assert client.answer().status == 200


def test_head_has_the_fields_of_get_and_no_body(client: Client) -> None:
    get = client.get("/stream/known")
    head = client.get("/stream/known", method="HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, "10", b"")
    assert get.headers.keys() == head.headers.keys()
    assert client.get("/named/a", method="HEAD").headers["content-length"] == "1"


def test_head_of_an_error_has_no_body(client: Client) -> None:
    answer = client.get("/fail/http", method="HEAD")
    assert (answer.status, answer.headers["content-length"]) == (416, "14")
    assert client.get("/echo").status == 200


def test_head_that_cannot_be_read_gets_no_body(client: Client) -> None:
    client.send(b"HEAD /echo?a=1&a=2 HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = client.answer(head_only=True)
    assert (answer.status, answer.headers["content-length"]) == (400, "26")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed()


def test_head_of_unknown_length_tells_none(client: Client) -> None:
    for version in (b"1.1", b"1.0"):
        client.send(b"HEAD /stream/unknown HTTP/" + version + b"\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
        headers = client.answer(head_only=True).headers
        assert not {"content-length", "transfer-encoding"} & headers.keys()
        assert headers.get("connection") != "close"
    assert client.get("/echo").status == 200


def test_streamed_bodies(client: Client) -> None:
    known = client.get("/stream/known")
    assert (known.headers["content-length"], known.body) == ("10", b"helloworld")
    unknown = client.get("/stream/unknown")
    assert "content-length" not in unknown.headers
    assert (unknown.headers["transfer-encoding"], unknown.body) == ("chunked", b"helloworld")
    assert client.get("/stream/nothing").body == b""


def test_no_content_has_neither_length_nor_body(client: Client) -> None:
    client.send(request("GET", "/empty"))
    answer = client.answer(head_only=True)
    assert answer.status == 204
    assert "content-length" not in answer.headers
    assert client.get("/echo").status == 200


def test_http_1_0_is_closed_after_the_response(client: Client) -> None:
    client.send(b"GET /named/a HTTP/1.0\r\n\r\n")
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"a", "close")
    assert client.is_closed()


def test_http_1_0_may_keep_the_connection(client: Client) -> None:
    for _ in range(2):
        client.send(b"GET /named/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert client.answer().headers["connection"] == "keep-alive"


def test_http_1_0_gets_no_chunks(client: Client) -> None:
    client.send(b"GET /stream/unknown HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"helloworld", "close")
    assert "transfer-encoding" not in answer.headers


@pytest.mark.parametrize(("path", "field"), [("/echo?close=y", "X: y"), ("/echo", "Connection: close")])
def test_close_on_demand(client: Client, path: str, field: str) -> None:
    assert client.get(path, field).headers["connection"] == "close"
    assert client.is_closed()


def test_close_n_keeps_the_connection(client: Client) -> None:
    assert "connection" not in client.get("/echo?close=n").headers
    assert client.get("/echo").status == 200


# Resources.


def test_named_parts_are_decoded(client: Client) -> None:
    assert client.get("/named/a%2Fb%20c").body == b"a/b c"
    assert client.get("/n%61med/a/x").body == b"a"


@pytest.mark.parametrize("path", ["/", "/nothing", "/named", "/named/", "/named/a/b", "/named/a/x/"])
def test_unknown_resource(client: Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status, answer.reason) == (404, "Not Found")
    assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
    assert answer.body == f"there is no resource '{path}'\n".encode()
    assert client.get("/echo").status == 200


def test_path_that_is_not_utf8(client: Client) -> None:
    assert client.get("/named/%ff").status == 400


def test_wrong_method_names_the_right_ones(client: Client) -> None:
    answer = client.get("/named/a", method="PUT")
    assert (answer.status, answer.reason) == (405, "Method Not Allowed")
    assert answer.headers["allow"] == "OPTIONS,GET,HEAD,DELETE"
    assert client.get("/echo").status == 200


def test_unknown_method(client: Client) -> None:
    assert client.get("/echo", method="BREW").status == 501


def test_options_of_a_resource_and_of_the_server(client: Client) -> None:
    assert client.get("/echo", method="OPTIONS").headers["allow"] == "OPTIONS,GET,HEAD,PUT"
    answer = client.get("*", method="OPTIONS")
    assert (answer.status, answer.headers["allow"]) == (200, "OPTIONS,GET,HEAD,PUT,DELETE")


# Errors.


def test_error_is_a_sentence_with_its_own_fields(client: Client) -> None:
    answer = client.get("/fail/http")
    assert (answer.status, answer.reason) == (416, "Range Not Satisfiable")
    assert answer.headers["content-range"] == "bytes */5"
    assert answer.body == b"no such range\n"
    assert client.get("/echo").status == 200


def test_failing_storage_tells_the_log_not_the_client(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        answer = client.get("/fail/other")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert [record.getMessage().split("GET ")[1] for record in caplog.records] == [
        "'/fail/other': failed: OSError: secret /path"
    ]
    assert "Traceback" not in caplog.text
    assert client.get("/echo").status == 200


@pytest.mark.parametrize(("name", "status"), [("EMFILE", 503), ("ENFILE", 503), ("ENOSPC", 507), ("EDQUOT", 507)])
def test_lack_of_something_has_a_status_and_its_details_are_logged(
    client: Client, caplog: pytest.LogCaptureFixture, name: str, status: int
) -> None:
    with caplog.at_level(logging.INFO):
        answer = client.get(f"/fail/{name}")
    assert (answer.status, answer.headers.get("retry-after")) == (status, "1" if status == 503 else None)
    assert b"secret" not in answer.body
    assert "secret: '/path'" in caplog.text


@pytest.mark.parametrize(("path", "level"), [("/fail/bug", logging.INFO), ("/fail/other", logging.DEBUG)])
def test_bugs_have_a_traceback_at_level_debug_everything(
    client: Client, caplog: pytest.LogCaptureFixture, path: str, level: int
) -> None:
    with caplog.at_level(level):
        assert client.get(path).status == 500
    assert "Traceback" in caplog.text


def test_cancelled_operation(client: Client) -> None:
    answer = client.get("/fail/cancel")
    assert (answer.status, answer.headers["connection"]) == (403, "close")
    assert b"secret" not in answer.body


def test_overload(client: Client) -> None:
    answer = client.get("/fail/overload")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert client.get("/echo").status == 200


@pytest.mark.parametrize("how", ["fails-first", "fails-first-chunk", "forgets"])
def test_error_before_the_first_byte_carries_nothing_of_the_success(client: Client, how: str) -> None:
    answer = client.get(f"/stream/{how}")
    assert answer.status == 500
    assert not {"content-disposition", "transfer-encoding"} & answer.headers.keys()
    assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
    assert client.get("/echo").status == 200


@pytest.mark.parametrize("how", ["fails-later", "fails-later-chunk"])
def test_error_after_the_first_byte_ends_the_connection(client: Client, how: str) -> None:
    client.send(request("GET", f"/stream/{how}"))
    data = b""
    while True:
        part = client.sock.recv(10000)
        if not part:
            break
        data += part
    assert b"200 OK" in data
    assert b"500" not in data
    assert not data.endswith(b"0\r\n\r\n"), "a broken body looks complete"


def test_field_values_cannot_add_fields(client: Client) -> None:
    answer = client.get("/header?value=a%0d%0aX-Evil:%201")
    assert answer.status == 500
    assert "x-evil" not in answer.headers
    assert client.get("/header?value=%e2%82%ac").status == 500
    assert client.get("/header?value=%c3%a4").status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /" + b"x" * 9000, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"PUT /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"PUT /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: tea\r\n\r\n", 417),
    ],
)
def test_malformed_request_is_answered_and_the_connection_closed(client: Client, data: bytes, status: int) -> None:
    client.send(data)
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed()


# Bodies that nobody reads.


def test_short_unread_body_is_dropped(client: Client) -> None:
    for _ in range(2):
        assert client.get("/unread", method="PUT", body=bytes(100_000)).body == b"done"


def test_body_of_a_get_is_not_the_next_request(client: Client) -> None:
    smuggled = request("GET", "/named/evil")
    assert client.get("/unread", body=smuggled).body == b"done"
    assert client.get("/named/good").body == b"good"


def test_body_of_a_refused_request_is_not_the_next_request(client: Client) -> None:
    smuggled = request("GET", "/named/evil")
    assert client.get("/nothing", method="PUT", body=smuggled).status == 404
    assert client.get("/named/good").body == b"good"


def test_long_unread_body_is_answered_while_it_is_sent(client: Client) -> None:
    client.send(request("PUT", "/unread", f"Content-Length: {64 << 20}"))
    piece = bytes(1 << 20)
    for _ in range(64):
        client.send(piece)
    answer = client.answer()
    assert (answer.body, answer.headers["connection"]) == (b"done", "close")
    assert client.is_closed()


def test_rest_of_an_unread_body_is_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovirt_imageio.daemon.http.linger.BYTES", 1 << 20)
    client.send(request("PUT", "/unread", f"Content-Length: {1 << 40}"))
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 64 << 20:
            client.send(bytes(1 << 20))
            sent += 1 << 20
    assert client.answer().body == b"done"
    assert sent < 16 << 20, "the server reads on and on"


def test_unread_chunks_close_the_connection(client: Client) -> None:
    client.send(request("PUT", "/unread", "Transfer-Encoding: chunked") + b"5\r\n")
    assert client.answer().headers["connection"] == "close"


def test_unread_chunks_that_are_all_there_are_dropped(client: Client) -> None:
    client.send(request("PUT", "/unread", "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n")
    assert "connection" not in client.answer().headers
    assert client.get("/echo").status == 200


def test_body_over_the_handlers_limit(client: Client) -> None:
    answer = client.get("/echo", method="PUT", body=bytes(1001))
    assert answer.status == 413
    assert client.get("/echo").status == 200


def test_chunked_body_over_the_handlers_limit(client: Client) -> None:
    client.send(request("PUT", "/echo", "Transfer-Encoding: chunked") + b"3e9\r\n" + bytes(1001))
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_body_that_ends_early(client: Client) -> None:
    client.send(request("PUT", "/echo", "Content-Length: 10") + b"12345")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().status == 400


# Expect: 100-continue


def test_continue_is_sent_when_the_handler_wants_the_body(client: Client) -> None:
    client.send(request("PUT", "/echo", "Expect: 100-continue", "Content-Length: 5"))
    interim = client.answer()
    assert (interim.status, interim.headers) == (100, {})
    client.send(b"hello")
    assert client.answer().body == b"hello"
    assert client.get("/echo").status == 200


def test_refusal_comes_instead_of_continue(client: Client) -> None:
    client.send(request("PUT", "/fail/http", "Expect: 100-continue", "Content-Length: 5"))
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (416, "close")


def test_continue_is_sent_before_a_worker_receives(client: Client) -> None:
    client.send(request("PUT", "/worker", "Expect: 100-continue", "Content-Length: 5"))
    assert client.answer().status == 100
    client.send(b"\1\1\1\1\1")
    assert client.answer().body == b"5 5"


def test_no_continue_for_an_empty_body(client: Client) -> None:
    client.send(request("PUT", "/echo", "Expect: 100-continue", "Content-Length: 0"))
    assert client.answer().status == 200


# Workers.


def test_worker_sends(client: Client) -> None:
    for _ in range(2):
        body = client.get("/worker").body
        assert [body[i << 20] for i in range(3)] == [0, 1, 2]
        assert len(body) == 3 << 20


def test_worker_receives_and_leaves_the_next_request(client: Client) -> None:
    body = bytes([1]) * 3_000_001
    client.send(request("PUT", "/worker", body=body) + request("GET", "/named/next"))
    assert client.answer().body == b"3000001 3000001"
    assert client.answer().body == b"next"


def test_worker_receives_chunks_in_single_bytes(client: Client) -> None:
    head = request("PUT", "/worker", "Transfer-Encoding: chunked")
    client.send(head)
    for i in b"3\r\n\1\1\1\r\n1\r\n\1\r\n0\r\n\r\n":
        client.send(bytes([i]))
    assert client.answer().body == b"4 4"
    assert client.get("/echo").status == 200


def test_worker_receives_large_chunks(client: Client) -> None:
    head = request("PUT", "/worker", "Transfer-Encoding: chunked")
    chunk = b"%x\r\n%s\r\n" % (100_000, bytes([1]) * 100_000)
    client.send(head + chunk * 20 + b"0\r\n\r\n" + request("GET", "/named/next"))
    assert client.answer().body == b"2000000 2000000"
    assert client.answer().body == b"next"


def test_worker_meets_malformed_chunks(client: Client) -> None:
    head = request("PUT", "/worker", "Transfer-Encoding: chunked")
    client.send(head + b"1\r\nx\r\nnonsense\r\n")
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")


def test_worker_meets_a_client_that_leaves(client: Client) -> None:
    client.send(request("PUT", "/worker", "Content-Length: 1000") + b"12345")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().status == 400


# Time.


def test_head_has_a_deadline(start: Any, router: Router) -> None:
    client = Client(start(router, timeouts=Timeouts(head=SOON)).connect())
    client.send(b"GET / HTTP/1.1\r\n")
    assert (client.answer().status, client.is_closed()) == (408, True)
    client.close()


def test_idle_connection_is_closed_without_a_word(start: Any, router: Router) -> None:
    client = Client(start(router, timeouts=Timeouts(inactivity=SOON)).connect())
    assert client.is_closed()
    client.close()


def test_body_has_a_deadline(start: Any, router: Router) -> None:
    client = Client(start(router, timeouts=Timeouts(body=SOON)).connect())
    client.send(request("PUT", "/echo", "Content-Length: 5") + b"123")
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    client.close()


def test_worker_times_out(start: Any, router: Router) -> None:
    with contextlib.closing(Client(start(router).connect())) as client:
        client.send(request("PUT", f"/worker?patience={SOON}", "Content-Length: 5") + b"123")
        assert client.answer().status == 408


def test_client_that_stops_reading_frees_the_worker(
    start: Any, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(router, max_workers=1)
    with contextlib.closing(Client(server.connect())) as first, contextlib.closing(Client(server.connect())) as second:
        first.send(request("GET", f"/worker?patience={SOON}"))
        assert len(second.get("/worker").body) == 3 << 20


# CORS and the guard.


def test_cors_on_success_and_error(client: Client) -> None:
    for path in ("/echo", "/nothing", "/fail/other"):
        headers = client.get(path, "Origin: http://page").headers
        assert headers["access-control-allow-origin"] == "*"
        exposed = headers["access-control-expose-headers"]
        assert exposed == "Content-Range, Content-Disposition"
        assert "access-control-allow-methods" not in headers
    assert not [n for n in client.get("/echo").headers if n.startswith("access")]


@pytest.mark.parametrize(
    "head",
    [
        "GET /echo?a=1&a=2 HTTP/1.1\r\nHost: x\r\nORIGIN: http://page",
        "GET /echo HTTP/2.0\r\nHost: x\r\nOrigin: http://page",
        "BREW /echo HTTP/1.1\r\nHost: x\r\nOrigin: http://page",
        "PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\nOrigin: http://page",
        "GET /echo HTTP/1.1\r\nHost: x\r\nOrigin: http://page" + "\r\nA: b" * 8000,
    ],
    ids=["query", "version", "method", "length", "incomplete"],
)
def test_cors_on_requests_that_cannot_be_read(client: Client, head: str) -> None:
    client.send(f"{head}\r\n\r\n".encode())
    answer = client.answer()
    assert answer.status >= 400
    assert answer.headers["access-control-allow-origin"] == "*"


def test_pages_cannot_read_why_a_service_without_cors_refuses(start: Any, app: App) -> None:
    client = Client(start(Router(app.routes())).connect())
    client.send(b"GET /echo?a=1&a=2 HTTP/1.1\r\nHost: x\r\nOrigin: http://page\r\n\r\n")
    assert not [name for name in client.answer().headers if name.startswith("access")]
    client.close()


PREFLIGHT = (
    "Origin: http://page",
    "Access-Control-Request-Method: PUT",
    "Access-Control-Request-Headers: content-range",
)


@pytest.mark.parametrize("path", ["/echo", "/fail/forbidden"])
def test_preflight_is_answered_even_where_the_request_will_be_refused(client: Client, path: str) -> None:
    answer = client.get(path, *PREFLIGHT, method="OPTIONS")
    assert answer.status == 200
    assert answer.headers["access-control-allow-headers"] == "*"
    assert answer.headers["access-control-allow-methods"] == "OPTIONS,GET,PUT"
    assert answer.headers["access-control-max-age"] == "86400"


def test_options_without_preflight_is_refused(client: Client) -> None:
    assert client.get("/fail/forbidden", method="OPTIONS").status == 403


def test_service_without_cors(start: Any, app: App) -> None:
    client = Client(start(Router(app.routes())).connect())
    headers = client.get("/echo", "Origin: http://page").headers
    assert not [name for name in headers if name.startswith("access")]
    client.close()


@pytest.mark.parametrize(
    ("host", "fields", "status"),
    [
        ("localhost", (), 200),
        ("LOCALHOST:54324", (), 200),
        ("127.0.0.1:54324", (), 200),
        ("[::1]", (), 200),
        ("[::1]:54324", (), 200),
        ("evil.example", (), 400),
        ("localhost.evil.example", (), 400),
        ("evil.example:54324", (), 400),
        ("", (), 400),
        ("localhost", ("Origin: http://localhost",), 403),
        ("localhost", ("Origin: null",), 403),
    ],
)
def test_local_only(start: Any, app: App, host: str, fields: tuple[str, ...], status: int) -> None:
    client = Client(start(Router(app.routes(), guard=local_only)).connect())
    lines = ["GET /echo HTTP/1.1", f"Host: {host}", *fields, "", ""]
    client.send("\r\n".join(lines).encode())
    assert client.answer().status == status
    client.close()


def test_preflight_is_refused_where_pages_may_not_come(start: Any, app: App) -> None:
    client = Client(start(Router(app.routes(), guard=local_only)).connect())
    client.send(
        b"OPTIONS /echo HTTP/1.1\r\nHost: localhost\r\nOrigin: http://x\r\nAccess-Control-Request-Method: PUT\r\n\r\n"
    )
    assert client.answer().status == 403
    client.close()


# Stopping and watching.


def test_stopping_router_answers_503_and_closes(client: Client, router: Router) -> None:
    assert client.get("/echo").status == 200
    router.stopping = True
    answer = client.get("/echo")
    assert (answer.status, answer.headers["connection"]) == (503, "close")


def test_observer_sees_each_request(client: Client, router: Router) -> None:
    seen: list[tuple[str, int]] = []
    router.observer = lambda request, status, seconds: seen.append((request.path, status))
    client.get("/echo")
    client.get("/nothing")
    client.get("/echo")
    assert seen[:2] == [("/echo", 200), ("/nothing", 404)]


def leave_within_body(server: Any, method: str, path: str) -> None:
    """Be gone before the server sees that anybody came."""
    with server.connect() as sock:
        sock.sendall(request(method, path, "Content-Length: 100") + b"some")


@pytest.mark.parametrize("where", [{}, {"tcp": True}], ids=["unix", "tcp"])
def test_request_whose_client_left_is_not_served(
    start: Any, app: App, caplog: pytest.LogCaptureFixture, where: Any
) -> None:
    server = start(Router(app.routes()), **where)
    with caplog.at_level(logging.INFO):
        server.call(lambda: leave_within_body(server, "PUT", "/echo"))
        while "PUT '/echo': 400 the connection ended before the body" not in caplog.text:
            server.call(lambda: None)
    assert app.requests == []


def test_id_of_a_client_that_left_is_not_logged(start: Any, app: App, caplog: pytest.LogCaptureFixture) -> None:
    server = start(Router(app.routes()))
    with caplog.at_level(logging.INFO):
        server.call(lambda: leave_within_body(server, "DELETE", "/named/0123456789abcdef"))
        while "DELETE '/named/01234567…': 400" not in caplog.text:
            server.call(lambda: None)
    assert "0123456789abcdef" not in caplog.text


def test_client_that_cannot_hear_is_not_answered(start: Any, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    server, answers = start(Router(app.routes())), []
    send = Connection.send

    async def noted(connection: Connection, *parts: bytes) -> None:
        answers.append(parts[0][:12])
        await send(connection, *parts)

    monkeypatch.setattr(Connection, "send", noted)
    server.call(lambda: leave_within_body(server, "PUT", "/echo"))
    with contextlib.closing(Client(server.connect())) as other:
        assert other.get("/echo").status == 200
    while server.call(lambda: len(server.connections)):
        pass
    assert answers == [b"HTTP/1.1 200"]


def test_client_that_ends_its_stream_within_a_body_is_told(start: Any, app: App) -> None:
    server = start(Router(app.routes()))
    with contextlib.closing(Client(server.connect())) as client:
        client.send(request("PUT", "/echo", "Content-Length: 100") + b"some")
        client.sock.shutdown(socket.SHUT_WR)
        answer = client.answer()
        assert (answer.status, answer.body) == (400, b"the connection ended before the body\n")
        assert client.is_closed()


def test_refusals_are_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.get("/nothing%0aevil")
    assert "404 there is no resource" in caplog.text
    assert "\nevil" not in caplog.text
