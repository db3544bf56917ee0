# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The requests of a connection, one after the other.

Theory of operation
-------------------

`Router.serve` is the one task of a connection. It reads a head, calls the handler and sends the
response. Then it gets rid of what is left of the request's body, and goes on with the next head.
Requests that a client pipelines wait in the connection's buffer, so they are answered in order.

An error becomes a response here and nowhere else, as long as no byte of another
response was sent. After that the connection can only be closed. The response to an error
is written from nothing: no field of the response it replaces is left in it.

Clients that send requests before they read answers let others go first: see `Loop.turn`. So do
those that have not shown a ticket on this connection, and those whose request failed. A client
that was refused a hundred times without a ticket has to make another connection: see refusals.py.

A request like the last one of its connection goes a shorter way: see repeats.py.

A body that no handler read is never taken for a request. A short rest is read and dropped
after the response. A long rest ends the connection, and so does one of unknown length, or one
that the client still holds back for a 100 response. The answer says so and leaves first, then
the connection lingers until the client has noticed.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ovirt_imageio.common.errors import (
    AuthorizationError,
    OperationCancelled,
    PeerGone,
    PeerTimeout,
    RequestError,
    ServerGone,
)

from ..errors import NO_SPACE, DeadlineExpired, HttpError, Overloaded, origin_refusal, origin_status
from . import report
from .cors import cors_fields, cors_fields_of_refused, is_preflight
from .head import HeadWriter
from .message import Request, RequestBody, Response, StreamedBody
from .parser import Head, parse_head
from .refusals import MOST, Refusals
from .repeats import Repeat, repeat_of
from .routes import Route, Routes

if TYPE_CHECKING:
    from .connection import Connection

__all__ = ["Route", "Router"]

_DRAIN_LIMIT = 128 * 1024  # bytes of an unread body that are cheaper to read than a new connection
_NO_BODY_STATUS = frozenset([204, 304])
_ERROR_FIELDS = (("Content-Type", "text/plain; charset=UTF-8"), ("Cache-Control", "no-store"))
_HTTP_1_0 = (1, 0)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SCARCE = (errno.EMFILE, errno.ENFILE)  # descriptors, of the process and of the system

Guard = Callable[[Request], None]
# Called with request, status and seconds when a response was sent, or given up.
Observer = Callable[[Request, int, float], None]

log = logging.getLogger(__name__)


class Router:
    """Serves the connections of one service. Loop thread only.

    Args:
        routes: The resources.
        name: Of the service, for logs.
        server: Value of the Server field, like ``imageio/3.0.0``.
        cors: Whether pages of any origin may use it.
        guard: Called with each request before its handler; raises what refuses it.
        trusted: Its clients need no ticket. Elsewhere, who shows none has to wait for others.
        needs_host: HTTP/1.1 without a Host field is refused.

    Attributes:
        stopping: Set when the server stops: running requests are finished and their
            connections closed, new ones get 503.
        observer: Called after each request.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        name: str = "",
        server: str = "imageio",
        cors: bool = False,
        guard: Guard | None = None,
        trusted: bool = False,
        needs_host: bool = True,
    ) -> None:
        self.name = name
        self.trusted = trusted
        self._needs_host = needs_host
        self.cors = cors
        self.stopping = False
        self.observer: Observer | None = None
        self._routes = Routes(routes)
        self._guard = guard
        self._heads = HeadWriter(server)
        self._refusals = Refusals()

    async def serve(self, connection: Connection) -> None:
        """Serve a connection until it ends, then close it."""
        registry = connection.registry
        # The client sent it before the last answer. 64 KiB hold 1,500 requests, and 80 ms of work.
        ahead = False
        data: bytes | None = None
        log.debug("%s: %s connected", self.name, connection.peer)
        try:
            await connection.start()
            while True:
                if registry is not None:
                    registry.idle(connection)
                data = None  # what is refused next is another request; and an idle connection keeps no head
                data = await connection.read_head()
                if data is None:
                    break
                if registry is not None:
                    registry.busy(connection)
                if ahead or (connection.ticket_id is None and not self.trusted):
                    await connection.loop.turn()
                repeat = connection.repeat
                served = None if repeat is None else await self._serve_again(connection, data, repeat)
                if served is None:
                    served = await self._serve_one(connection, data)
                if not served:
                    break
                ahead = connection.buffer != b""
        except HttpError as e:
            await self._refuse(connection, e, data or connection.buffer)
        except (PeerGone, PeerTimeout, DeadlineExpired) as e:
            log.debug("%s: %s: connection ended: %s", self.name, connection.peer, e or type(e).__name__)
        except Exception:
            log.exception("%s: connection %s failed", self.name, connection.peer)
        finally:
            connection.close()
            log.debug("%s: %s closed", self.name, connection.peer)

    def tell_left_out(self, now: float = math.inf) -> None:
        """Log how many refusals had no line; to be called every second or so, and at the end.

        Args:
            now: Only those of clients whose time is over by then, see `Refusals`.
        """
        for client, count in self._refusals.take_left_out(now):
            report.left_out(self.name, client, count)

    async def _serve_one(self, connection: Connection, data: bytes) -> bool:
        """Serve one request; tell whether the connection can serve another."""
        connection.repeat = None
        head = parse_head(data, connection.limits, needs_host=self._needs_host)
        connection.head_sent = False
        body = RequestBody(
            connection,
            None if head.chunked else head.content_length or 0,
            expected=head.expect_continue and head.content_length != 0,
        )
        request = Request(
            head.method,
            head.path,
            query=head.query,
            headers=head.headers,
            version=head.version,
            body=body,
            connection=connection,
        )
        started = connection.loop.now
        status = 0
        try:
            try:
                response = await self._handle(request)
                status = response.status
                open_still = await self._answer(request, head, response)
                if open_still and response.reread is not None and status == 206 and self._guard is None:
                    connection.repeat = repeat_of(data, request, head, reread=response.reread, fields=response.headers)
                return open_still
            except Exception as e:
                if isinstance(e, PeerGone) and not connection.head_sent and connection.hung_up():  # nobody listens
                    connection.broken = True
                    status = self._http_error(request, e).status
                    return False
                if not self.trusted:  # answer and log take as long as three good requests
                    await connection.loop.turn()
                if connection.head_sent:
                    connection.broken = True
                    report.broke_off(request, e)
                    return False
                response = self._error_response(request, e)
                status = response.status
                return await self._answer(request, head, response)
        finally:
            if self.observer is not None:
                self.observer(request, status, connection.loop.now - started)

    async def _serve_again(self, connection: Connection, data: bytes, repeat: Repeat) -> bool | None:
        """Serve a request like the last one, as `_serve_one`; None if it is not or cannot be served so."""
        asked = repeat.range_of(data)
        if asked is None or self.stopping:
            return None
        first, last = asked
        length = last - first + 1
        request, loop = repeat.request, connection.loop
        connection.head_sent = False
        started = loop.now
        status = 206
        try:
            body = await repeat.reread(connection, first, length)
            if body is None:
                return None
            head = self._heads.start(206).encode("latin-1") + repeat.fields % (first, last, length)
            served = not (self.stopping or connection.broken)
            if served:
                await connection.send(head, body)
            else:
                await connection.send(head[:-2] + b"Connection: close\r\n\r\n", body)
                await self._part(connection, request.body)
        except Exception as e:
            connection.repeat = None
            if connection.head_sent:
                connection.broken = True
                report.broke_off(request, e)
                served = False
            else:
                response = self._error_response(request, e)
                status = response.status
                served = await self._answer(request, repeat.head, response)
        if self.observer is not None:
            self.observer(request, status, loop.now - started)
        return served

    async def _handle(self, request: Request) -> Response:
        if self.stopping:
            raise HttpError(503, "the server is stopping", close=True)
        if self._guard is not None:
            self._guard(request)
        if request.path == "*":
            return Response(200, [("Allow", self._routes.allow)])
        route, request.params = self._routes.find(request.path)
        handler = route.handlers.get(request.method)
        if handler is not None:
            request.body.check()
            return await handler(request)
        if request.method == "OPTIONS":
            return Response(200, [("Allow", route.allow)])
        raise HttpError(
            405,
            f"method {request.method} is not allowed here",
            headers=[("Allow", route.allow)],
        )

    async def _answer(self, request: Request, head: Head, response: Response) -> bool:
        """Send a response; tell whether the connection can serve another request."""
        connection, body = request.connection, response.body
        close = self._must_close(request, head, response)
        data = self._head(head, response, close)
        if head.method == "HEAD" or response.status in _NO_BODY_STATUS:
            await connection.send(data)
        elif isinstance(body, StreamedBody):
            connection.chunked_out = body.length is None and head.version != _HTTP_1_0
            close = close or (body.length is None and head.version == _HTTP_1_0)
            await body.send(connection, data)
            if not connection.head_sent:
                raise RuntimeError(f"{type(body).__name__} did not send the head")
        else:
            await connection.send(data, body)
        if close or connection.broken:
            await self._part(connection, request.body)
            return False
        return request.body.left == 0 or await self._drain(request.body)

    def _must_close(self, request: Request, head: Head, response: Response) -> bool:
        rest = request.body
        return (
            response.close
            or not head.keep_alive
            or self.stopping
            or request.connection.broken
            # A browser asks by OPTIONS for the URL of the request that is to follow on the connection.
            or (head.method != "OPTIONS" and head.query.get("close") == "y")
            or (rest.left != 0 and not rest.is_short(_DRAIN_LIMIT))
        )

    def _head(self, head: Head, response: Response, close: bool) -> bytes:
        """Complete the response's fields with those that depend on the connection."""
        body, fields = response.body, response.headers
        length = body.length if isinstance(body, StreamedBody) else len(body)
        if length is None:
            if head.method == "HEAD":
                pass  # GET may know it when it has the body: RFC 9110 §9.3.2
            elif head.version == _HTTP_1_0:
                close = True  # the end of the stream is the end of the body
            else:
                fields.append(("Transfer-Encoding", "chunked"))
        elif response.status not in _NO_BODY_STATUS:
            fields.append(("Content-Length", str(length)))
        if close:
            fields.append(("Connection", "close"))
        elif head.version == _HTTP_1_0:
            fields.append(("Connection", "keep-alive"))
        if self.cors and "origin" in head.headers:
            fields += cors_fields(head.method, head.headers)
        return self._heads.write(response.status, fields)

    async def _drain(self, rest: RequestBody) -> bool:
        """Read and drop a short rest of a body; tell whether that worked."""
        try:
            await rest.read(_DRAIN_LIMIT)
        except HttpError:
            return False
        return True

    async def _part(self, connection: Connection, rest: RequestBody) -> None:
        """Let the client read the answer before the connection is closed."""
        if connection.broken or connection.buffer or not rest.consumed:
            await connection.linger()

    async def _refuse(self, connection: Connection, error: HttpError, head: bytes) -> None:
        """Answer what could not be read as a request, and close.

        The part of the head that came tells two things: whether a page needs fields to read the
        answer, and whether the method is HEAD. The answer to HEAD has no body.
        """
        if self._shall_be_told(connection):
            log.info("%s: %s refused: %s", self.name, connection.peer, error)
        text = f"{error.text}\n".encode()
        fields = [*_ERROR_FIELDS, *error.headers, ("Content-Length", str(len(text)))]
        fields.append(("Connection", "close"))
        if self.cors:
            fields += cors_fields_of_refused(head)
        try:
            await connection.send(self._heads.write(error.status, fields), b"" if head.startswith(b"HEAD ") else text)
            await connection.linger()
        except (PeerGone, DeadlineExpired) as e:
            log.debug("%s: %s did not take the answer: %s", self.name, connection.peer, e)

    def _error_response(self, request: Request, error: Exception) -> Response:
        answer, connection = self._http_error(request, error), request.connection
        close = answer.close or (connection.ticket_id is None and connection.refusals >= MOST)
        if self.cors and answer.status == 403 and is_preflight(request.method, request.headers):
            # A refused preflight would hide the reason from the page: its request gets it.
            return Response(200, close=close)
        text = f"{answer.text}\n".encode()
        return Response(answer.status, [*_ERROR_FIELDS, *answer.headers], text, close=close)

    def _http_error(self, request: Request, error: Exception) -> HttpError:
        """Return what the client is told; the details of a 500 go to the log."""
        answer = _answer_to(error)
        if answer is None or answer is NO_SPACE or isinstance(error, OSError) or origin_status(error) >= 500:
            report.failed(request, error)
            return answer or HttpError(500, "the server could not do that")
        if answer.status >= 500 or self._shall_be_told(request.connection):
            report.refused(request, answer)
        return answer

    def _shall_be_told(self, connection: Connection) -> bool:
        """Count a refusal; tell whether the log says it."""
        if self.trusted:
            return True
        connection.refusals += 1
        return self._refusals.shall_be_told(connection.client, connection.loop.now)


def _answer_to(error: Exception) -> HttpError | None:
    """Return the answer to what is no failure of the server; None if it is one."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, OperationCancelled):
        return HttpError(403, "the ticket was cancelled", close=True)
    if isinstance(error, PeerGone) and not isinstance(error, ServerGone):
        return HttpError(400, "the connection ended before the body", close=True)
    if isinstance(error, PeerTimeout):
        return HttpError(408, "the body did not come in time", close=True)
    if isinstance(error, AuthorizationError) or origin_status(error) not in (0, 500):
        return origin_refusal(error)
    if isinstance(error, OSError) and error.errno in _SCARCE:
        return Overloaded()
    if isinstance(error, (OSError, RequestError)) and error.errno in _FULL:
        return NO_SPACE
    return None
