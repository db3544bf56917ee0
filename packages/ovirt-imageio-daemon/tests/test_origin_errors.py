# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Refusals by the origin of a proxied image reach the client, where the client can act on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imageio_testing.imageserver import Got, Image, ScriptedServer, response
from imageio_testing.serving import Service

SIZE = 1 << 20
LEFT = 4096
ZERO = json.dumps({"op": "zero", "offset": 0, "size": LEFT}).encode()
REQUESTS = {
    "read": ("GET", "", {"headers": [("Range", "bytes=0-99")]}),
    "whole": ("GET", "", {}),
    "extents": ("GET", "/extents", {}),
    "write": ("PUT", "", {"body": b"y" * LEFT}),
    "zero": ("PATCH", "", {"body": ZERO}),
}


class Origin(Image):
    """Refuses everything once it is told how."""

    refusal: bytes | None = None

    def __call__(self, got: Got) -> bytes | None:
        if self.refusal is None:
            return super().__call__(got)
        assert len(got.body) == got.length
        return self.refusal

    def extents(self, got: Got, query: str) -> bytes:
        if len(self.data) < SIZE:
            return response(416, b"too far\n", Content_Range=f"bytes */{len(self.data)}")
        return response(200, json.dumps([{"start": 0, "length": SIZE, "zero": False, "hole": False}]).encode())


@pytest.fixture
def origin() -> Origin:
    return Origin(bytearray(b"x" * SIZE))


@pytest.fixture
def proxy(origin: Origin, tmp_path: Path) -> Iterator[Service]:
    with ScriptedServer(origin) as server, Service(tmp_path) as service:
        image = service.add_ticket(url=server.url, size=SIZE)
        with service.client() as client:
            assert client.request("GET", image, headers=[("Range", "bytes=0-9")]).status == 206
        yield service


def ask(proxy: Service, kind: str) -> Any:
    method, path, options = REQUESTS[kind]
    with proxy.client() as client:
        return client.request(method, f"/images/t{path}", **options)


@pytest.mark.parametrize("kind", REQUESTS)
def test_full_storage_is_told_in_the_words_of_the_origin(origin: Origin, proxy: Service, kind: str) -> None:
    origin.refusal = response(507, b"the quota of\n tenant blue is used up\n")
    answer = ask(proxy, kind)
    assert (answer.status, answer.text) == (507, "the quota of tenant blue is used up\n")
    origin.refusal = response(507)
    answer = ask(proxy, kind)
    assert (answer.status, answer.text) == (507, "no space left on the storage\n")
    origin.refusal = response(507, b"x" * 5000)
    assert ask(proxy, kind).text == "x" * 200 + "\n"
    assert "507" in proxy.show()["last_error"]["text"]


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("status", [400, 403, 408, 409, 429, 501, 502, 503, 504])
def test_refusal_has_the_status_and_the_words_of_the_origin(
    origin: Origin, proxy: Service, kind: str, status: int
) -> None:
    origin.refusal = response(status, b"come later\n")
    answer = ask(proxy, kind)
    assert (answer.status, answer.text) == (status, "the origin refused: come later\n")
    assert (answer.header("Retry-After") == "1") == (status in (429, 503))
    origin.refusal = None
    assert ask(proxy, kind).status in (200, 206)


def test_method_that_the_origin_lacks_is_not_implemented(origin: Origin, proxy: Service) -> None:
    origin.refusal = response(405, b"never\n")
    answer = ask(proxy, "write")
    assert (answer.status, answer.text) == (501, "the origin refused: never\n")


def test_image_that_the_origin_lost_is_told(origin: Origin, proxy: Service) -> None:
    origin.refusal = response(404, b"no such image\n")
    assert (ask(proxy, "read").status, ask(proxy, "write").status) == (404, 404)


def test_origin_that_refuses_the_first_request_is_told(origin: Origin, tmp_path: Path) -> None:
    origin.refusal = response(503, b"stopping\n")
    with ScriptedServer(origin) as server, Service(tmp_path) as service:
        image = service.add_ticket(url=server.url, size=SIZE)
        with service.client() as client:
            answer = client.request("OPTIONS", image)
        assert (answer.status, answer.text) == (503, "the origin refused: stopping\n")
        assert "503" in service.show()["last_error"]["text"]


@pytest.mark.parametrize("kind", REQUESTS)
def test_fault_of_the_origin_stays_one_without_details(origin: Origin, proxy: Service, kind: str) -> None:
    origin.refusal = response(500, b"at 10.1.2.3\n")
    answer = ask(proxy, kind)
    assert (answer.status, answer.text) == (500, "the server could not do that\n")


@pytest.mark.parametrize("path", ["", "/extents", "/checksum"])
def test_image_that_became_smaller_is_told_with_its_size(origin: Origin, proxy: Service, path: str) -> None:
    del origin.data[LEFT:]
    with proxy.client() as client:
        answer = client.request("GET", f"/images/t{path}")
        assert (answer.status, answer.header("Content-Range")) == (416, f"bytes */{LEFT}")
        assert answer.text.startswith("the origin refused: ")
        assert client.request("GET", "/images/t").body == b"x" * LEFT


def test_range_that_the_origin_refuses_to_write_is_told(origin: Origin, proxy: Service) -> None:
    origin.refusal = response(416, b"past the end of the ticket\n", Content_Range=f"bytes */{LEFT}")
    answer = ask(proxy, "write")
    assert (answer.status, answer.text) == (416, "the origin refused: past the end of the ticket\n")
    assert answer.header("Content-Range") == f"bytes */{SIZE}"


def test_size_that_contradicts_the_refusal_is_not_believed(origin: Origin, proxy: Service) -> None:
    origin.refusal = response(416, b"no\n", Content_Range=f"bytes */{2 * SIZE}")
    assert ask(proxy, "read").header("Content-Range") == f"bytes */{SIZE}"
