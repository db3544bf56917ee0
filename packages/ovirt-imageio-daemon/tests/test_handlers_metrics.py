# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")

SIZE = 1 << 20
Samples = "dict[tuple[str, tuple[tuple[str, str], ...]], float]"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    config = {"metrics": {"enable": True, "port": 0}}
    with Daemon(tmp_path, tls=False, config=config) as daemon:
        yield daemon


def address(daemon: Daemon) -> str:
    match = re.search(r"metrics on '(.*?)'", daemon.state)
    assert match, daemon.state
    return f"http://{match[1]}/metrics"


def scrape(daemon: Daemon) -> Samples:
    with urllib.request.urlopen(address(daemon), timeout=30) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        text = response.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_was_done(daemon: Daemon, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(SIZE))
    before = scrape(daemon)
    assert before["imageio_transfers", (("state", "idle"),)] == 0
    assert before["imageio_workers_limit", ()] == 64
    ticket_id = daemon.add_ticket(f"file://{disk}", size=SIZE)
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert peer.request("GET", f"/images/{ticket_id}").status == 200
        assert peer.request("GET", f"/images/{ticket_id}", headers=[("Range", "bytes=0-99")]).status == 206
        assert peer.request("GET", "/images/none").status == 403
        after = scrape(daemon)
        assert after["imageio_connections", (("state", "idle"),)] == 1
    assert after["imageio_transfers", (("state", "idle"),)] == 1
    assert after["imageio_operations_total", (("kind", "read"), ("result", "ok"))] == 2
    assert after["imageio_bytes_total", (("kind", "read"),)] == SIZE + 100
    assert after["imageio_operation_duration_seconds_count", (("kind", "read"),)] == 2
    assert after["imageio_operation_duration_seconds_bucket", (("kind", "read"), ("le", "+Inf"))] == 2
    assert after["imageio_responses_total", (("service", "local"), ("status", "206"))] == 1
    assert after["imageio_refusals_total", (("service", "local"), ("status", "403"))] == 1
    assert not any(ticket_id in str(key) for key in after)


def test_metrics_count_errors_by_kind(daemon: Daemon, tmp_path: Path) -> None:
    ticket_id = daemon.add_ticket(f"nbd:unix:{tmp_path}/gone", size=SIZE)
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert peer.request("GET", f"/images/{ticket_id}").status == 500
    assert scrape(daemon)["imageio_errors_total", (("kind", "FileNotFoundError"),)] == 1


def test_metrics_listener_serves_nothing_else(daemon: Daemon) -> None:
    ticket_id = daemon.add_ticket("file:///dev/null", size=0)
    for path in ("/tickets/x", "/status", "/info/", f"/images/{ticket_id}"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address(daemon).replace("/metrics", path), timeout=30)


def test_images_service_serves_no_metrics(daemon: Daemon) -> None:
    with HttpPeer.unix(daemon.local_socket) as peer:
        assert peer.request("GET", "/metrics").status == 404


def test_missing_library_is_one_line_naming_key_and_package(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.conf").write_text(
        f"""
[daemon]
run_dir = {tmp_path}
drop_privileges = false
[tls]
enable = false
[remote]
port = 0
[local]
enable = false
[control]
socket = {tmp_path}/control
[metrics]
enable = true
port = 0
[handlers]
keys = stderr
[logger_root]
handlers = stderr
level = ERROR
"""
    )
    hide = "import sys; sys.modules['prometheus_client'] = None; from ovirt_imageio.daemon.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", hide + "sys.exit(main())", "-c", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "[metrics] enable = true: expected false, or the Python package prometheus_client" in done.stderr
    assert "Traceback" not in done.stderr


DASHBOARD = Path(__file__).parents[3] / "docs" / "guides" / "grafana-dashboard.json"


@pytest.mark.skipif(not DASHBOARD.exists(), reason="not in a checkout")
def test_dashboard_asks_for_metrics_that_are_served(daemon: Daemon) -> None:
    served = {name for name, _ in scrape(daemon)}
    with urllib.request.urlopen(address(daemon), timeout=30) as response:
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", response.read().decode(), re.MULTILINE))
    histograms = {f"{name}_bucket" for name, kind in types.items() if kind == "histogram"}
    asked = set(re.findall(r"\b(?:imageio|process)_\w+", DASHBOARD.read_text()))
    assert asked
    assert asked <= served | set(types) | histograms
