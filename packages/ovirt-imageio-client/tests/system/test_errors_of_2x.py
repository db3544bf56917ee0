# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The errors that the client of 2.5.1 raises; programs that catch them catch ours.

The same calls run in both, against the same servers. Each class of the standard library that
2.5.1 raises must be a base of what ours raises, unless the case says why not.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from imageio_testing import peer
from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.pki import make_pki
from imageio_testing.tables import check_table

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

SIZE = 1 << 20

PROGRAM = r"""
import io, json, sys, warnings
from ovirt_imageio import client
warnings.simplefilter("ignore")
ours = sys.argv[1] == "ours"
if ours:
    from ovirt_imageio.client import executor
    executor.Retry.pause = lambda self, failures: 0
results = []
for url, cafile, path, call in json.load(sys.stdin):
    try:
        exec(call)
        results.append(None)
    except Exception as e:
        kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(e).__mro__]
        results.append([kinds, getattr(e, "errno", None), getattr(e, "code", None)])
print(json.dumps(results))
"""

OPEN = "client.ImageioClient(url, cafile).close()"
OPEN_TLS = "client.ImageioClient(url.replace('http:', 'https:'), "
WITH = "with client.ImageioClient(url) as c: "
READ = WITH + "c.read(0, bytearray(10))"
WRITE = WITH + "c.write(0, bytes(10))"
UPLOAD = "client.upload(path, url, cafile)"
DOWNLOAD = "client.download(url, path + '.copy', cafile, fmt='raw')"
NOWHERE = DOWNLOAD.replace("path + '.copy'", "'/nonexistent/disk'")
SILENT = """
if ours:
    from ovirt_imageio.common import defaults
    from ovirt_imageio.common.backends.http import HttpBackend
    with HttpBackend(url, timeout=0.05) as backend: backend.read_into(0, bytearray(10))
else:
    with client.ImageioClient(url) as c:
        c._backend._con.sock.settimeout(0.05)
        c._backend._size = 1 << 20
        c.read(0, bytearray(10))
"""


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong.

    Attributes:
        what: In words, for the documentation.
        server: Name of the server below.
        call: The call that the program makes.
        differs: Why ours is not what 2.5.1 raises.
    """

    what: str
    server: str
    call: str = OPEN
    differs: str = ""


MISTAKE = "a caller's mistake is a `ValueError`"
EARLIER = "the mistake is found before the server is asked"
NO_QEMU = "qemu-img is not asked; the error names the file"

CASES = (
    Case("no server listens", "nothing"),
    Case("no server listens, `upload`", "nothing", UPLOAD),
    Case("the host's name has no address", "unknown"),
    Case("the certificate is of another authority", "untrusted"),
    Case("the certificate is for another name", "misnamed"),
    Case("the server speaks another TLS", "old tls"),
    Case("the server ends the connection within the handshake", "hangs up"),
    Case("the file of certificates is missing", "plain", OPEN_TLS + "path + '.pem')"),
    Case("the file of certificates holds none", "plain", OPEN_TLS + "path)"),
    Case("the server speaks no HTTP", "no http"),
    Case("the ticket is missing or expired: 403", "403"),
    Case("the server fails: 500", "500"),
    Case("the server is busy: 503", "503"),
    Case("403 in a GET", "GET 403", READ),
    Case("416 in a GET", "GET 416", READ),
    Case("403 in a PUT", "PUT 403", WRITE),
    Case("500 in a PUT of `upload`", "PUT 500", UPLOAD),
    Case("503 in each PUT of `upload`", "PUT 503", UPLOAD),
    Case("507 in a PUT of `upload`", "PUT 507", UPLOAD),
    Case("the server closes the connection before it answers", "GET closes", READ),
    Case("the same in `upload`", "PUT closes", UPLOAD),
    Case("the same in `download`", "GET closes", DOWNLOAD),
    Case("the connection ends within the body of an answer", "GET half", READ),
    Case("the server is silent", "GET silent", SILENT),
    Case("`read` past the end", "plain", WITH + f"c.read({SIZE}, bytearray(1))"),
    Case("`write` past the end", "plain", WITH + f"c.write({SIZE}, b'x')"),
    Case("`write_to` past the end", "plain", WITH + f"c.write_to(io.BytesIO(), {SIZE}, 1)", EARLIER),
    Case("the reader of `read_from` ends too early", "plain", WITH + "c.read_from(io.BytesIO(b'x'), 0, 2)"),
    Case("no dirty extents", "plain", WITH + "list(c.extents('dirty'))"),
    Case("a context that is none", "plain", WITH + "list(c.extents('x'))", MISTAKE),
    Case("a URL of no image", "plain", "client.ImageioClient('ftp://host/images/id')", MISTAKE),
    Case("an incremental download to raw", "plain", DOWNLOAD.replace("'raw'", "'raw', incremental=True")),
    Case("the image to upload is missing", "plain", UPLOAD.replace("path", "path + '.no'"), NO_QEMU),
    Case("the folder to download to is missing", "plain", NOWHERE, NO_QEMU),
)


def answer(method, status, text=b"in words\n"):
    """An honest server, but for one method."""
    image = Image(bytearray(SIZE))

    def answer(got):
        if method is not None and not is_of_image(got, method):
            return image(got)
        return response(status, text) if got.body is not None else None

    return answer


def broken(method, broken):
    image = Image(bytearray(SIZE))
    return lambda got: broken(got) if is_of_image(got, method) else image(got)


def is_of_image(got, method):
    """2.5.1 lists the extents to get the size: that goes well."""
    return got.method == method and not got.target.endswith("/extents?context=zero")


def hang_up(got):
    """Take the whole request, so that the end of the connection is no reset."""
    assert got.body is not None


def half(got):
    return response(206, b"xxxxx", Content_Length=10, Content_Range=f"bytes 0-9/{SIZE}", Connection="close")


def silent(got):
    got.socket.settimeout(5)
    with contextlib.suppress(OSError):
        got.socket.recv(1)


def context(pki, **limits):
    result = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    result.load_cert_chain(pki.cert_file, pki.key_file)
    for name, value in limits.items():
        setattr(result, name, value)
    return result


@contextlib.contextmanager
def closing():
    """A server that resets each connection after the first bytes."""

    def serve(sock, number):
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    with ScriptedServer(lambda got: None) as server:
        server._serve = serve
        yield server.url.replace("http:", "https:")


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """URL and file of certificates of each server."""
    pkis = {name: make_pki(tmp_path_factory.mktemp(name)) for name in ("own", "other")}
    named = make_pki(tmp_path_factory.mktemp("named"), names=("elsewhere.example",))
    old = context(pkis["own"], minimum_version=ssl.TLSVersion.TLSv1_2)
    old.set_ciphers("NULL:@SECLEVEL=0")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    image = Image(bytearray(SIZE))
    answers: dict[str, Any] = {"plain": image, "no http": lambda got: b"SSH-2.0-hello\r\n\r\n"}
    for status in (403, 500, 503):
        answers[str(status)] = answer(None, status)
    for method, status in (("GET", 403), ("GET", 416), ("PUT", 403), ("PUT", 500), ("PUT", 503), ("PUT", 507)):
        answers[f"{method} {status}"] = answer(method, status)
    answers.update({"GET closes": broken("GET", hang_up), "PUT closes": broken("PUT", hang_up)})
    answers.update({"GET half": broken("GET", half), "GET silent": broken("GET", silent)})
    with contextlib.ExitStack() as stack:
        free = stack.enter_context(socket.socket())
        free.bind(("127.0.0.1", 0))
        found = {
            "nothing": f"http://127.0.0.1:{free.getsockname()[1]}/images/x",
            "unknown": "http://no.such.invalid/images/x",
        }
        found.update({name: stack.enter_context(ScriptedServer(answer)).url for name, answer in answers.items()})
        contexts = {"untrusted": context(pkis["other"]), "misnamed": context(named), "old tls": old}
        found.update({name: stack.enter_context(ScriptedServer(image, context=c)).url for name, c in contexts.items()})
        found["hangs up"] = stack.enter_context(closing())
        yield {name: (url, named.ca_file if name == "misnamed" else pkis["own"].ca_file) for name, url in found.items()}


@pytest.fixture(scope="module")
def results(urls, tmp_path_factory):
    """The errors of each case: 2.5.1's classes, errno and code, and ours."""
    path = tmp_path_factory.mktemp("image") / "disk"
    path.write_bytes(b"x" * 65536)
    old = peer.environment().python
    jobs = json.dumps([[*urls[case.server], str(path), case.call] for case in CASES])
    found = []
    for python, whose in ((old, "theirs"), (sys.executable, "ours")):
        done = subprocess.run([python, "-c", PROGRAM, whose], input=jobs, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    return list(zip(*found))


def standard(kinds):
    """The classes that every program knows, most derived first; no plain ones."""
    plain = ("builtins.Exception", "builtins.BaseException", "builtins.object")
    kinds = ["socket.timeout" if kind == "builtins.TimeoutError" else kind for kind in kinds]  # one, since Python 3.10
    return [kind for kind in kinds if not kind.startswith("ovirt_imageio") and kind not in plain]


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case.server}-{case.what}" for case in CASES])
def test_what_catches_2x_catches_ours(results, number):
    case, (theirs, ours) = CASES[number], results[number]
    assert theirs is not None
    assert ours is not None
    if not case.differs:
        assert set(standard(theirs[0])) - PRIVATE <= set(standard(ours[0]))
        assert theirs[2] in (None, ours[2])
        if "builtins.ConnectionRefusedError" in theirs[0]:
            assert theirs[1] == ours[1]
    if standard(ours[0])[:1] != ["builtins.ValueError"]:
        assert {"ovirt_imageio.common.errors.ImageioError", "builtins.OSError"} & set(ours[0])


PRIVATE = {"http.client.RemoteDisconnected", "http.client.BadStatusLine", "http.client.HTTPException"}
"""How http.client calls it; a `ConnectionResetError` as well, or a `ProtocolError` of ours."""


def test_page_says_what_is_raised(results):
    rows = []
    for case, (theirs, ours) in zip(CASES, results):
        rows.append([case.what, _shown(theirs), _shown(ours), _bases(ours), case.differs])
    head = ["", "2.5.1 raises", "this client raises", "which is also", "why not the same"]
    check_table("reference/errors.md", "2.x", head, rows)


def _name(kind):
    module, _, name = kind.rpartition(".")
    return f"`{name}`" if module == "builtins" or module.startswith("ovirt_imageio") else f"`{kind}`"


def _shown(result):
    kinds, _, code = result
    kind = "socket.timeout" if kinds[0] == "builtins.TimeoutError" else kinds[0]
    return _name(kind) + (f", `code` {code}" if code is not None else "")


def _bases(result):
    names = [kind for kind in standard(result[0])[:2] if kind != result[0][0]]
    return ", ".join(map(_name, names))
