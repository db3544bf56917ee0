# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's address: HTTP or HTTPS, login, and the REST API behind it.

POST /ovirt-engine/sso/oauth/token          user and password become a token
POST /ovirt-engine/services/sso-logout
*    /ovirt-engine/api/…                    with the token
"""

from __future__ import annotations

import contextlib
import gzip
import hmac
import json
import ssl
import threading
import uuid
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from imageio_testing.pki import Pki
from ovirt_imageio.common.errors import ImageioError

from . import api, documents
from .model import Engine, Fault

_XML = "application/xml; charset=utf-8"
_JSON = "application/json"
_LONGEST_BODY = 1 << 20


class EngineServer:
    """Serves an engine on a free port of this machine.

    Args:
        engine: To serve.
        pki: Keys for HTTPS; None serves HTTP.
        username: Of the user that may log in.
        password: Of that user.

    Attributes:
        url: As `ovirt-img --engine-url` takes it.
        requests: Method and path of each request so far.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        pki: Pki | None = None,
        username: str = "admin@internal",
        password: str = "secret",
    ) -> None:
        self.engine = engine
        self.username = username
        self.password = password
        self.requests: list[tuple[str, str]] = []
        self._token = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self, pki)
        self.url = f"{'https' if pki else 'http'}://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="engine")

    def __enter__(self) -> EngineServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, str, bytes]:
        """Answer a request. Any thread; one at a time is worked on.

        Returns:
            Status, content type and body.
        """
        url = urlsplit(target)
        self.requests.append((method, url.path))
        if url.path == "/ovirt-engine/sso/oauth/token":
            return self._login(parse_qs(body.decode()))
        if url.path == "/ovirt-engine/services/sso-logout":
            return 200, _JSON, b"{}"
        if not url.path.startswith(documents.API):
            return _xml(404, documents.fault(Fault(404, url.path, "Not found")))
        if not hmac.compare_digest(headers.get("Authorization", ""), f"Bearer {self._token}"):
            return _xml(401, documents.fault(Fault(401, "There is no valid token", "Unauthorized")))
        search = parse_qs(url.query).get("search", [""])[0]
        with self._lock:
            try:
                return _xml(*api.answer(self.engine, method, url.path[len(documents.API) :], search, body))
            except (ImageioError, OSError, ValueError, KeyError) as e:
                return _xml(500, documents.fault(Fault(500, f"{type(e).__name__}: {e}")))

    def _login(self, form: dict[str, list[str]]) -> tuple[int, str, bytes]:
        if form.get("username") == [self.username] and form.get("password") == [self.password]:
            answer = {"access_token": self._token, "scope": "ovirt-app-api", "token_type": "bearer"}
            return 200, _JSON, json.dumps(answer).encode()
        text = f"Cannot authenticate user '{form.get('username', [''])[0]}': wrong user name or password."
        return 400, _JSON, json.dumps({"error_code": "access_denied", "error": text}).encode()


def _xml(status: int, document: ET.Element) -> tuple[int, str, bytes]:
    return status, _XML, ET.tostring(document, encoding="utf-8", xml_declaration=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], owner: EngineServer, pki: Pki | None) -> None:
        super().__init__(address, _Handler)
        self.owner = owner
        self._context: ssl.SSLContext | None = None
        if pki:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(pki.cert_file, pki.key_file)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread: accepting must not wait for it."""
        if self._context:
            try:
                request = self._context.wrap_socket(request, server_side=True)
            except OSError:
                return
        with contextlib.closing(request), contextlib.suppress(OSError):
            super().finish_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def _serve(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        length = min(int(self.headers.get("Content-Length") or 0), _LONGEST_BODY)
        status, kind, body = server.owner.answer(self.command, self.path, self.headers, self.rfile.read(length))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            # A real engine does so as well.
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
