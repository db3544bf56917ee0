# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon does what its OpenAPI description says: a short form of `make fuzz`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance import openapi
from ovirt_imageio.daemon import handlers

TOOLS = Path(openapi.__file__).parent.parent

# What clients rely on: for each resource and method the statuses that have a meaning of their own.
CONTRACT = {
    "/images/{id}": {
        "options": {200, 403},
        "get": {200, 206, 403, 416},
        "head": {200, 206, 403, 416},
        "put": {200, 400, 403, 411, 416, 500},
        "patch": {200, 400, 403, 416, 500},
    },
    "/images/{id}/extents": {"get": {200, 400, 403, 404}},
    "/images/{id}/checksum": {"get": {200, 400, 403}},
    "/images/{id}/checksum/algorithms": {"get": {200}},
    "/info/": {"get": {200}},
    "/tickets/{id}": {
        "get": {200, 404},
        "put": {200, 400, 409, 413},
        "patch": {200, 400, 404},
        "delete": {204, 409},
    },
    "/tickets/": {"delete": {204}},
    "/status": {"get": {200}},
    "/profile/": {"get": {200}, "post": {200, 400, 500}},
}

# What any request may be answered, whatever it is for.
ANYWHERE = {405, 408, 414, 417, 431, 501, 503}


@pytest.fixture(scope="module")
def description() -> Any:
    yaml = pytest.importorskip("yaml", reason="not installed: PyYAML")
    return yaml.safe_load(openapi.DESCRIPTION.read_text())


@pytest.mark.parametrize(("path", "method"), [(path, method) for path, found in CONTRACT.items() for method in found])
def test_every_status_of_the_contract_is_described(description, path, method):
    described = {int(status) for status in description["paths"][path][method]["responses"]}
    assert CONTRACT[path][method] <= described


def test_every_resource_of_the_daemon_is_described(description):
    sources = [path.read_text() for path in Path(handlers.__path__[0]).glob("*.py")]
    routes = set(re.findall(r'Route\("([^"]+)"', "".join(sources)))
    assert routes - {"/metrics"} == set(description["paths"]) == set(CONTRACT), "/metrics has a listener of its own"


@pytest.mark.parametrize("status", sorted(ANYWHERE))
def test_status_of_any_request_is_in_the_reference(status):
    text = (openapi.DESCRIPTION.parent / "http-api.md").read_text()
    assert re.search(rf"^\| ([0-9]+, )*{status}(, [0-9]+)* \|", text, re.MULTILINE)


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
