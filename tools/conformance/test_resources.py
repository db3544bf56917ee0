# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of paths, methods, errors, and pages of other origins."""

from __future__ import annotations

import uuid

import pytest

from conformance.server import expect, expect_alive, expect_error, require

CHAPTER = "Resources, errors and CORS"

ORIGIN = ("Origin", "https://engine.example")


def test_info(server, client, way):
    """GET /info/ of the remote service tells the version."""
    response = client.get("/info/")
    if way != "remote":
        require(response.status in (200, 404), f"the status is {response.status}")
        return
    expect(response, 200, headers={"Content-Type": "application/json"})
    version = response.json()["version"]
    require(isinstance(version, str) and version, f"the version is {version!r}")
    require(response.header("Server") == f"imageio/{version}", f"Server is {response.header('Server')!r}")
    if server.version:
        require(version == server.version, f"the version is {version!r}, expected {server.version!r}")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/image/x",
        "/imagesx",
        "/images/{id}/extent",
        "/images/{id}/extents/more",
        "/images/{id}/extents/",
        "/images/{id}/more",
        "/images/{id}/",
        "/images/{id}/checksum/more",
        "/images/{id}/checksum/algorithms/more",
        "/images//extents",
        "//images/{id}",
        "/Images/{id}",
        "/tickets/{id}",
        "/tickets/",
        "/profile/",
    ],
)
def test_no_such_resource(client, anything, path):
    """A longer or misspelt path is 404, and the text says so; the connection stays."""
    ticket = anything.rpartition("/")[2]
    expect_error(client.get(path.replace("{id}", ticket)), 404)
    expect_alive(client)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH"])
def test_404_says_not_found(client, method):
    """The reason of 404 is Not Found, and its body has a length."""
    response = client.request(method, "/no/such/resource", body=b"{}")
    require(response.reason == "Not Found", f"the reason is {response.reason!r}")
    expect(response, 404, headers={"Content-Length": str(len(response.body))})


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/images/{id}", "OPTIONS,GET,HEAD,PUT,PATCH"),
        ("DELETE", "/images/{id}", "OPTIONS,GET,HEAD,PUT,PATCH"),
        ("PUT", "/images/{id}/extents", "OPTIONS,GET,HEAD"),
        ("PATCH", "/images/{id}/checksum", "OPTIONS,GET,HEAD"),
        ("DELETE", "/images/{id}/checksum/algorithms", "OPTIONS,GET,HEAD"),
    ],
)
def test_method_not_allowed(client, anything, method, path, allow):
    """A method that a resource does not know is 405, and Allow names all that it knows, HEAD too."""
    response = client.get(path.replace("{id}", anything.rpartition("/")[2]), method=method)
    expect_error(response, 405)
    found = {name.strip() for name in (response.header("Allow") or "").split(",")}
    require(found == set(allow.split(",")), f"Allow is {response.header('Allow')!r}, expected {allow!r}")
    expect_alive(client)


@pytest.mark.parametrize("method", ["BREW", "get", "PROPFIND", "X" * 100])
def test_unknown_method(client, anything, method):
    """A method that nobody knows is 501."""
    expect_error(client.get(anything, method=method), 501)


def test_error_tells_no_secrets(client):
    """An error repeats neither markup nor much of what was asked."""
    target = "/" + "<script>".replace("<", "%3C").replace(">", "%3E") + "x" * 3000
    response = expect_error(client.get(target), (404, 414))
    require(len(response.body) < 500, f"the text has {len(response.body)} bytes")


@pytest.mark.parametrize("target", ["/images/%ff%fe", "/images/%00", "/images/%0d%0aX-Injected:%20yes"])
def test_strange_id(client, target):
    """An id of any bytes is refused like one that is unknown, and adds no header."""
    response = expect_error(client.get(target), (400, 403, 404))
    expect(response, response.status, headers={"X-Injected": None})
    expect_alive(client)


@pytest.mark.parametrize("path", ["/images/{id}", "/images/{id}/extents", "/images/{id}/checksum", "/images/*"])
def test_cors(client, anything, path):
    """A page of any origin may read responses and the headers that it needs."""
    target = path.replace("{id}", anything.rpartition("/")[2])
    response = client.get(target, ORIGIN, method="OPTIONS" if path.endswith("*") else "GET")
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Expose-Headers": "Content-Range, Content-Disposition",
    }
    expect(response, 200, headers=headers)


def test_no_cors_without_origin(client, anything):
    """Without Origin there are no CORS headers."""
    response = client.get(anything, ("Range", "bytes=0-0"))
    names = [name for name, _ in response.headers if name.lower().startswith("access-control")]
    require(not names, f"the response has {names}")


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH"])
def test_preflight(client, anything, method):
    """A preflight request is answered with what pages may do."""
    fields = (
        ORIGIN,
        ("Access-Control-Request-Method", method),
        ("Access-Control-Request-Headers", "cache-control,content-range,pragma"),
    )
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Headers": "*",
        "Access-Control-Allow-Methods": "OPTIONS,GET,PUT",
        "Access-Control-Max-Age": "86400",
    }
    expect(client.get(anything, *fields, method="OPTIONS"), (200, 204), headers=headers)


def test_cors_on_errors(connect, anything):
    """Errors carry CORS headers too, or a page could not read why it failed."""
    for response in (
        connect().get(f"/images/{uuid.uuid4()}", ORIGIN),
        connect().get(anything, ORIGIN, ("Range", "bytes=9-0")),
        connect().get("/no/such/resource", ORIGIN),
        connect().get(anything, ORIGIN, method="DELETE"),
        connect().put(anything, b"x", ORIGIN),
    ):
        require(response.status >= 400, f"the status is {response.status}")
        expect(response, response.status, headers={"Access-Control-Allow-Origin": "*"})


def test_error_carries_nothing_of_the_success(connect, anything, images, grants):
    """An error carries no header of the response that it replaces."""
    broken = f"/images/{grants.put(url='file:///nowhere/at/all', size=4096, ops=['write'], filename='secret')}"
    read = ("Content-Disposition", "Accept-Ranges", "ETag", "Last-Modified", "Content-Encoding")
    for response in (
        connect().get(broken),
        connect().get(anything, ("Range", "bytes=9-0")),
        connect().get(f"{anything}/extents?context=dirty"),
        connect().get(f"{anything}/checksum?algorithm=none"),
        connect().put(broken, b"x"),
        connect().put_json(broken, {"op": "flush"}, method="PATCH"),
        connect().get(anything, method="DELETE"),
    ):
        require(response.status >= 400, f"the status is {response.status}")
        expect_error(response, response.status)
        expect(response, response.status, headers=dict.fromkeys(read))
        if response.status != 416:
            expect(response, response.status, headers={"Content-Range": None})


def test_control_has_no_cors(server, control):
    """The control service carries no CORS header, whatever the Origin."""
    response = control.get(f"/tickets/{uuid.uuid4()}", ORIGIN)
    names = [name for name, _ in response.headers if name.lower().startswith("access-control")]
    require(not names, f"the response has {names}")


def test_control_has_no_images(control, anything):
    """Images cannot be had through the control service."""
    expect_error(control.get(anything), 404)
    expect_error(control.get("/info/"), 404)


def test_web_page_at_control(tcp_control):
    """Over TCP the control service answers 403 to any Origin."""
    with tcp_control.connect("control") as control:
        for response in (
            control.get(f"/tickets/{uuid.uuid4()}", ORIGIN),
            control.get(f"/tickets/{uuid.uuid4()}", ORIGIN, ("Access-Control-Request-Method", "PUT"), method="OPTIONS"),
            control.put("/tickets/x", b'{"uuid": "x"}', ORIGIN),
            control.put("/tickets/x", b'{"uuid": "x"}', ("Origin", "null")),
            control.get("/tickets/", ORIGIN, method="DELETE"),
        ):
            expect_error(response, 403)
            expect(response, 403, headers={"Access-Control-Allow-Origin": None})


@pytest.mark.parametrize(
    "host", ["engine.example", "localhost.example:54324", "169.254.169.254", "", "127.0.0.1.example", "localhost@x"]
)
def test_other_host_at_control(tcp_control, host):
    """Over TCP the control service answers 400 to a Host that is not of this machine."""
    with tcp_control.connect("control") as control:
        expect_error(control.get(f"/tickets/{uuid.uuid4()}", ("Host", host)), 400)


@pytest.mark.parametrize("host", ["localhost", "localhost:54324", "127.0.0.1:54324", "127.0.0.1", "[::1]", "[::1]:80"])
def test_own_host_at_control(tcp_control, host):
    """Over TCP the control service answers to the names of this machine, with or without a port."""
    with tcp_control.connect("control") as control:
        expect_error(control.get(f"/tickets/{uuid.uuid4()}", ("Host", host)), 404)


def test_control_without_host(server):
    """The control service takes HTTP/1.1 without Host: the HTTP library of ovirt-engine sends none."""
    with server.connect("control") as control:
        for _ in range(2):
            control.send(f"GET /tickets/{uuid.uuid4()} HTTP/1.1\r\nAccept: */*\r\n\r\n".encode())
            expect_error(control.response(), 404)
