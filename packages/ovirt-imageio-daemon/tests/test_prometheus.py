# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Prometheus scrapes the daemon while it serves."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.ports import held_port

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="not installed: prometheus"),
]

PATIENCE = 60.0
SIZE = 64 << 20


class Prometheus:
    """A Prometheus on a port that scrapes one address, five times a second."""

    def __init__(self, folder: Path, port: int, target: str) -> None:
        self._address = f"127.0.0.1:{port}"
        config = folder / "prometheus.json"  # YAML, like all JSON
        jobs = [{"job_name": "imageio", "static_configs": [{"targets": [target]}]}]
        config.write_text(json.dumps({"global": {"scrape_interval": "200ms"}, "scrape_configs": jobs}))
        self._log = folder / "prometheus.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=log,
            )

    def query(self, text: str) -> float | None:
        """The value of a query that has one; None while it has none."""
        url = f"http://{self._address}/api/v1/query?" + urllib.parse.urlencode({"query": text})
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            result = json.load(response)["data"]["result"]
            return float(result[0]["value"][1]) if result else None
        return None

    def wait_for(self, text: str, value: float) -> None:
        """Wait until a query has this value; nothing but asking tells when it was scraped."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.query(text)) != value:
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"{text} is {found}, not {value}"
            time.sleep(0.05)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[tuple[Daemon, Prometheus]]:
    config = {"metrics": {"enable": True, "port": 0}}
    with held_port() as port, Daemon(tmp_path, tls=False, config=config) as daemon:
        match = re.search(r"metrics on '(.*?)'", daemon.state)
        assert match
        server = Prometheus(tmp_path, port, match[1])
        try:
            yield daemon, server
        finally:
            server.process.terminate()
            server.process.wait(30)


def test_prometheus_knows_what_a_transfer_moved(prometheus: tuple[Daemon, Prometheus], tmp_path: Path) -> None:
    daemon, server = prometheus
    disk = tmp_path / "disk.raw"
    with open(disk, "wb") as f:
        f.truncate(SIZE)
    ticket_id = daemon.add_ticket(f"file://{disk}", size=SIZE)
    with HttpPeer.unix(daemon.local_socket) as peer:
        # A client that has not read yet: the transfer runs for as long as we like.
        peer.send(request_head("GET", f"/images/{ticket_id}"))
        server.wait_for('imageio_transfers{state="active"}', 1)
        assert len(peer.response().body) == SIZE
        server.wait_for('imageio_bytes_total{kind="read"}', SIZE)
        server.wait_for('imageio_operations_total{kind="read", result="ok"}', 1)
        assert server.query("imageio_uptime_seconds") is not None
