# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples of the reference, and real answers of a daemon, are valid by the published OpenAPI description."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

import pytest

from conformance import openapi
from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer, Response, request_head
from imageio_testing.nbdpeer import Peer, Talk
from ovirt_imageio.common.nbd import wire

REFERENCE = openapi.DESCRIPTION.parent
SIZE = 4 * 1024**2

Check = Callable[[Any, Any], None]


@pytest.fixture(scope="module")
def description() -> Any:
    yaml = pytest.importorskip("yaml", reason="not installed: PyYAML")
    return yaml.safe_load(openapi.DESCRIPTION.read_text())


@pytest.fixture(scope="module")
def check(description: Any) -> Check:
    """Returns what raises unless a value is valid by a schema of the description."""
    jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="not installed: jsonschema_rs")

    def check(schema: Any, value: Any) -> None:
        root = {**schema, "components": description["components"]}
        errors = [str(error) for error in jsonschema_rs.Draft202012Validator(root).iter_errors(value)]
        assert not errors, f"{value}: {errors}"

    return check


# Examples that are published.


def test_examples_of_the_description(description, check):
    found = list(_examples(description))
    assert len(found) > 10
    for schema, value in found:
        check(schema, value)


def _examples(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield schemas and their examples, as OpenAPI and as JSON Schema have them."""
    if isinstance(node, list):
        for item in node:
            yield from _examples(item)
    if not isinstance(node, dict):
        return
    examples = node.get("examples")
    if isinstance(examples, list):
        yield from ((node, value) for value in examples)
    elif isinstance(examples, dict) and "schema" in node:
        yield from ((node["schema"], example["value"]) for example in examples.values())
    if "example" in node and "schema" in node:
        yield node["schema"], node["example"]
    for value in node.values():
        yield from _examples(value)


# The page, the heading above a document, and where its schema is in the description.
SHOWN = [
    ("http-api.md", "OPTIONS /images/{id}", "Options"),
    ("http-api.md", "PATCH /images/{id}", ("paths", "/images/{id}", "patch", "requestBody")),
    ("http-api.md", "GET /images/{id}/extents", ("paths", "/images/{id}/extents", "get", "responses", "200")),
    ("http-api.md", "GET /images/{id}/checksum", "Checksum"),
    ("http-api.md", "GET /status", "Status"),
    ("http-api.md", "GET /profile/", "Profile"),
    ("tickets.md", "The document", "Ticket"),
    ("tickets.md", "GET /tickets/{id}", "TicketState"),
]


@pytest.mark.parametrize(("page", "heading", "where"), SHOWN)
def test_documents_of_the_reference(description, check, page, heading, where):
    for document in _documents(REFERENCE / page, heading):
        check(_schema(description, where), document)


def test_every_document_of_the_reference_is_looked_at():
    for page in ("http-api.md", "tickets.md"):
        headings = {heading for name, heading, _ in SHOWN if name == page}
        assert set(_sections(REFERENCE / page)) == headings


def test_content_range_of_the_reference(description, check):
    text = (REFERENCE / "http-api.md").read_text()
    requests = [block for block in re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "PUT" in block]
    shown = [value for block in requests for value in re.findall(r"Content-Range: (.*)$", block, re.MULTILINE)]
    assert len(shown) == 2
    for value in shown:
        check(description["components"]["parameters"]["contentRange"]["schema"], value)


def _documents(page: Path, heading: str) -> list[Any]:
    """Read the JSON under a heading: one document, or one a line. `…` stands for more of the same."""
    text = _sections(page)[heading].replace("…", "")
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


def _sections(page: Path) -> dict[str, str]:
    """Find the JSON of a page by the heading above it."""
    found = {}
    for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("\n")
        block = re.search(r"^```json\n(.*?)^```", rest, re.MULTILINE | re.DOTALL)
        if block:
            found[heading] = block[1]
    return found


def _schema(description: Any, where: str | tuple[str, ...]) -> Any:
    if isinstance(where, str):
        return description["components"]["schemas"][where]
    node = description
    for key in where:
        node = node[key]
    return node["content"]["application/json"]["schema"]


# Answers of a daemon.


class Held:
    """An image behind NBD that answers no write until it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def script(self, talk: Talk) -> None:
        """Play the server for one connection."""
        talk.negotiate(SIZE, structured=False)
        while True:
            asked = talk.request()
            if asked.command == wire.CMD_WRITE:
                self.asked.set()
                assert self.go_on.wait(20), "the test never lets it go on"
            talk.simple(asked, bytes(asked.length) if asked.command == wire.CMD_READ else b"")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "disk").write_bytes(b"x" * (SIZE // 2) + bytes(SIZE // 2))
    with Daemon(folder, tls=False, config={"control": {"remove_timeout": 0}}) as daemon:
        daemon.add_ticket(f"file://{folder}/disk", size=SIZE, ticket_id="disk")
        yield daemon


def _control(daemon: Daemon, path: str, method: str = "GET") -> Response:
    with HttpPeer.unix(daemon.control_socket) as peer:
        return peer.request(method, path)


def _images(daemon: Daemon, path: str, method: str = "GET") -> Response:
    with HttpPeer.tcp("127.0.0.1", daemon.port) as peer:
        return peer.request(method, path)


@pytest.fixture
def state(daemon: Daemon, description: Any, check: Check) -> Callable[[str], Any]:
    """Returns what asks for the state of a ticket, which is valid, and so is /status meanwhile."""

    def state(ticket_id: str) -> Any:
        document = _control(daemon, f"/tickets/{ticket_id}").json()
        check(_schema(description, "TicketState"), document)
        status = _control(daemon, "/status").json()
        check(_schema(description, "Status"), status)
        assert ticket_id in [transfer["uuid"] for transfer in status["transfers"]]
        return document

    return state


@pytest.mark.system
def test_idle_ticket(daemon, state):
    daemon.add_ticket("file:///images/disk.raw", size=1, ticket_id="new", transfer_id="transfer", filename="a name.raw")
    assert state("new")["state"] == "idle"


@pytest.mark.system
@pytest.mark.parametrize(
    "url",
    [
        "nbd:server7:10809:exportname=sda",
        "nbd:192.0.2.7:65535",
        "nbd://2001-db8.example.com",
        "nbd+unix:///sda?socket=/run/disk.sock",
        "https://server.example.com:54322/images/id",
        "FILE:///images/disk.raw",
    ],
)
def test_ticket_for_any_storage(daemon, state, url):
    daemon.add_ticket(url, size=1, ops=["read"], ticket_id="stored")
    assert state("stored")["url"] == url


@pytest.mark.system
def test_expired_ticket(daemon, state):
    daemon.add_ticket("file:///images/disk.raw", size=1, timeout=0, ticket_id="expired")
    assert state("expired")["state"] == "expired"


@pytest.mark.system
def test_ticket_with_an_error(daemon, state, tmp_path):
    daemon.add_ticket(f"nbd:unix:{tmp_path}/none", size=1, ticket_id="failed")
    assert _images(daemon, "/images/failed").status == 500
    assert "opening the storage" in state("failed")["last_error"]["text"]


@pytest.mark.system
def test_ticket_in_use_until_it_is_cancelled(daemon, state):
    held = Held()
    with Peer(held.script) as peer, ThreadPoolExecutor() as pool:
        daemon.add_ticket(f"nbd:unix:{peer.address.path}", size=SIZE, ops=["write"], ticket_id="used")
        upload = pool.submit(_upload, daemon, "/images/used")
        try:
            assert held.asked.wait(20)
            used = state("used")
            assert used["state"] == "active"
            assert [op["kind"] for op in used["operations"]] == ["write"]
            assert _control(daemon, "/tickets/used", "DELETE").status == 204
            assert state("used")["state"] == "cancelling"
        finally:
            held.go_on.set()
        assert upload.result().status == 403
        assert state("used")["state"] == "cancelled"


def _upload(daemon: Daemon, path: str) -> Response:
    with HttpPeer.tcp("127.0.0.1", daemon.port) as peer:
        return peer.request("PUT", path, body=bytes(SIZE))


@pytest.mark.system
@pytest.mark.parametrize(
    ("method", "path", "described"),
    [
        ("OPTIONS", "/images/*", "/images/{id}"),
        ("OPTIONS", "/images/disk", "/images/{id}"),
        ("GET", "/images/disk/extents", "/images/{id}/extents"),
        ("GET", "/images/disk/checksum", "/images/{id}/checksum"),
        (
            "GET",
            "/images/disk/checksum?algorithm=md5&block_size=1048576&offset=3145728&blocks=y",
            "/images/{id}/checksum",
        ),
        ("GET", "/images/disk/checksum?offset=0&length=0&blocks=y", "/images/{id}/checksum"),
        ("GET", "/images/none/checksum/algorithms", "/images/{id}/checksum/algorithms"),
        ("GET", "/info/", "/info/"),
        ("GET", "/profile/", "/profile/"),
    ],
)
def test_document(daemon, description, check, method, path, described):
    ask = _control if path == "/profile/" else _images
    answer = ask(daemon, path, method)
    assert answer.status == 200
    check(_schema(description, ("paths", described, method.lower(), "responses", "200")), answer.json())


@pytest.mark.system
@pytest.mark.parametrize(
    ("status", "method", "target", "fields"),
    [
        (400, "GET", "/images/disk/extents?context=all", []),
        (403, "GET", "/images/none", []),
        (404, "GET", "/images/disk/extents?context=dirty", []),
        (405, "DELETE", "/images/disk", []),
        (411, "PUT", "/images/disk", []),
        (413, "PATCH", "/images/disk", [("Content-Length", "65537")]),
        (414, "GET", "/images/" + "x" * 8192, []),
        (415, "PUT", "/images/disk", [("Content-Length", "1"), ("Content-Encoding", "gzip")]),
        (416, "GET", "/images/disk", [("Range", f"bytes={SIZE}-")]),
        (417, "GET", "/images/disk", [("Expect", "200-ok")]),
        (431, "GET", "/images/disk", [("X-Long", "x" * 32768)]),
        (501, "PUT", "/images/disk", [("Transfer-Encoding", "gzip")]),
    ],
)
def test_refusal(daemon, description, check, status, method, target, fields):
    with HttpPeer.tcp("127.0.0.1", daemon.port) as peer:
        peer.send(request_head(method, target, headers=fields))
        answer = peer.response(method)
    assert answer.status == status
    path = re.sub(r"^/images/[^/]+", "/images/{id}", urlsplit(target).path)
    described = _response(description, path, "put" if method == "DELETE" else method.lower(), status)
    check(described["content"]["text/plain"]["schema"], answer.text)
    for name, header in described.get("headers", {}).items():
        check(_resolved(description, header)["schema"], answer.header(name))


@pytest.mark.system
def test_head_tells_the_size(daemon, description):
    with HttpPeer.tcp("127.0.0.1", daemon.port) as peer:
        answer = peer.request("HEAD", "/images/disk")
    assert answer.header("Content-Length") == str(SIZE)
    assert set(_response(description, "/images/{id}", "head", 200)["headers"]) == {"Content-Length"}


def _response(description: Any, path: str, method: str, status: int) -> Any:
    return _resolved(description, description["paths"][path][method]["responses"][str(status)])


def _resolved(description: Any, node: Any) -> Any:
    if "$ref" not in node:
        return node
    found = description
    for key in node["$ref"][2:].split("/"):
        found = found[key]
    return found
