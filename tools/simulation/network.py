# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The network between the client and servers, and what goes wrong on it.

A connection carries a request by calling the server, in the thread of the client: in simulated time
that is no different. Before, during and after that it may break, be silent, or bring something else:

    request ──► connect ──► body, piece by piece ──► carried out ──► answer, piece by piece
            refused     broken before    broken midway     broken after     cut off, damaged
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, NamedTuple, Optional, Protocol

from ovirt_imageio.common.backends.http.errors import Unreachable
from ovirt_imageio.common.backends.http.exchange import StreamedBody
from ovirt_imageio.common.backends.http.heads import Head
from ovirt_imageio.common.errors import ConnectionTimeout, ImageioError, PeerGone, ServerGone

from .dice import Dice

if TYPE_CHECKING:
    from .kernel import Kernel
    from .scheduler import Task


class Trouble(NamedTuple):
    """How often a request or connection fails, each by its probability.

    Attributes:
        refused: The server takes no connection.
        idle: It closed the connection since the last answer.
        before: The connection breaks before the server has all of the request.
        midway: It breaks while the body of an upload or download passes.
        after: It breaks when the request was carried out, before the answer.
        silent: The server carries the request out, or not, and never answers.
        late: As silent, and it carries the request out after the client has given up.
        busy: The answer is 503.
        failed: The answer is 500, and a part may have been done.
        early: The answer is 503 in the middle of a body, which is read no further.
        garbage: The answer is of another range.
        damaged_put: One byte of an upload is stored wrong.
        damaged_get: One byte of a download comes wrong.
    """

    refused: float = 0.0
    idle: float = 0.0
    before: float = 0.0
    midway: float = 0.0
    after: float = 0.0
    silent: float = 0.0
    late: float = 0.0
    busy: float = 0.0
    failed: float = 0.0
    early: float = 0.0
    garbage: float = 0.0
    damaged_put: float = 0.0
    damaged_get: float = 0.0


class Request(NamedTuple):
    """A question to a server."""

    method: str
    path: str
    headers: Mapping[str, str]
    length: int


class Answer(NamedTuple):
    """A server's answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Service(Protocol):
    """A server on the network."""

    trouble: Trouble
    life: int

    def reachable(self) -> bool:
        """Tell if it takes connections."""

    def begin(self, connection: Connection, request: Request) -> Optional[Answer]:
        """Look at the head of a request; an answer refuses it before its body is read."""

    def receive(self, connection: Connection, request: Request, position: int, data: bytes) -> Optional[Answer]:
        """Take a piece of the body; an answer refuses the rest."""

    def finish(self, connection: Connection, request: Request) -> Answer:
        """Carry out a request whose body was received."""

    def closed(self, connection: Connection) -> None:
        """Note that a connection ended."""


class Network:
    """Servers that can be connected, by `HOST:PORT`.

    Attributes:
        services: The servers.
        latency: Most microseconds that a step takes.
        open: Connections that are open now.
        damaged: How often bytes were damaged on their way.
    """

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.latency = 3000
        self.damaged = 0
        self.open: list[Connection] = []

    def drop(self, service: Service) -> None:
        """Break all connections to a server."""
        for connection in list(self.open):
            if connection.service is service:
                connection.broken = True
                connection.end()


class Connection:
    """A connection of the client.

    Attributes:
        service: The server.
        broken: It ended, and the client finds out when it uses it.
        uses: Requests since it was made.
        cut_short: Why a body was not sent to its end.
        early: An answer that came before the server had all of the request.
        document: Bytes that were sent as the body of a PATCH.
        is_open: The client has not closed it.
        is_idle: The answer to the last request was received.
        stream: Itself.
    """

    def __init__(self, kernel: Kernel, service: Service, name: str, cancel: Any) -> None:
        self._kernel = kernel
        self._cancel = cancel
        self._wake = None if cancel is None else cancel.add(self.interrupt)
        self.service = service
        self.name = name
        self.broken = False
        self.interrupted = False
        self.uses = 0
        self.cut_short: Optional[ImageioError] = None
        self.is_open = self.is_idle = True
        self.early: Optional[Answer] = None
        self.document = b""
        self._waiting: Optional[Task] = None
        self._process = kernel.process
        kernel.network.open.append(self)
        self._process.held.append(self.end)

    is_local = False
    splice_fd = None

    @property
    def stream(self) -> Connection:
        """Itself."""
        return self

    def end(self) -> None:
        """Close it, at both ends."""
        if self._wake is not None and not self._process.killed:
            self._cancel.remove(self._wake)
        self._wake = None
        if self in self._kernel.network.open:
            self._kernel.network.open.remove(self)
            self.service.closed(self)
            if self.end in self._process.held:
                self._process.held.remove(self.end)

    def close(self) -> None:
        """Close it."""
        self.is_open = False
        self.end()

    def interrupt(self) -> None:
        """Wake the thread that waits for the server."""
        self.interrupted = self.broken = True
        if self._waiting is not None:
            self._kernel.scheduler.wake(self._waiting)
            self._waiting = None

    def step(self, what: str) -> None:
        """Let a piece pass.

        Raises:
            ServerGone: The connection broke.
        """
        self._kernel.step(what, self._kernel.network.latency)
        if self.broken:
            raise self._lost()

    def silence(self, seconds: Optional[float]) -> None:
        """Wait for an answer that does not come.

        Raises:
            ServerGone: The connection broke meanwhile.
            ConnectionTimeout: It did not.
        """
        scheduler = self._kernel.scheduler
        self._waiting = scheduler.current
        try:
            # A host that is dead shows within a minute; one that lives answers a request without limit.
            scheduler.park(scheduler.now + int((seconds or 60.0) * 1e6))
        finally:
            self._waiting = None
        if self.broken or not seconds:
            raise self._lost()
        self.end()
        raise ConnectionTimeout(f"{self.name} sent nothing for {seconds:g} seconds")

    def _lost(self) -> ServerGone:
        """Return why it cannot be used any more, unless it was cancelled."""
        self.end()
        if self._cancel is not None:
            self._cancel.check()
        return ServerGone(f"connection to {self.name} lost")

    def settimeout(self, seconds: Optional[float]) -> None:
        """Do nothing: each wait has its own."""


class _Upload:
    """The end that a body is sent to: the stream of a connection."""

    splice_fd = None
    is_local = False

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def sendall(self, data: Any) -> None:
        """Send a piece."""
        with memoryview(data) as view:
            self._exchange.send(view.tobytes())

    def answered(self) -> bool:
        """Tell if the server has answered already."""
        return self._exchange.connection.early is not None

    def fileno(self) -> int:
        """Return that there is none."""
        return -1


class Exchange:
    """One request and its answer on a connection.

    Args:
        connection: Carries it.
        request: To send.
        timeout: Seconds that the server may be silent; None for any time.
        dice: Decide what goes wrong.
    """

    def __init__(self, connection: Connection, request: Request, timeout: Optional[float], dice: Dice) -> None:
        self.connection = connection
        self._request = request
        self._timeout = timeout
        self._dice = dice
        self._trouble = connection.service.trouble
        self._sent = 0
        self._breaks_at = self._early_at = -1
        if request.length > 1:
            if self._happens("midway"):
                self._breaks_at = dice.between(1, request.length - 1)
            elif self._happens("early"):
                self._early_at = dice.between(1, request.length - 1)

    def run(self, body: Any) -> Answer:
        """Send the request and return the answer.

        Raises:
            ServerGone, ConnectionTimeout: The connection failed.
            Exception: The source of the body failed.
        """
        connection, request, dice = self.connection, self._request, self._dice
        service = connection.service
        connection.step(f"{request.method} {request.path} {request.headers.get('Range') or request.length}")
        if self._happens("before"):
            self._lose("before")
        connection.early = service.begin(connection, request)
        if connection.early is None and self._happens("busy"):
            connection.early = Answer(503, {}, b"try again later\n")
        if body is not None:
            self._send_body(body)
        if connection.early is not None:
            connection.step(f"early {connection.early.status}")
            return connection.early
        silent = self._happens("silent")
        if silent and dice.chance(0.5):
            connection.silence(self._timeout)
        if self._happens("late"):
            self._be_late()
        if self._happens("failed"):
            return Answer(500, {}, b"storage failed\n")
        answer = service.finish(connection, request)
        if answer.status == 206 and self._happens("garbage"):
            size = answer.headers["Content-Range"].rpartition("/")[2]
            answer = answer._replace(headers={**answer.headers, "Content-Range": f"bytes 1-2/{size}"})
        if silent:
            connection.silence(self._timeout)
        if self._happens("after"):
            self._lose("after")
        connection.step(f"answer {answer.status}")
        return answer

    def _happens(self, kind: str) -> bool:
        """Tell if something goes wrong now."""
        return happens(self.connection._kernel, self._trouble, kind)

    def _lose(self, when: str) -> None:
        self.connection.end()
        self.connection.broken = True
        self.connection.step(f"lost {when}")

    def _be_late(self) -> None:
        """Let the server carry the request out when the client has given up."""
        connection, request = self.connection, self._request
        kernel = connection._kernel
        seconds = (self._timeout or 60.0) + self._dice.fraction() * 20

        life = connection.service.life

        def finish() -> None:
            kernel.sleep(seconds)
            if connection.service.life == life and connection.service.reachable():
                kernel.note(f"late {request.method}")
                connection.service.finish(connection, request)

        kernel.behind(finish)
        connection.silence(self._timeout)

    def _send_body(self, body: Any) -> None:
        connection = self.connection
        try:
            if isinstance(body, StreamedBody):
                body.send(_Upload(self))  # type: ignore[arg-type]
            else:
                self.send(bytes(body))
        except (PeerGone, ConnectionTimeout) as e:
            if connection.early is None:
                raise
            connection.cut_short = e

    def send(self, data: bytes) -> None:
        """Send a piece of the body.

        Raises:
            ServerGone: The connection broke, or the server reads no further.
        """
        connection, request = self.connection, self._request
        if connection.early is not None:
            raise ServerGone(f"{connection.name} takes nothing more")
        connection.step(f"body {len(data)}")
        end = self._sent + len(data)
        whole = data
        if 0 <= self._breaks_at < end:
            data = data[: self._breaks_at - self._sent]
        elif 0 <= self._early_at < end:
            data = data[: self._early_at - self._sent]
        if request.method == "PUT" and data and self._happens("damaged_put"):
            data = damaged(data, self._dice)
            connection._kernel.network.damaged += 1
            connection._kernel.note("damaged on its way up")
        if data:
            connection.early = connection.service.receive(connection, request, self._sent, data)
        self._sent += len(data)
        if len(data) < len(whole) and self._breaks_at >= 0:
            self._lose("midway")
        if len(data) < len(whole) and connection.early is None:
            connection.early = Answer(503, {}, b"the storage is busy\n")


def happens(kernel: Kernel, trouble: Trouble, kind: str) -> bool:
    """Tell if a kind of trouble comes up now, and count it."""
    if kernel.dice.chance(getattr(trouble, kind)):
        kernel.counts[f"server: {kind}"] += 1
        return True
    return False


def damaged(data: bytes, dice: Dice) -> bytes:
    """Return bytes of which one is wrong."""
    place = dice.below(len(data))
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


class Body:
    """The body of an answer, to be received.

    Args:
        connection: Where it comes from.
        head: Of the answer.
        data: All of it.
        cut: Bytes after which the connection breaks, -1 for never.
        hurt: It comes in small pieces at times.

    Attributes:
        connection: As given.
        head: As given.
        cut_short: Why the body of the request was not sent to its end.
        left: Bytes not received yet.
        ended: All was received, or no more shall be.
    """

    def __init__(self, connection: Connection, head: Head, data: bytes, *, cut: int, hurt: bool) -> None:
        self.connection = connection
        self.head = head
        self.cut_short = connection.cut_short
        self._data = data
        self._position = 0
        self._cut = cut
        self._hurt = hurt
        self.ended = False
        if not data:
            self._end()

    @property
    def reader(self) -> Body:
        """Return the body itself: no bytes of it came with the head."""
        return self

    def take(self, limit: int) -> bytes:
        """Return what was received with the head: nothing."""
        return b""

    @property
    def left(self) -> int:
        """Bytes not received yet."""
        return 0 if self.ended else len(self._data) - self._position

    def close(self) -> None:
        """Close the connection, unless all was received."""
        if not self.ended:
            self.ended = True
            self.connection.close()

    def receive(self, view: memoryview) -> int:
        """Receive some bytes; 0 at the end.

        Raises:
            ServerGone: The body ended too early.
        """
        if self.ended:
            return 0
        connection = self.connection
        kernel = connection._kernel
        count = min(len(view), self.left)
        if count > 1 and self._hurt and kernel.dice.chance(0.2):
            count = kernel.dice.between(1, count)
        connection.step(f"receive {count}")
        if 0 <= self._cut <= self._position:
            connection.end()
            connection.broken = True
            raise ServerGone(f"connection lost {self.left} bytes before the end of a response")
        if self._cut > self._position:
            count = min(count, self._cut - self._position)
        view[:count] = self._data[self._position : self._position + count]
        self.took(count)
        return count

    def fill(self, view: memoryview) -> None:
        """Receive until view is full."""
        done = 0
        while done < len(view):
            count = self.receive(view[done:])
            if not count:
                raise ServerGone("connection lost before the end of a response")
            done += count

    def took(self, count: int) -> None:
        """Count bytes that were received."""
        self._position += count
        if self._position >= len(self._data):
            self._end()

    def _end(self) -> None:
        self.ended = self.connection.is_idle = True


class Response(NamedTuple):
    """The head of an answer, as requests has it."""

    status_code: int
    reason: str
    headers: Mapping[str, str]
    raw: Body


_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 403: "Forbidden", 404: "Not Found"}


class Adapter:
    """In place of the adapters of requests: connects to servers of this network.

    Attributes:
        connection: The one that served the last request.
        base_url: Scheme and host.
        name: The server, for messages.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        context: Any = None,
        timeout: Optional[float] = None,
        connect_timeout: Optional[float] = None,
        cancel: Any = None,
        **_: Any,
    ) -> None:
        from .kernel import active

        self._kernel = active()
        self.connection: Optional[Connection] = None
        self.name = f"{host}:{port}"
        self.base_url = f"http://{self.name}"
        self._cancel = cancel

    def send(self, prepared: Any, *, timeout: Optional[float] = None, **_: Any) -> Response:
        """Send a request and receive the head of the answer."""
        connection = self._connected()
        self.connection = connection
        connection.uses += 1
        connection.is_idle = False
        connection.cut_short = connection.early = None
        headers = dict(prepared.headers)
        request = Request(
            prepared.method, prepared.url[len(self.base_url) :], headers, int(headers.get("Content-Length", 0))
        )
        try:
            answer = Exchange(connection, request, timeout, self._kernel.dice).run(prepared.body)
            body = self._body(connection, request, answer)
        except BaseException:
            connection.close()
            raise
        return Response(answer.status, body.head.reason, answer.headers, body)

    def close(self) -> None:
        """Close the connection. The adapter may still be used."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def _connected(self) -> Connection:
        connection = self.connection
        if connection is not None and connection.is_open and connection.is_idle:
            if not connection.broken and happens(self._kernel, connection.service.trouble, "idle"):
                connection.end()
                connection.broken = True
            return connection
        self._kernel.step(f"connect {self.name}", self._kernel.network.latency)
        if self._cancel is not None:
            self._cancel.check()
        service = self._kernel.network.services.get(self.name)
        if service is None or not service.reachable() or happens(self._kernel, service.trouble, "refused"):
            raise Unreachable(f"cannot connect to {self.name}: connection refused")
        return Connection(self._kernel, service, self.name, self._cancel)

    def _body(self, connection: Connection, request: Request, answer: Answer) -> Body:
        dice, trouble = self._kernel.dice, connection.service.trouble
        data, cut = answer.body, -1
        payload = answer.status in (200, 206) and request.method == "GET"
        if payload and len(data) > 1 and happens(self._kernel, trouble, "midway"):
            cut = dice.below(len(data))
        if payload and answer.status == 206 and data and happens(self._kernel, trouble, "damaged_get"):
            data = damaged(data, dice)
            self._kernel.network.damaged += 1
            self._kernel.note("damaged on its way down")
        fields = {name.lower(): value for name, value in answer.headers.items()}
        head = Head(11, answer.status, _REASONS.get(answer.status, "Status"), fields)
        return Body(connection, head, data, cut=cut, hurt=trouble.midway > 0)


class Prepared:
    """A request of the stand-in for requests."""

    def __init__(self, method: str, url: str) -> None:
        self.method, self.url = method, url
        self.headers: Mapping[str, str] = {}
        self.body: Any = None

    def prepare(self) -> Prepared:
        """Return itself."""
        return self
