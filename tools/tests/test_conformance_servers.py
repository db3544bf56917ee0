# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The conformance suite checks the server that its options name, or says in one line why it cannot."""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import conformance
from conformance.options import add_options, check, named_server
from conformance.server import Server
from conformance.storage import Grants, Volume, qemu_nbd

TOOLS = Path(conformance.__path__[0]).parent


def options(*args):
    parser = argparse.ArgumentParser()
    add_options(parser.add_argument)
    return parser.parse_args(args)


def said(*args):
    """Return the text of `check` for options that cannot be meant."""
    with pytest.raises(pytest.UsageError) as e:
        check(options(*args))
    return str(e.value)


def run(*args):
    return subprocess.run(
        [sys.executable, "-m", "conformance", *args],
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def listening(tmp_path):
    """A Unix socket that takes connections."""
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "sock"))
        s.listen()
        yield str(tmp_path / "sock")


def test_no_options_name_no_server(tmp_path):
    check(options("--folder", str(tmp_path), "--set", "daemon.splice=no", "--report", str(tmp_path / "new")))
    assert named_server(options(), tmp_path) is None


def test_options_name_a_server(tmp_path, listening):
    given = options("--control", listening, "--local", listening, "--version-expected", "1")
    check(given)
    server = named_server(given, tmp_path)
    assert (server.control, server.local, server.remote, server.version) == (listening, listening, "", "1")
    assert server.ways() == ["local"]


def test_at_sign_names_an_abstract_socket(tmp_path):
    assert named_server(options("--control", "/c", "--local", "@name"), tmp_path).local == "\0name"


@pytest.mark.parametrize(
    "args",
    [
        ["--remote", "https://localhost:54322"],
        ["--remote", "https://localhost:54322", "--cafile", "ca.pem"],
        ["--local", "@/org/ovirt/imageio"],
        ["--version-expected", "3.0.0"],
    ],
)
def test_server_without_its_control_service_is_refused(args):
    """Else a daemon of this checkout would be checked, and pass."""
    names = ", ".join(name for name in args if name.startswith("--"))
    assert said(*args).startswith(f"{names}: expected --control as well")


def test_control_service_alone_is_refused(listening):
    assert said("--control", listening) == f"--control {listening!r}: expected --remote or --local as well, or both"


def test_settings_of_another_server_are_refused(listening):
    assert said("--control", listening, "--local", listening, "--set", "daemon.splice=no").startswith("--set: expected")


@pytest.mark.parametrize(
    "value", ["", "localhost:54322", "https://localhost", "https://localhost:1/images", "ftp://a:1"]
)
def test_remote_is_a_url_with_a_port(listening, value):
    text = said("--control", listening, "--remote", value)
    assert text == f"--remote {value!r}: expected a URL with a port and without a path, like https://localhost:54322"


@pytest.mark.parametrize("value", ["https://localhost:54324", "http://localhost", "http://localhost:1/tickets"])
def test_control_is_a_socket_or_a_url_with_a_port(listening, value):
    text = said("--control", value, "--local", listening)
    assert text == f"--control {value!r}: expected a Unix socket, or a URL like http://localhost:54324"


@pytest.mark.parametrize("name", ["--control", "--local"])
def test_socket_that_is_not_there_is_named(listening, name):
    services = {"--control": listening, "--local": listening, name: "/nowhere"}
    text = said(*(word for pair in services.items() for word in pair))
    assert text.startswith(f"{name} '/nowhere': No such file or directory; expected the {name[2:]} service")


def test_server_that_does_not_listen_is_named(listening):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
        text = said("--control", listening, "--remote", url)
    assert text.startswith(f"--remote {url!r}: Connection refused; expected a running server")


def test_cafile_is_of_certificates(tmp_path, listening):
    server = ["--control", listening, "--remote", "https://localhost:1"]
    assert said(*server, "--cafile", "/nowhere").startswith("--cafile '/nowhere': No such file or directory; expected")
    empty = tmp_path / "empty"
    empty.touch()
    text = said(*server, "--cafile", str(empty))
    assert text.startswith(f"--cafile '{empty}': ")
    assert text.endswith("; expected a PEM file of certificates")


@pytest.mark.parametrize("services", [["--local", "/local"], ["--remote", "http://localhost:1"]])
def test_cafile_without_tls_is_refused(services):
    text = said("--control", "/control", *services, "--cafile", "ca.pem")
    assert text == "--cafile 'ca.pem': expected --remote with an https URL as well"


@pytest.mark.parametrize("value", ["/nowhere", __file__, ""])
def test_folder_is_there(value):
    assert said("--folder", value) == f"--folder {value!r}: expected a folder that exists and can be written to"


def test_report_can_be_written():
    text = said("--report", "/nowhere/report.json")
    assert text == "--report '/nowhere/report.json': expected a file in a folder that exists"


def test_server_without_remote_service_is_no_origin(tmp_path):
    server = Server(remote="", cafile=None, local="/local", control="/control", folder=tmp_path)
    with pytest.raises(pytest.skip.Exception, match="the server has no remote service to be an origin"):
        Grants(server).add(Volume("http", tmp_path / "image", "file:///image", 512))


@pytest.mark.system
@pytest.mark.skipif(shutil.which("qemu-nbd") is None, reason="not installed: qemu-nbd")
def test_server_of_another_user_can_reach_an_image(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(bytes(512))
    with qemu_nbd(image) as url:
        sock = Path(url[len("nbd:unix:") :])
        assert sock.parent == tmp_path
        assert sock.stat().st_mode & 0o777 == 0o777


def test_help_begins_with_the_suites_own_options():
    done = run("--help")
    assert done.returncode == 0
    text = done.stdout
    ours = text[: text.index("All options of pytest:")]
    for name in ("--control", "--remote", "--cafile", "--local", "--folder", "--report", "--peer", "--table"):
        assert f"\n  {name} " in ours
    assert conformance.__doc__.strip() in ours


def test_suite_says_it_in_one_line(tmp_path):
    """Before any rule is tried, also where they are tried side by side."""
    done = run("--control", "/nowhere", "--local", "/nowhere", "--folder", str(tmp_path), "-n", "2")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = done.stdout.strip().split("\n")
    assert line.startswith("ERROR: --control '/nowhere': No such file or directory; expected the control service")
    assert list(tmp_path.iterdir()) == []
