# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""An image that becomes longer under its ticket is told as long as it is at each request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imageio_testing.serving import Service
from ovirt_imageio.common import linux

SIZE = 1 << 20
LONG = 200_000  # more than the loop serves by itself


@pytest.fixture(params=["local", "network"])
def service(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service with a file of 5000 bytes, on this host's file system or on one that other hosts change."""
    if request.param == "network":
        monkeypatch.setattr(linux, "is_local", lambda fd: False)
    (tmp_path / "disk").write_bytes(b"x" * 5000)
    with Service(tmp_path) as service:
        service.add_ticket(url=f"file://{tmp_path / 'disk'}", size=SIZE)
        yield service


def total_of_ten(client, first: int) -> str | None:
    """Content-Range of a small read."""
    return client.request("GET", "/images/t", headers=[("Range", f"bytes={first}-{first + 9}")]).header("Content-Range")


def test_repeated_small_read_tells_the_new_total(service: Service) -> None:
    with service.client() as reader, service.client() as writer:
        for first in 0, 10, 20:
            assert total_of_ten(reader, first) == f"bytes {first}-{first + 9}/5000"
        fields = [("Content-Range", "bytes 5000-9999/*")]
        assert writer.request("PUT", "/images/t", headers=fields, body=b"y" * 5000).status == 200
        for first in 30, 40, 9990:
            assert total_of_ten(reader, first) == f"bytes {first}-{first + 9}/10000"


@pytest.mark.parametrize("more", [100, LONG])
def test_what_another_program_adds_is_served(service: Service, tmp_path: Path, more: int) -> None:
    with service.client() as client:
        assert client.request("GET", "/images/t").body == b"x" * 5000
        with open(tmp_path / "disk", "ab") as f:
            f.write(b"z" * more)
        size = 5000 + more
        assert client.request("HEAD", "/images/t").header("Content-Length") == str(size)
        assert client.request("GET", "/images/t").body == b"x" * 5000 + b"z" * more
        assert total_of_ten(client, size - 10) == f"bytes {size - 10}-{size - 1}/{size}"
        assert sum(e["length"] for e in client.request("GET", "/images/t/extents").json()) == size
        whole = client.request("GET", f"/images/t/checksum?offset=0&length={size}")
        assert whole.status == 200
