# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The OpenAPI description tells all, and the daemon does what it says: a short form of `make fuzz`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance import openapi, openapi_narrowed
from ovirt_imageio.daemon import handlers

TOOLS = Path(openapi.__file__).parent.parent

# The contract of clients: for each resource and method the statuses that have a meaning of their own.
CONTRACT = {
    "/images/{id}": {
        "options": {200, 403, 500},
        "get": {200, 206, 403, 416, 500},
        "head": {200, 206, 403, 416, 500},
        "put": {200, 403, 411, 415, 416, 500, 507},
        "patch": {200, 403, 413, 416, 500, 507},
    },
    "/images/{id}/extents": {"options": {200}, "get": {200, 403, 500}, "head": {200, 403, 500}},
    "/images/{id}/checksum": {"options": {200}, "get": {200, 403, 500}, "head": {200, 403, 500}},
    "/images/{id}/checksum/algorithms": {"options": {200}, "get": {200}, "head": {200}},
    "/info/": {"options": {200}, "get": {200}, "head": {200}},
    "/tickets/{id}": {
        "options": {200},
        "get": {200},
        "head": {200},
        "put": {200, 409, 413, 503},
        "patch": {200, 413},
        "delete": {204, 409},
    },
    "/tickets/": {"options": {200}, "delete": {204}},
    "/status": {"options": {200}, "get": {200}, "head": {200}},
    "/profile/": {"options": {200}, "get": {200}, "head": {200}, "post": {200, 500, 503}},
}

# Statuses of any request, and those of one service only; 405 wherever it is not OPTIONS.
ANYWHERE = {400, 404, 408, 414, 417, 431, 501, 505}
SERVICES = {"images": {503}, "tickets": {403}}


@pytest.fixture(scope="module")
def description() -> Any:
    yaml = pytest.importorskip("yaml", reason="not installed: PyYAML")
    return yaml.safe_load(openapi.DESCRIPTION.read_text())


@pytest.mark.parametrize(("path", "method"), [(path, method) for path, found in CONTRACT.items() for method in found])
def test_every_status_is_described_and_no_other(description, path, method):
    operation = description["paths"][path][method]
    expected = CONTRACT[path][method] | ANYWHERE | SERVICES[operation["tags"][0]]
    if method != "options":
        expected |= {405}
    assert {int(status) for status in operation["responses"]} == expected


def test_every_method_is_described_and_no_other(description):
    about = ("servers", "parameters")
    described = {path: {key for key in item if key not in about} for path, item in description["paths"].items()}
    assert described == {path: set(found) for path, found in CONTRACT.items()}


def test_overload_tells_when_to_try_again(description):
    assert "Retry-After" in description["components"]["responses"]["Overloaded"]["headers"]


def test_every_resource_of_the_daemon_is_described(description):
    sources = [path.read_text() for path in Path(handlers.__path__[0]).glob("*.py")]
    routes = set(re.findall(r'Route\("([^"]+)"', "".join(sources)))
    assert routes - {"/metrics"} == set(description["paths"]) == set(CONTRACT), "/metrics has a listener of its own"


@pytest.mark.parametrize("status", sorted({403, 405, 503} | ANYWHERE))
def test_status_of_any_request_is_in_the_reference(status):
    text = (openapi.DESCRIPTION.parent / "http-api.md").read_text()
    assert re.search(rf"^\| ([0-9]+, )*{status}(, [0-9]+)* \|", text, re.MULTILINE)


def test_narrowed_description_differs_where_it_is_said_and_nowhere_else(description):
    narrowed = openapi_narrowed.narrowed(description)
    del narrowed["components"]["schemas"]["NewTicket"]
    ticket = {"$ref": "#/components/schemas/Ticket"}
    _part(narrowed, "paths", "/tickets/{id}", "put", "requestBody", "content", "application/json")["schema"] = ticket
    for narrowing in openapi_narrowed.NARROWINGS:
        *keys, last = narrowing.path
        if "NewTicket" in keys:
            continue
        assert _part(narrowed, *keys)[last] == narrowing.part
        published = _part(description, *keys)
        assert published.get(last) != narrowing.part, f"nothing is narrowed: {narrowing.what}"
        if last in published:
            _part(narrowed, *keys)[last] = published[last]
        else:
            del _part(narrowed, *keys)[last]
    assert narrowed == description


def _part(document: Any, *keys: str) -> Any:
    for key in keys:
        document = document[key]
    return document


@pytest.mark.system
@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")
def test_daemon_does_what_the_description_says(tmp_path):
    if not openapi.program().exists():
        pytest.skip("not installed: schemathesis")
    done = subprocess.run(
        [sys.executable, "-m", "conformance.openapi", "--examples=5", "--seed=1", "--phases=coverage,fuzzing"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "not tried: " in done.stdout
