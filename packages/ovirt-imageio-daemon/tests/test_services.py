# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageio_testing.pki import Pki
from ovirt_imageio.daemon import binding
from ovirt_imageio.daemon.config import Config, ConfigError
from ovirt_imageio.daemon.http.loop import Loop
from ovirt_imageio.daemon.http.message import Request, Response
from ovirt_imageio.daemon.http.registry import Connections
from ovirt_imageio.daemon.http.router import Route
from ovirt_imageio.daemon.options import Control, Local, Remote, Tls
from ovirt_imageio.daemon.services import ControlService, LocalService, RemoteService, Service


async def hello(request: Request) -> Response:
    return Response(200, body=f"{request.service} {request.method}".encode())


ROUTES = [Route("/hello", {"GET": hello, "PUT": hello, "DELETE": hello})]


@contextlib.contextmanager
def serving(service: Service) -> Iterator[Service]:
    """Serve in a loop of its own."""
    loop = Loop()
    if isinstance(service, RemoteService):
        service.load_tls()
    service.bind()
    service.start(loop, ROUTES, connections=Connections(loop, 10))
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield service
    finally:
        loop.stop()
        thread.join()
        service.close()
        loop.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="io-") as name:
        yield Path(name)


def port_of(service: Service) -> int:
    return int(service.address.rpartition(":")[2])


def ask_unix(path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    client = http.client.HTTPConnection("localhost")
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.settimeout(10)
    client.sock.connect(path)
    return ask(client, method, **headers)


def ask_tcp(service: Service, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    client = http.client.HTTPConnection("localhost", port_of(service), timeout=10)
    return ask(client, method, **headers)


def ask(client: http.client.HTTPConnection, method: str, **headers: str) -> http.client.HTTPResponse:
    with contextlib.closing(client):
        client.request(method, "/hello", headers=headers)
        response = client.getresponse()
        response.text = response.read().decode()  # type: ignore[attr-defined]
        return response


# Remote.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_remote_serves_tls_on_both_ip_versions(pki: Pki, host: str) -> None:
    tls = Tls(key_file=pki.key_file, cert_file=pki.cert_file)
    with serving(RemoteService(Config(tls=tls, remote=Remote(port=0)))) as service:
        context = ssl.create_default_context(cafile=pki.ca_file)
        client = http.client.HTTPSConnection(host, port_of(service), context=context, timeout=10)
        assert ask(client, "GET").text == "remote GET"  # type: ignore[attr-defined]


def test_remote_serves_plain_http_where_tls_is_disabled() -> None:
    cfg = Config(tls=Tls(enable=False), remote=Remote(port=0))
    with serving(RemoteService(cfg)) as service:
        assert ask_tcp(service).getheader("Server", "").startswith("imageio/")


def test_remote_answers_plain_http_on_the_tls_port_with_400(pki: Pki) -> None:
    tls = Tls(key_file=pki.key_file, cert_file=pki.cert_file)
    with serving(RemoteService(Config(tls=tls, remote=Remote(port=0)))) as service:
        response = ask_tcp(service)
        assert response.status == 400
        assert "HTTPS" in response.text  # type: ignore[attr-defined]


def test_remote_lets_web_pages_in() -> None:
    cfg = Config(tls=Tls(enable=False), remote=Remote(port=0))
    with serving(RemoteService(cfg)) as service:
        response = ask_tcp(service, Origin="https://engine.example")
        assert response.status == 200
        assert response.getheader("Access-Control-Allow-Origin") == "*"


def test_remote_port_in_use_names_the_key() -> None:
    with binding.bind_tcp("::", 0) as sock:
        port = sock.getsockname()[1]
        cfg = Config(tls=Tls(enable=False), remote=Remote(port=port))
        with pytest.raises(ConfigError, match=rf"\[remote\] port = {port}: .*Address already in"):
            RemoteService(cfg).bind()


@pytest.mark.parametrize("host", ["192.0.2.1", "x" * 64])
def test_remote_host_that_is_not_ours_names_the_key(host: str) -> None:
    cfg = Config(tls=Tls(enable=False), remote=Remote(host=host, port=0))
    with pytest.raises(ConfigError, match=rf"\[remote\] host = {host}: expected an address"):
        RemoteService(cfg).bind()


# Local.


def test_local_path_admits_any_user(folder: Path) -> None:
    with serving(LocalService(Config(local=Local(socket=str(folder / "sock"))))) as service:
        assert stat.S_IMODE((folder / "sock").stat().st_mode) == 0o666
        assert ask_unix(service.address).text == "local GET"  # type: ignore[attr-defined]
    assert not (folder / "sock").exists()


def test_local_empty_socket_is_a_free_abstract_one() -> None:
    with serving(LocalService(Config(local=Local(socket="")))) as service:
        assert service.address.startswith("\0")
        assert ask_unix(service.address).status == 200


# Control.


def test_control_socket_admits_its_group_only(folder: Path) -> None:
    path = str(folder / "sock")
    with serving(ControlService(Config(control=Control(socket=path)))):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        # Over a Unix socket clients name any host, and no browser can come.
        assert ask_unix(path, Host="anything").status == 200
    assert not (folder / "sock").exists()


def test_control_socket_of_a_running_daemon_names_the_key(folder: Path) -> None:
    cfg = Config(control=Control(socket=str(folder / "sock")))
    with serving(ControlService(cfg)):
        with pytest.raises(ConfigError, match=r"\[control\] socket = .*another daemon listens"):
            ControlService(cfg).bind()


@pytest.fixture
def control_tcp() -> Iterator[ControlService]:
    cfg = Config(control=Control(transport="tcp", port=0))
    with serving(ControlService(cfg)) as service:
        assert isinstance(service, ControlService)
        yield service


def test_control_over_tcp_listens_on_localhost_only(control_tcp: ControlService) -> None:
    assert control_tcp.address.startswith("127.0.0.1:")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost:54324", "127.0.0.1", "[::1]:1", "[::1]"])
def test_control_over_tcp_takes_names_of_this_host(control_tcp: ControlService, host: str) -> None:
    assert ask_tcp(control_tcp, Host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "localhost:x", "[::2]"])
def test_control_over_tcp_refuses_other_names(control_tcp: ControlService, host: str) -> None:
    assert ask_tcp(control_tcp, Host=host).status == 400


def ask_without_host(sock: socket.socket, *fields: str) -> int:
    """Send HTTP/1.1 without a Host, and return the status."""
    with sock:
        sock.settimeout(10)
        sock.sendall("\r\n".join(["GET /hello HTTP/1.1", *fields, "", ""]).encode())
        response = http.client.HTTPResponse(sock)
        response.begin()
        return response.status


def connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def test_control_takes_requests_without_a_host(control_tcp: ControlService, folder: Path) -> None:
    assert ask_without_host(socket.create_connection(("127.0.0.1", port_of(control_tcp)))) == 200
    with serving(ControlService(Config(control=Control(socket=str(folder / "sock"))))) as service:
        assert ask_without_host(connect_unix(service.address)) == 200


@pytest.mark.parametrize("field", ["Host:", "Host: evil.example"])
def test_control_over_tcp_looks_at_a_host_that_is_there(control_tcp: ControlService, field: str) -> None:
    assert ask_without_host(socket.create_connection(("127.0.0.1", port_of(control_tcp))), field) == 400


def test_page_without_a_host_is_refused_by_control(control_tcp: ControlService) -> None:
    sock = socket.create_connection(("127.0.0.1", port_of(control_tcp)))
    assert ask_without_host(sock, "Origin: null") == 403


def test_other_services_want_a_host(folder: Path) -> None:
    with serving(LocalService(Config(local=Local(socket=str(folder / "sock"))))) as service:
        assert ask_without_host(connect_unix(service.address)) == 400
    with serving(RemoteService(Config(remote=Remote(host="127.0.0.1", port=0), tls=Tls(enable=False)))) as service:
        assert ask_without_host(socket.create_connection(("127.0.0.1", port_of(service)))) == 400


@pytest.mark.parametrize("origin", ["http://localhost", "null", "https://evil.example"])
def test_control_over_tcp_refuses_web_pages_without_cors(control_tcp: ControlService, origin: str) -> None:
    response = ask_tcp(control_tcp, Origin=origin)
    assert response.status == 403
    assert not [name for name, _ in response.getheaders() if "access-control" in name.lower()]


# Stopping.


def test_stopping_service_refuses_new_work(folder: Path) -> None:
    with serving(LocalService(Config(local=Local(socket=str(folder / "sock"))))) as service:
        service.refuse_new_work()
        response = ask_unix(service.address)
        assert response.status == 503
        assert response.getheader("Connection") == "close"


def test_stopping_control_still_shows_and_removes(folder: Path) -> None:
    path = str(folder / "sock")
    with serving(ControlService(Config(control=Control(socket=path)))) as service:
        service.refuse_new_work()
        assert ask_unix(path, "GET").status == 200
        assert ask_unix(path, "DELETE").status == 200
        assert ask_unix(path, "PUT").status == 503
