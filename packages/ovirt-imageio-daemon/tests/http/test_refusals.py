# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Costs of a client that is refused again and again: few log lines, and few answers that no client reads."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.http.message import Request, Response
from ovirt_imageio.daemon.http.refusals import CLIENTS, OTHERS, Refusals
from ovirt_imageio.daemon.http.router import Route, Router

REFUSED = b"GET /refuse/nothing HTTP/1.1\r\nHost: x\r\n\r\n"
WITH_TICKET = b"GET /refuse/ticket HTTP/1.1\r\nHost: x\r\n\r\n"
GOOD = b"GET /good HTTP/1.1\r\nHost: x\r\n\r\n"


class Service:
    """Refuses whatever is asked under /refuse, and counts."""

    def __init__(self, **options: Any) -> None:
        self.refused = 0
        routes = [Route("/refuse/{id}", {"GET": self.refuse}), Route("/good", {"GET": self.good})]
        self.router = Router(routes, name="images", **options)

    async def refuse(self, asked: Request) -> Response:
        self.refused += 1
        if asked.params["id"] == "ticket":
            asked.connection.ticket_id = "ticket"
        raise HttpError(404, "there is no such thing")

    async def good(self, asked: Request) -> Response:
        return Response(200)


def until_end(sock: Any) -> bytes:
    data = b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            return data
        data += piece


def ask_all(start: Any, service: Service, requests: bytes, connections: int = 1) -> bytes:
    """Return what a client is answered that closes its side each time."""
    server, data = start(service.router), b""
    for _ in range(connections):
        with server.connect() as sock:
            sock.sendall(requests)
            sock.shutdown(1)
            data += until_end(sock)
    server.call(service.router.tell_left_out)
    return data


def test_ten_in_a_minute_are_told() -> None:
    refusals = Refusals()
    assert [refusals.shall_be_told("a", 1000 + i) for i in range(12)] == [True] * 10 + [False] * 2
    assert refusals.shall_be_told("b", 1011)
    assert refusals.take_left_out(1059) == []
    assert refusals.take_left_out(1060) == [("a", 2)]
    assert refusals.shall_be_told("a", 1060)
    assert refusals.take_left_out() == []


def test_clients_with_ever_new_names_share_their_lines() -> None:
    refusals = Refusals()
    told = sum(refusals.shall_be_told(f"client {i}", 1000) for i in range(10 * CLIENTS))
    assert told == CLIENTS + 10
    assert refusals.take_left_out(1060) == [(OTHERS, 9 * CLIENTS - 10)]


@pytest.mark.parametrize("connections", [1, 25], ids=["on one connection", "on as many connections"])
def test_log_counts_what_it_leaves_out(start: Any, caplog: pytest.LogCaptureFixture, connections: int) -> None:
    with caplog.at_level(logging.INFO):
        ask_all(start, Service(), REFUSED * (25 // connections), connections)
    lines = [text for text in caplog.messages if "refused" in text or "404" in text]
    assert all("404 there is no such thing" in text for text in lines[:10])
    assert len(lines) == 11
    assert re.fullmatch(r"images: unix:pid=\d+,uid=\d+: 15 more requests were refused", lines[10])


def test_what_is_no_request_counts_as_well(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask_all(start, Service(), b"no request\r\n\r\n", 12)
    assert sum("malformed request line" in text for text in caplog.messages) == 10
    assert caplog.messages[-1].endswith(": 2 more requests were refused")


def test_control_service_leaves_nothing_out(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert ask_all(start, Service(trusted=True), REFUSED * 150).count(b"HTTP/1.1 404") == 150
    assert sum("404 there is no such thing" in text for text in caplog.messages) == 150


def test_hundredth_refusal_without_a_ticket_is_the_last(start: Any) -> None:
    service = Service()
    with start(service.router).connect() as sock:
        sock.sendall(REFUSED * 150)
        data = until_end(sock)
    assert (data.count(b"HTTP/1.1 404"), service.refused) == (100, 100)
    assert data.count(b"Connection: close") == 1
    assert b"Connection: close" in data[data.rindex(b"HTTP/1.1") :]


def test_refusals_with_a_ticket_are_not_limited(start: Any) -> None:
    data = ask_all(start, Service(), WITH_TICKET * 150)
    assert data.count(b"HTTP/1.1 404") == 150
    assert b"Connection: close" not in data


def test_answers_that_nobody_reads_are_not_made(start: Any) -> None:
    """Each turn of the loop could serve one of those requests, and there are as many turns as good ones."""
    service = Service()
    server = start(service.router)
    with server.connect() as flood, server.connect() as other:
        flood.sendall(REFUSED * 90)
        for _ in range(200):
            other.sendall(GOOD)
            assert other.recv(1000).startswith(b"HTTP/1.1 200")
        assert 0 < service.refused < 30
        flood.shutdown(1)
        assert until_end(flood).count(b"HTTP/1.1 404") == 90
