# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""An image that becomes smaller under its ticket fails like storage, not like a bug."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imageio_testing.serving import Service

SIZE = 4 << 20
LEFT = 4096
ZERO = json.dumps({"op": "zero", "offset": LEFT, "size": 10}).encode()


@pytest.fixture
def shrunk(tmp_path: Path) -> Iterator[Service]:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * SIZE)
    with Service(tmp_path) as service:
        image = service.add_ticket(url=f"file://{disk}", size=SIZE)
        with service.client() as client:
            assert client.request("GET", image, headers=[("Range", "bytes=0-9")]).status == 206
        os.truncate(disk, LEFT)
        yield service


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("GET", "", {"headers": [("Range", f"bytes={LEFT}-{LEFT + 9}")]}),
        ("GET", "", {}),
        ("GET", "/extents", {}),
        ("GET", "/checksum", {}),
    ],
)
def test_request_past_the_end_is_told_the_size(
    shrunk: Service, caplog: pytest.LogCaptureFixture, method: str, path: str, options: dict[str, Any]
) -> None:
    with caplog.at_level(logging.INFO), shrunk.client() as client:
        answer = client.request(method, f"/images/t{path}", **options)
    assert answer.status == 416
    assert answer.header("Content-Range") == f"bytes */{LEFT}"
    assert f"the image of {LEFT} bytes" in answer.text
    assert "Traceback" not in caplog.text
    assert "became smaller" in shrunk.show()["last_error"]["text"]


def test_next_request_knows_the_size(shrunk: Service) -> None:
    with shrunk.client() as client:
        assert client.request("GET", "/images/t/checksum").status == 416
        assert client.request("GET", "/images/t/checksum").status == 200
        assert client.request("GET", "/images/t").body == b"x" * LEFT


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("PUT", {"headers": [("Content-Range", f"bytes {LEFT}-{LEFT + 9}/*")], "body": b"y" * 10}),
        ("PUT", {"body": b"y" * SIZE}),
        ("PATCH", {"body": ZERO}),
    ],
)
def test_file_grows_again(shrunk: Service, method: str, options: dict[str, Any]) -> None:
    with shrunk.client() as client:
        assert client.request(method, "/images/t", **options).status == 200


def test_what_is_left_can_be_read(shrunk: Service) -> None:
    with shrunk.client() as client:
        assert client.request("GET", "/images/t", headers=[("Range", "bytes=0-99")]).body == b"x" * 100
