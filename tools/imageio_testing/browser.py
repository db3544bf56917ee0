# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Chromium, without a driver: a page runs a script and posts back what it saw.

    with Site({"/": html}, SCRIPT) as site:
        seen = site.visit(Browser(folder, pin=public_key_pin(pki.cert_file)), "/#address")

The script is appended to each page. It ends with ``report(value)``, once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import queue
import shutil
import subprocess
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TIMEOUT = 60.0

_REPORT = """
function report(value) { return fetch("/report", {method: "POST", body: JSON.stringify(value)}); }
addEventListener("error", event => report({failed: event.message}));
addEventListener("unhandledrejection", event => report({failed: String(event.reason && event.reason.stack)}));
"""
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # there is none for root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


def command() -> str | None:
    """Return the browser's executable; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def public_key_pin(cert_file: str) -> str:
    """Return what names the key of a certificate to the browser: a digest in base 64."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    certificate = x509.load_pem_x509_certificate(Path(cert_file).read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


class Browser:
    """Chromium with a profile of its own.

    Args:
        folder: For its profile, and what it downloads.
        pin: Of the one key that it trusts without an authority; None trusts none.
    """

    def __init__(self, folder: str | os.PathLike[str], *, pin: str | None = None) -> None:
        executable = command()
        if executable is None:
            raise RuntimeError("chromium is not installed")
        self.downloads = Path(folder, "downloads")
        self.downloads.mkdir(parents=True, exist_ok=True)
        profile = Path(folder, "profile")
        (profile / "Default").mkdir(parents=True, exist_ok=True)
        settings = {"download": {"default_directory": str(self.downloads), "prompt_for_download": False}}
        (profile / "Default" / "Preferences").write_text(json.dumps(settings))
        self._command = [executable, *_FLAGS, f"--user-data-dir={profile}"]
        if pin is not None:
            self._command.append(f"--ignore-certificate-errors-spki-list={pin}")

    @contextlib.contextmanager
    def open(self, url: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """Show a page for as long as the context lasts."""
        process = subprocess.Popen(
            [*self._command, *flags, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def screenshot(self, url: str, path: str | os.PathLike[str], *, width: int, height: int) -> None:
        """Write a picture of a page, PNG."""
        flags = [f"--screenshot={os.fspath(path)}", f"--window-size={width},{height}"]
        with self.open(url, *flags, "--hide-scrollbars", "--virtual-time-budget=4000") as process:
            process.wait(TIMEOUT)


class Site:
    """Pages on a port of localhost, which is an origin of its own.

    Args:
        pages: HTML by path.
        script: Runs at the end of each page.

    Attributes:
        url: Of the site, without a path.
    """

    def __init__(self, pages: Mapping[str, str], script: str) -> None:
        self._reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
        tail = f"<script>{_REPORT}</script><script>{script}</script>".encode()
        handler = _handler({path: html.encode() + tail for path, html in pages.items()}, self._reports)
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def visit(self, browser: Browser, path: str) -> Any:
        """Let a browser show a page; return what its script reports.

        Raises:
            queue.Empty: It reported nothing in time.
            AssertionError: The page failed.
        """
        with browser.open(self.url + path):
            return self.reported()

    def reported(self) -> Any:
        """Return what a page reports next; as `visit`."""
        value = self._reports.get(timeout=TIMEOUT)
        assert not (isinstance(value, dict) and "failed" in value), value
        return value


class _Server(http.server.ThreadingHTTPServer):
    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a browser, which may be closed at any time: as soon as its page has reported."""
        with contextlib.suppress(ConnectionError):
            super().finish_request(request, client_address)


def _handler(pages: Mapping[str, bytes], reports: queue.SimpleQueue[Any]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path.partition("?")[0])
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def do_POST(self) -> None:
            reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    return Handler
