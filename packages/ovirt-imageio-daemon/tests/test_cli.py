# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon, public_command
from imageio_testing.pki import Pki, make_pki
from ovirt_imageio.daemon import binding, cli
from ovirt_imageio.daemon.version import __version__

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do that")


def write(tmp_path: Path, text: str) -> str:
    """Write a configuration, return its folder."""
    (tmp_path / "conf.d").mkdir(exist_ok=True)
    (tmp_path / "conf.d" / "99-test.conf").write_text(text)
    return str(tmp_path)


def serve(tmp_path: Path, text: str, *args: str) -> tuple[int, str]:
    """Start a daemon that cannot start; return its status and what it said."""
    common = (
        "[handlers]\nkeys = stderr\n[logger_root]\nlevel = ERROR\nhandlers = stderr\n[daemon]\ndrop_privileges = no\n"
    )
    command = [sys.executable, "-m", "ovirt_imageio.daemon", "-c", write(tmp_path, common + text)]
    done = subprocess.run([*command, *args], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


# Commands that serve nothing.


def test_show_config_prints_the_effective_values_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf_dir = write(tmp_path, "[remote]\nport = 1234\n[unknown]\nx = 1\n")
    assert cli.main(["-c", conf_dir, "--show-config"]) == 0
    out, err = capsys.readouterr()
    shown = json.loads(out)
    assert shown["remote"]["port"] == 1234
    assert shown["control"]["transport"] == "unix"
    assert shown["local"]["socket"] == "\0/org/ovirt/imageio"
    assert shown["logger_root"]["level"] == "INFO"
    assert err == ""


def test_check_config_tells_what_is_unknown_and_what_is_wrong(
    tmp_path: Path, pki: Pki, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = f"[tls]\nkey_file = {pki.key_file}\ncert_file = {pki.cert_file}\nbogus = 1\n"
    assert cli.main(["-c", write(tmp_path, tls), "--check-config"]) == 0
    assert "warning" in capsys.readouterr().err
    past = [datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc) for year in (1999, 2000)]
    old = make_pki(tmp_path, not_before=past[0], not_after=past[1])
    tls = f"[tls]\nkey_file = {old.key_file}\ncert_file = {old.cert_file}\n"
    assert cli.main(["-c", write(tmp_path, tls), "--check-config"]) == 0
    assert f"warning: the certificate {old.cert_file} expired at 2000-01-01" in capsys.readouterr().err
    assert cli.main(["-c", write(tmp_path, "[tls]\nkey_file = /no/key\n"), "--check-config"]) == 1
    assert "/no/key" in capsys.readouterr().err
    assert cli.main(["-c", write(tmp_path, "[control]\nsocket = \\u0000/ctl\n"), "--check-config"]) == 1
    assert r"[control] socket = \u0000/ctl: expected the path" in capsys.readouterr().err
    assert cli.main(["-c", write(tmp_path, "[logger_root]\nlevel = LOUD\n"), "--check-config"]) == 1
    assert "[logger_root] level = LOUD: expected a level" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tls", "origin", "expected"),
    [
        ("", "/no/ca", "[backend_http] ca_file = /no/ca: expected a PEM file that can be read"),
        ("", "{folder}/empty", "[backend_http] ca_file = {folder}/empty: expected complete PEM certificates"),
        ("", "{folder}/fifo", "[backend_http] ca_file = {folder}/fifo: expected a PEM file, not a FIFO"),
        ("/no/ca", "", "[tls] ca_file = /no/ca: expected a PEM file that can be read"),
        ("/no/ca", "{good}", ""),
        ("", "", ""),
    ],
)
def test_certificates_for_origins_that_cannot_be_used_are_a_warning(
    tmp_path: Path, pki: Pki, capsys: pytest.CaptureFixture[str], tls: str, origin: str, expected: str
) -> None:
    """Most hosts have no proxied images, and start; the first such ticket failed without a word in advance."""
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    text = f"[tls]\nenable = no\nca_file = {tls}\n[backend_http]\nca_file = {origin}\n"
    places = {"folder": tmp_path, "good": pki.ca_file}
    assert cli.main(["-c", write(tmp_path, text.format(**places)), "--check-config"]) == 0
    warnings = capsys.readouterr().err
    assert expected.format(**places) in warnings
    assert warnings.endswith("; tickets with an https URL will fail\n") == bool(expected)


def test_daemon_warns_of_certificates_for_origins_that_cannot_be_used(tmp_path: Path) -> None:
    with Daemon(tmp_path, tls=False, config={"backend_http": {"ca_file": "/no/ca"}}) as daemon:
        assert "[backend_http] ca_file = /no/ca: expected a PEM file" in daemon.log


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["--version"])
    assert e.value.code == 0
    assert capsys.readouterr().out == f"ovirt-imageio {__version__}\n"


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["--bogus"])
    assert e.value.code == 2


# Mistakes that stop the start: status 1 and one line that names the culprit.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[remote]\nport = x\n", "99-test.conf: [remote] port = x: expected an integer"),
        ("[tls]\nkey_file = /no/key\n[remote]\nport = 0\n", "[tls] key_file = /no/key: expected a PEM file"),
        ("[remote]\nport = 0\n", "[tls] key_file = (empty)"),
        ("[tls]\nkey_file = /a\0b\n[remote]\nport = 0\n", r"[tls] key_file = /a\u0000b: expected text on one line"),
        ("[tls]\nenable=no\n[remote]\nport=0\n[local]\nsocket=/no/x\n", "[local] socket = /no/x: "),
        (
            "[tls]\nenable=no\n[remote]\nport=0\n[local]\nenable=no\n[control]\nsocket=/no/x\n",
            "[control] socket = /no/x: ",
        ),
        ("[handler_stderr]\nlevel = LOUD\n[tls]\nenable=no\n[remote]\nport=0\n", "LOUD"),
    ],
)
def test_mistake_is_one_line_and_status_1(tmp_path: Path, text: str, expected: str) -> None:
    status, err = serve(tmp_path, text)
    assert status == 1
    assert expected in err
    assert err.startswith("ovirt-imageio: ")
    assert err.count("\n") == 1


def test_missing_configuration_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-c", str(tmp_path / "no")]) == 1
    assert "no/conf.d: no configuration" in capsys.readouterr().err


def test_port_in_use_is_one_line(tmp_path: Path) -> None:
    with binding.bind_tcp("::", 0) as sock:
        port = sock.getsockname()[1]
        status, err = serve(tmp_path, f"[tls]\nenable = no\n[remote]\nport = {port}\n")
    assert status == 1
    assert f"[remote] port = {port}: expected a free TCP port" in err
    assert err.count("\n") == 1


@as_root
def test_unreadable_configuration_is_one_line() -> None:
    command = public_command()
    if command is None:
        pytest.skip("no interpreter that an unprivileged user may run")
    with tempfile.TemporaryDirectory(prefix="io-") as folder:
        os.chmod(folder, 0o755)
        write(Path(folder), "")
        os.chmod(Path(folder, "conf.d", "99-test.conf"), 0)
        nobody = {"user": 65534, "group": 65534, "extra_groups": []}
        done = subprocess.run(
            [*command, "-c", folder], capture_output=True, text=True, timeout=60, check=False, **nobody
        )
    assert done.returncode == 1
    assert "99-test.conf: cannot be read: Permission denied" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"uuid": "x"}', "size"),
        ('{"uuid": "x", "size": -1, "ops": ["read"], "timeout": 1, "url": "file:///x"}', "size"),
    ],
)
def test_bad_ticket_stops_the_start(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "ticket.json"
    if text is not None:
        path.write_text(text)
    status, err = serve(tmp_path, "[tls]\nenable = no\n[remote]\nport = 0\n", "-t", str(path))
    assert status == 1
    assert str(path) in err
    assert expected in err
    assert err.count("\n") == 1


def test_failure_to_start_is_in_the_log_file_too(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    text = (
        f'[handler_logfile]\nargs = ("{log}",)\n[daemon]\ndrop_privileges = no\n'
        "[tls]\nenable = no\n[remote]\nport = 0\n[local]\nsocket = /no/x\n"
    )
    command = [sys.executable, "-m", "ovirt_imageio.daemon", "-c", write(tmp_path, text)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Cannot start" in log.read_text()
    assert "[local] socket = /no/x" in log.read_text()


# A daemon that runs.


def test_second_daemon_on_the_same_socket_is_refused_and_the_first_unharmed(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with Daemon(tmp_path / "one", tls=False) as first:
        status, err = serve(
            tmp_path / "two",
            "[tls]\nenable = no\n[remote]\nport = 0\n[local]\nenable = no\n"
            f"[control]\nsocket = {first.control_socket}\n",
        )
        assert status == 1
        assert "another daemon listens there" in err
        ticket_id = first.add_ticket("file:///dev/null", size=0)
        assert first.ticket(ticket_id)["size"] == 0


def test_socket_of_a_killed_daemon_is_no_obstacle(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="io-") as folder:
        path = folder + "/control"
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(path)
        stale.close()
        with Daemon(tmp_path, tls=False, config={"control": {"socket": path}}) as daemon:
            daemon.add_ticket("file:///dev/null", size=0)


def test_ticket_of_the_command_line_is_served(tmp_path: Path) -> None:
    ticket = {"uuid": "t", "size": 0, "ops": ["read"], "timeout": 300, "url": "file:///dev/null"}
    path = tmp_path / "ticket.json"
    path.write_text(json.dumps(ticket))
    with Daemon(tmp_path, tls=False, args=["-t", str(path)]) as daemon:
        assert daemon.ticket("t")["ops"] == ["read"]


def test_unknown_keys_are_warned_about_in_the_log(tmp_path: Path) -> None:
    with Daemon(tmp_path, tls=False, config={"remote": {"bogus": 1}}) as daemon:
        daemon.wait_for_log("unknown key 'bogus' in [remote] ignored")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_an_idle_daemon_cleanly(tmp_path: Path, number: int) -> None:
    daemon = Daemon(tmp_path, tls=False)
    daemon.start()
    daemon.stop(number)


def test_process_runs_without_control_and_local(tmp_path: Path) -> None:
    config = {"control": {"enable": False}, "local": {"enable": False}}
    with Daemon(tmp_path, tls=False, config=config) as daemon:
        assert not os.path.exists(daemon.control_socket)
        assert not os.path.exists(daemon.local_socket)
