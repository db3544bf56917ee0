# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The examples of configuration say what the daemon understands."""

from __future__ import annotations

from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.pki import make_pki
from ovirt_imageio.daemon import config

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> config.Config:
    return config.load_files([str(EXAMPLES / name)])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.conf")), ids=lambda path: path.stem)
def test_example_has_no_unknown_keys(path: Path) -> None:
    cfg = config.load_files([str(path)])
    assert cfg.warnings == ()
    assert cfg.sources


def test_host_takes_tickets_by_its_unix_socket_only() -> None:
    cfg = load("host.conf")
    assert (cfg.control.transport, cfg.local.enable, cfg.tls.enable) == ("unix", True, True)


def test_engine_takes_tickets_over_tcp_and_serves_no_local_clients() -> None:
    cfg = load("engine.conf")
    assert (cfg.control.transport, cfg.control.port, cfg.local.enable) == ("tcp", 54324, False)
    assert cfg.backend_http.ca_file


def test_standalone_serves_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_pki(tmp_path)
    daemon = Daemon(tmp_path)
    conf_d = tmp_path / "daemon" / "conf.d"
    conf_d.mkdir(parents=True)
    (conf_d / "50-standalone.conf").write_text((EXAMPLES / "standalone.conf").read_text())
    with daemon:
        daemon.wait_for_log("50-standalone.conf")
        assert daemon.add_ticket("file:///dev/null", size=0)
