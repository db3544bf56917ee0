# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socketserver
import tempfile
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovirt_imageio import admin
from ovirt_imageio.admin import cli
from ovirt_imageio.daemon.config import Config
from ovirt_imageio.daemon.options import Control
from ovirt_imageio.daemon.version import __version__ as daemon_version

TICKET = {"uuid": "a/b", "size": 1, "ops": ["read"], "timeout": 3, "url": "file:///x"}


class FakeDaemon(socketserver.ThreadingUnixStreamServer):
    """Records requests and gives prepared answers: (status, body), or None to hang up."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, FakeHandler)
        self.requests: list[tuple[str, str, bytes]] = []
        self.answers: list[tuple[int, bytes] | None] = []
        self.connections = 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a client, who may leave at any time."""
        with contextlib.suppress(ConnectionError):
            super().finish_request(request, client_address)


class FakeHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer goes as one piece: who has it may be gone when more is written.
    wbufsize = -1
    server: FakeDaemon

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def address_string(self) -> str:
        return "local"

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, body))
        answer = self.server.answers.pop(0) if self.server.answers else (200, b"")
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST = _answer  # noqa: N815


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with tempfile.TemporaryDirectory(prefix="io-") as folder:
        with FakeDaemon(folder + "/sock") as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield server
            server.shutdown()
            thread.join()


@pytest.fixture
def cfg(daemon: FakeDaemon) -> Config:
    return Config(control=Control(socket=str(daemon.server_address)))


@pytest.fixture
def client(cfg: Config) -> Iterator[admin.Client]:
    with admin.Client(cfg) as c:
        yield c


# The client.


def test_each_call_is_one_request_on_one_connection(daemon: FakeDaemon, client: admin.Client) -> None:
    daemon.answers = [(200, b""), (200, b'{"uuid": "a/b"}')]
    client.add_ticket(TICKET)
    assert client.get_ticket("a/b") == {"uuid": "a/b"}
    client.mod_ticket("a/b", {"timeout": 7})
    client.del_ticket("a/b")
    client.start_profile()
    client.stop_profile()
    assert [(method, path) for method, path, _ in daemon.requests] == [
        ("PUT", "/tickets/a%2Fb"),
        ("GET", "/tickets/a%2Fb"),
        ("PATCH", "/tickets/a%2Fb"),
        ("DELETE", "/tickets/a%2Fb"),
        ("POST", "/profile/?run=y"),
        ("POST", "/profile/?run=n"),
    ]
    assert json.loads(daemon.requests[0][2]) == TICKET
    assert json.loads(daemon.requests[2][2]) == {"timeout": 7}
    assert daemon.connections == 1


def test_refusal_has_code_and_message(daemon: FakeDaemon, client: admin.Client) -> None:
    daemon.answers = [(404, b"No such ticket\n"), (200, b"{}")]
    with pytest.raises(admin.ServerError) as e:
        client.get_ticket("x")
    assert (e.value.code, e.value.message) == (404, "No such ticket")
    assert client.get_ticket("x") == {}


def test_empty_id_is_not_the_path_of_all_tickets(daemon: FakeDaemon, client: admin.Client) -> None:
    for call in (client.get_ticket, client.del_ticket, lambda ticket_id: client.mod_ticket(ticket_id, {"timeout": 1})):
        with pytest.raises(admin.ClientError, match="non-empty"):
            call("")
    assert not daemon.requests


def test_connection_closed_while_idle_is_opened_again(daemon: FakeDaemon, client: admin.Client) -> None:
    daemon.answers = [(200, b""), None, (200, b"")]
    client.del_ticket("x")
    client.del_ticket("x")
    assert len(daemon.requests) == 3
    assert daemon.connections == 2


def test_connection_closed_without_any_answer_is_an_error(daemon: FakeDaemon, client: admin.Client) -> None:
    daemon.answers = [None, (200, b"")]
    with pytest.raises(admin.ClientError, match="closed the connection"):
        client.del_ticket("x")
    client.del_ticket("x")


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense"])
def test_answer_that_is_no_object_is_an_error(daemon: FakeDaemon, client: admin.Client, body: bytes) -> None:
    daemon.answers = [(200, body)]
    with pytest.raises(admin.ClientError, match="JSON"):
        client.get_ticket("x")


@pytest.mark.parametrize("ticket", [{}, {"uuid": 7}, {"uuid": ""}, []])
def test_ticket_without_id_is_refused_before_it_is_sent(daemon: FakeDaemon, client: admin.Client, ticket: Any) -> None:
    with pytest.raises(admin.ClientError, match="uuid"):
        client.add_ticket(ticket)
    assert daemon.requests == []


def test_daemon_not_running_is_told_with_what_to_do(tmp_path: Path) -> None:
    cfg = Config(control=Control(socket=str(tmp_path / "sock")))
    with admin.Client(cfg) as c:
        for _ in range(2):
            with pytest.raises(admin.ClientError, match=r"sock: No such file.* running\?"):
                c.del_ticket("x")


def test_tcp_port_where_nobody_listens_is_told() -> None:
    with admin.Client(Config(control=Control(transport="tcp", port=1))) as c:
        with pytest.raises(admin.ClientError, match=r"127\.0\.0\.1.*refused.*running\?"):
            c.del_ticket("x")


def test_disabled_control_service_is_told() -> None:
    with admin.Client(Config(control=Control(enable=False))) as c:
        with pytest.raises(admin.ClientError, match="disabled"):
            c.del_ticket("x")


@pytest.mark.parametrize("transport", ["unix", "UNIX"])
def test_configuration_of_a_program_needs_no_more_than_the_address(daemon: FakeDaemon, transport: str) -> None:
    control = types.SimpleNamespace(transport=transport, socket=daemon.server_address)
    with admin.Client(types.SimpleNamespace(control=control)) as c:
        c.del_ticket("x")
    control = types.SimpleNamespace(transport="tcp", port=1)
    with admin.Client(types.SimpleNamespace(control=control)) as c:
        with pytest.raises(admin.ClientError, match="refused"):
            c.del_ticket("x")


def test_unknown_transport_is_named() -> None:
    control = types.SimpleNamespace(transport="udp", socket="", port=1)
    with pytest.raises(ValueError, match="'udp'"):
        admin.Client(types.SimpleNamespace(control=control))


def test_errors_read_as_those_of_2x() -> None:
    assert str(admin.ServerError(404, "No such ticket")) == "Server error: 404 No such ticket"
    assert isinstance(admin.ServerError(404, ""), admin.Error)
    assert admin.__version__ == daemon_version


def test_silence_ends_in_an_error(cfg: Config, daemon: FakeDaemon) -> None:
    daemon.shutdown()  # connections are accepted by the kernel and never answered
    with admin.Client(cfg, timeout=0.01) as c:
        with pytest.raises(admin.ClientError, match="No answer"):
            c.start_profile()


def test_load_config_names_the_file_at_fault(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.conf").write_text("[control]\ntransport = udp\n")
    with pytest.raises(ValueError, match=r"a\.conf: \[control\] transport = udp"):
        admin.load_config(str(tmp_path))


# The command.


@pytest.fixture
def conf_dir(tmp_path: Path, daemon: FakeDaemon) -> str:
    (tmp_path / "conf.d").mkdir()
    text = f"[control]\nsocket = {daemon.server_address}\n"
    (tmp_path / "conf.d" / "99-test.conf").write_text(text)
    return str(tmp_path)


def test_commands_call_the_daemon(
    tmp_path: Path, conf_dir: str, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ticket.json").write_text(json.dumps(TICKET))
    assert cli.main(["add-ticket", "-c", conf_dir, str(tmp_path / "ticket.json")]) == 0
    daemon.answers = [(200, b'{"uuid": "a/b", "active": false}')]
    assert cli.main(["show-ticket", "-c", conf_dir, "a/b"]) == 0
    assert json.loads(capsys.readouterr().out) == {"uuid": "a/b", "active": False}
    assert cli.main(["mod-ticket", "-c", conf_dir, "a/b", "--timeout", "9"]) == 0
    assert cli.main(["del-ticket", "-c", conf_dir, "a/b"]) == 0
    assert cli.main(["start-profile", "-c", conf_dir]) == 0
    assert cli.main(["stop-profile", "-c", conf_dir]) == 0
    methods = [method for method, _, _ in daemon.requests]
    assert methods == ["PUT", "GET", "PATCH", "DELETE", "POST", "POST"]


def test_folder_of_the_configuration_may_come_before_the_command(conf_dir: str, daemon: FakeDaemon) -> None:
    assert cli.main(["-c", conf_dir, "del-ticket", "a"]) == 0
    assert cli.main(["--conf-dir", conf_dir, "del-ticket", "b"]) == 0
    assert cli.main(["-c", "/no/such", "del-ticket", "-c", conf_dir, "c"]) == 0
    assert [path for _, path, _ in daemon.requests] == ["/tickets/a", "/tickets/b", "/tickets/c"]


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["--version"])
    assert e.value.code == 0
    assert capsys.readouterr().out == f"ovirt-imageioctl {daemon_version}\n"


@pytest.mark.parametrize("argv", [[], ["-c", "/no/such"]])
def test_line_without_a_command_is_told_which_there_are(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    assert e.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        "ovirt-imageioctl: error: give a command, one of add-ticket, show-ticket, mod-ticket, del-ticket, "
        "list, status, start-profile, stop-profile"
    )


def test_refusal_is_one_line_and_status_1(
    conf_dir: str, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers = [(404, b"No such ticket\n")]
    assert cli.main(["show-ticket", "-c", conf_dir, "x"]) == 1
    assert capsys.readouterr().err == "ovirt-imageioctl: Server error: 404 No such ticket\n"


@pytest.mark.parametrize("command", [["show-ticket"], ["mod-ticket", "--timeout", "9"], ["del-ticket"]])
def test_empty_id_is_one_line_and_status_1(
    conf_dir: str, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert cli.main([*command, "-c", conf_dir, ""]) == 1
    assert capsys.readouterr().err == "ovirt-imageioctl: Invalid ticket id: expected a non-empty string\n"
    assert not daemon.requests


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, "No such file"), ("{", "not JSON"), ("[]", "expected a JSON object"), ("{}", "uuid")],
)
def test_bad_ticket_file_is_one_line_and_status_1(
    tmp_path: Path,
    conf_dir: str,
    text: str | None,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "ticket.json"
    if text is not None:
        path.write_text(text)
    assert cli.main(["add-ticket", "-c", conf_dir, str(path)]) == 1
    err = capsys.readouterr().err
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to any socket")
def test_permission_denied_says_what_to_do(
    conf_dir: str, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chmod(str(daemon.server_address), 0)
    assert cli.main(["del-ticket", "-c", conf_dir, "x"]) == 1
    assert "member of the daemon's group" in capsys.readouterr().err


def test_missing_configuration_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["del-ticket", "-c", str(tmp_path / "no"), "x"]) == 1
    assert "no configuration" in capsys.readouterr().err


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        cli.main(["mod-ticket", "x"])
    assert e.value.code == 2
    assert "--timeout" in capsys.readouterr().err
