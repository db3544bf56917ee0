# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests for one image over one adapter, and their responses.

A prepared request is kept for each kind that repeats, and only its headers change:
preparing costs as much as sending.
"""

from __future__ import annotations

import contextlib
import http.client
from types import TracebackType
from typing import Any, Callable, Hashable, Mapping, cast
from urllib.parse import unquote

import requests

from ovirt_imageio.common import imagesapi
from ovirt_imageio.common.errors import ImageioError, ProtocolError, ServerGone
from ovirt_imageio.common.units import KiB, MiB
from ovirt_imageio.common.version import __version__

from .adapters import Adapter
from .errors import NotHttp, refusal
from .exchange import Exchange

_TEXT_LIMIT = 4 * KiB  # of an error's text
_DOCUMENT_LIMIT = 64 * MiB  # of JSON that is read as a whole
_BLOCK = 64 * KiB

_HEADERS = {
    "Accept-Encoding": "identity",
    "User-Agent": f"imageio-client/{__version__}",
}


class Reply:
    """A response whose body was not read yet. It must be finished or closed.

    Args:
        response: Its head; the `Exchange` as its `raw`.
        name: The server.
        what: The request, without the ticket's id.
        ticket_id: It is a secret: what the server says of it is abbreviated.

    Attributes:
        status: Status code.
        fields: Of its head, by names in lower case.
        body: To receive the payload from.
        name: The server, for messages.
        what: The request, for messages.
    """

    __slots__ = ("_ticket_id", "body", "fields", "name", "reason", "status", "what")

    def __init__(self, response: requests.Response, *, name: str, what: str, ticket_id: str) -> None:
        self.status = response.status_code
        self.reason = response.reason or ""
        self.body = cast(Exchange, response.raw)
        self.fields = self.body.head.fields
        self.name = name
        self.what = what
        self._ticket_id = ticket_id

    @property
    def is_local(self) -> bool:
        """The server is on this very host, reached by TCP."""
        return self.body.connection.stream.is_local

    @property
    def life(self) -> Hashable:
        """The life of the server that answered, as far as flushes are concerned: see `Backend.life`.

        Servers of version 3 tell. Of others only a connection is known to be the same. A connection that ends with
        its response, as the response says, tells nothing. It is taken for the same server's.
        """
        told = self.fields.get(imagesapi.INSTANCE.lower())
        if told is not None:
            return told
        return self.name if self.body.head.closes else self.body.connection

    def require(self, *statuses: int) -> Reply:
        """Return the reply if it has one of the statuses.

        Raises:
            Refused: The server said no.
            ProtocolError: It said something that is no answer to this request.
        """
        if self.status in statuses:
            if self.body.cut_short is not None:
                self.close()
                raise ProtocolError(
                    f"{self.what}: {self.name} answered {self.status} before it had the body"
                ) from self.body.cut_short
            return self
        raise self.error() from self.body.cut_short

    def error(self) -> ImageioError:
        """Read the body and return what the response means as an error."""
        if self.status < 400:
            self.close()
            return ProtocolError(f"{self.what}: {self.name} answered {self.status} {self.reason}")
        text = self._text()
        return refusal(f"{self.what} at {self.name}", self.status, self.reason, text)

    def document(self) -> bytes:
        """Read the body as a whole.

        Raises:
            ProtocolError: It is too large.
        """
        data = self._read(_DOCUMENT_LIMIT)
        self.finish()
        return data

    def finish(self) -> None:
        """Give the connection back; what is left of the body must be little."""
        if not self.body.ended:
            if self.body.cut_short is None:
                self._read(_TEXT_LIMIT)
            self.close()

    def close(self) -> None:
        """Close the connection, unless the body was received. Idempotent."""
        self.body.close()

    def _text(self) -> str:
        """Read the text of an error; a broken connection must not hide the status."""
        try:
            data = self._read(_TEXT_LIMIT, strict=False)
            self.finish()
        except ImageioError:
            self.close()
            return ""
        text = data.decode("utf-8", "replace")
        return text.replace(self._ticket_id, f"{self._ticket_id[:8]}…") if len(self._ticket_id) > 8 else text

    def _read(self, limit: int, *, strict: bool = True) -> bytes:
        parts = []
        left = limit
        block = memoryview(bytearray(_BLOCK))
        while left:
            count = self.body.receive(block[:left])
            if not count:
                break
            parts.append(bytes(block[:count]))
            left -= count
        if not left and strict and not self.body.ended:
            self.close()
            raise ProtocolError(f"{self.what}: {self.name} sent more than {limit} bytes")
        return b"".join(parts)

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.close()


class Channel:
    """One way to an image: requests over one adapter. One thread.

    Args:
        make_adapter: Returns what connects.
        path: Of the image, such as `/images/` and the ticket's id.
        timeout: Seconds that the server may be silent.
        adapter: The adapter of another channel, to share its connection.
    """

    def __init__(
        self,
        make_adapter: Callable[[], Adapter],
        path: str,
        *,
        timeout: float | None,
        adapter: Adapter | None = None,
    ) -> None:
        self.adapter = adapter or make_adapter()
        self._make_adapter = make_adapter
        self._path = path
        self._ticket_id = unquote(path.rpartition("/")[2])
        self._timeout = timeout
        self._interrupted = False
        self._prepared: dict[tuple[str, str], requests.PreparedRequest] = {}

    @property
    def name(self) -> str:
        """The server, for messages."""
        return self.adapter.name

    @property
    def is_encrypted(self) -> bool:
        """Requests go by TLS."""
        return self.adapter.base_url.startswith("https:")

    def request(
        self,
        method: str,
        suffix: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        length: int | None = None,
        timeout: float | None = -1,
        replay: bool = True,
    ) -> Reply:
        """Send a request and receive the head of its response.

        Args:
            method: HTTP method.
            suffix: Appended to the image's path: a sub-resource, a query.
            headers: Of this request, beside those of every one.
            body: A buffer of bytes, or a StreamedBody.
            length: Bytes of body.
            timeout: Seconds that the server may be silent; None means for ever, and by
                default it is the channel's.
            replay: The request may be sent a second time if a pooled connection turns
                out to have been closed by the server meanwhile.

        Raises:
            Unreachable: No connection; nothing was sent.
            ServerGone: The connection broke.
            ConnectionTimeout: The server is silent.
            ProtocolError: The response is not HTTP.
            Exception: The sender of a StreamedBody raised it.
        """
        prepared = self._prepare(method, suffix)
        fields: Any = {**_HEADERS, **(headers or {})}
        if length is not None:
            fields["Content-Length"] = str(length)
        prepared.headers = fields  # a dict with names in any case would cost 10 µs
        prepared.body = body if length else None
        seconds = self._timeout if timeout == -1 else timeout
        try:
            response = self._send(prepared, seconds, replay)
        finally:
            prepared.body = None
        return Reply(response, name=self.adapter.name, what=_describe(method, suffix), ticket_id=self._ticket_id)

    def clone(self) -> Channel:
        """Return another channel to the same image, for another thread."""
        return Channel(self._make_adapter, self._path, timeout=self._timeout)

    def interrupt(self) -> None:
        """Break the connection in use, for good. Any thread may call it."""
        self._interrupted = True
        connection = self.adapter.connection
        if connection is not None:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                connection.stream.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self.adapter.close()

    def _prepare(self, method: str, suffix: str) -> requests.PreparedRequest:
        key = (method, suffix)
        prepared = self._prepared.get(key)
        if prepared is None:
            url = self.adapter.base_url + self._path + suffix
            prepared = requests.Request(method, url).prepare()
            if suffix in _KEPT:
                self._prepared[key] = prepared
        return prepared

    def _send(self, prepared: requests.PreparedRequest, timeout: float | None, replay: bool) -> requests.Response:
        try:
            return self._send_once(prepared, timeout)
        except ServerGone:
            connection = self.adapter.connection
            if self._interrupted or not replay or connection is None or connection.uses < 2:
                raise
            self.adapter.close()
            return self._send_once(prepared, timeout)

    def _send_once(self, prepared: requests.PreparedRequest, timeout: float | None) -> requests.Response:
        try:
            return self.adapter.send(prepared, timeout=timeout)
        except http.client.HTTPException as e:
            raise NotHttp(f"{prepared.method} at {self.name}: {e}") from e


_KEPT = {"", "?flush=n", "?flush=y"}


def _describe(method: str, suffix: str) -> str:
    """Name a request without the ticket's id, which is a secret."""
    return f"{method} {imagesapi.IMAGES + '/'}…{suffix}"
