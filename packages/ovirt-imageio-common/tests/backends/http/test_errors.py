# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import copy
import errno
import pickle
import socket
import ssl
import traceback

import pytest

from imageio_testing.imageserver import Image, ScriptedServer
from ovirt_imageio.common.backends.http import HttpBackend, errors
from ovirt_imageio.common.errors import ConnectionTimeout, ImageioError, ServerGone


def failed_verification() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.library, error.reason = "SSL", "CERTIFICATE_VERIFY_FAILED"
    error.verify_code, error.verify_message = 10, "certificate has expired"
    return error


EVERY = [
    errors.Unreachable("nowhere", cause=OSError(errno.EHOSTUNREACH, "No route to host")),
    errors.NotListening("nobody", cause=ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")),
    errors.HandshakeBroken("broken"),
    errors.NoGreeting("silent"),
    errors.UnknownHost("who?", cause=socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
    errors.NoTls("plain"),
    errors.Untrusted("expired", cause=failed_verification()),
    errors.ConnectionLost("lost", cause=BrokenPipeError(errno.EPIPE, "Broken pipe")),
    errors.BodyCut("cut"),
    errors.WritesLost("restarted"),
    errors.SourceEnded("ended"),
    errors.ServerSilent("silent"),
    errors.NoCertificates("none"),
    errors.NotHttp("SSH"),
    errors.refusal("GET", 416, "Range Not Satisfiable", "the end is at 5"),
    errors.refusal("GET", 403, "Forbidden", "no such ticket"),
    errors.refusal("GET", 405, "Method Not Allowed", ""),
]


def test_every_class_is_among_them():
    public = {value for name, value in vars(errors).items() if isinstance(value, type) and name[0] != "_"}
    own = {kind for kind in public if kind.__module__ == errors.__name__}
    assert own == {type(error) for error in EVERY}


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_error_is_the_same_after_a_copy(error, way):
    other = way(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert other.args == error.args
    assert vars(other) == vars(error)
    if isinstance(error, OSError):
        assert (other.errno, other.strerror) == (error.errno, error.strerror)


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_text_is_the_message_alone(error):
    shown = traceback.format_exception_only(type(error), error)
    assert shown == [f"{type(error).__module__}.{type(error).__qualname__}: {error}\n"]
    assert "Errno" not in str(error)
    assert isinstance(error, ImageioError)


@pytest.mark.parametrize(
    ("cause", "kind", "number"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), errors.NotListening, errno.ECONNREFUSED),
        (ConnectionResetError(errno.ECONNRESET, "reset"), errors.HandshakeBroken, errno.ECONNRESET),
        (ServerGone("it left"), errors.HandshakeBroken, None),
        (ConnectionTimeout("silent"), errors.NoGreeting, None),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), errors.UnknownHost, socket.EAI_NONAME),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), errors.Unreachable, errno.ENETUNREACH),
    ],
)
def test_failure_to_connect_keeps_the_systems_class_and_number(cause, kind, number):
    error = errors.unreachable("cannot connect to host:1", cause)
    assert type(error) is kind
    assert error.errno == number
    assert str(error).startswith("cannot connect to host:1: ")


def test_refusal_has_the_names_of_2x():
    error = errors.refusal("GET /images/…", 416, "Range Not Satisfiable", "the end is at 5\n")
    assert (error.code, error.message) == (416, "the end is at 5")


def test_certificate_error_tells_what_ssl_tells():
    error = errors.Untrusted("the certificate was not accepted", cause=failed_verification())
    assert (error.verify_code, error.verify_message) == (10, "certificate has expired")
    assert (error.library, error.reason) == ("SSL", "CERTIFICATE_VERIFY_FAILED")


def test_longer_message_keeps_the_rest():
    error = errors.Untrusted("expired", cause=failed_verification()).extended("; nor directly")
    assert str(error) == "expired; nor directly"
    assert error.verify_code == 10
    assert error.errno == 1


def test_broken_connection_is_told_where_it_was_used_and_without_our_plumbing():
    image = Image(bytearray(16))
    image.do_get = lambda got, query: None
    with ScriptedServer(image) as server, HttpBackend(server.url) as backend:
        with pytest.raises(errors.ConnectionLost) as e:
            backend.read_into(0, bytearray(16))
    shown = "".join(traceback.format_exception(type(e.value), e.value, e.value.__traceback__))
    assert "read_into" in shown
    assert "Carried" not in shown
    assert "requests.exceptions" not in shown


def test_refused_connection_is_chained_to_the_systems_error():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError) as e:
            HttpBackend(f"http://127.0.0.1:{s.getsockname()[1]}/images/x")
    assert isinstance(e.value, errors.Unreachable)
    assert isinstance(e.value.__cause__, ConnectionRefusedError)
