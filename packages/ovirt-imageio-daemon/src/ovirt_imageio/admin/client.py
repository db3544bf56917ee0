# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A client of the control service (contract: tickets and profile)."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import types
import urllib.parse
from typing import Any, NamedTuple, Protocol, cast

from ovirt_imageio.daemon import config
from ovirt_imageio.daemon.config import DEFAULT_CONF_DIR, Config

__all__ = [
    "DEFAULT_CONF_DIR",
    "Client",
    "ClientError",
    "ControlAddress",
    "Error",
    "HasControl",
    "ServerError",
    "load_config",
]


class Error(Exception):
    """Root of what the control client raises."""


class ClientError(Error):
    """The daemon could not be reached, or its answer not be understood."""


class ServerError(Error):
    """The daemon refused.

    Attributes:
        code: HTTP status.
        message: the daemon's reason, one sentence.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"Server error: {self.code} {self.message}"


class ControlAddress(Protocol):
    """Where the control service listens, as section `control` of a configuration tells."""

    @property
    def transport(self) -> str:
        """`unix` or `tcp`, in any letters."""

    @property
    def socket(self) -> str:
        """Path of the Unix socket; not needed for `tcp`."""

    @property
    def port(self) -> int:
        """TCP port; not needed for `unix`."""


class HasControl(Protocol):
    """A configuration: that of `load_config`, one of ovirt-imageio 2.x, or a program's own."""

    @property
    def control(self) -> ControlAddress:
        """The section. Its other values are used as well, but may be missing."""


class _Control(NamedTuple):
    """Values of section `control` that this module needs."""

    transport: str
    socket: str
    port: int
    enable: bool
    prefer_ipv4: bool
    remove_timeout: float

    @classmethod
    def of(cls, cfg: HasControl) -> _Control:
        """Take it from a configuration.

        Raises:
            ValueError: The transport is unknown.
        """
        given, default = cfg.control, Config().control
        transport = given.transport.lower()
        if transport not in ("unix", "tcp"):
            raise ValueError(f"control.transport is {given.transport!r}: expected 'unix' or 'tcp'")
        # A program that was written for 2.x may give an object that has the address alone.
        return cls(
            transport,
            getattr(given, "socket", default.socket),
            getattr(given, "port", default.port),
            enable=getattr(given, "enable", default.enable),
            prefer_ipv4=getattr(given, "prefer_ipv4", default.prefer_ipv4),
            remove_timeout=getattr(given, "remove_timeout", default.remove_timeout),
        )


def load_config(conf_dir: str = DEFAULT_CONF_DIR) -> Config:
    """Read the daemon's configuration, which tells where the control service listens.

    Raises:
        ValueError: one line naming the file, section, key and value at fault.
    """
    return config.load(conf_dir)


class Client:
    """One connection to the control service, opened by the first call.

    Use from one thread. A call raises `ClientError` or `ServerError`, and the
    next call may succeed.

    Args:
        cfg: as `load_config` returned it, or whatever else has `control` with an address.
        timeout: seconds to wait for an answer; removing a ticket may take
            `control.remove_timeout` longer.

    Raises:
        ValueError: The configuration names an unknown transport.
    """

    def __init__(self, cfg: HasControl, timeout: float = 60) -> None:
        self._control = _Control.of(cfg)
        self._timeout = timeout
        self._connection: _Connection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: types.TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. May be called again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def add_ticket(self, ticket: dict[str, Any]) -> None:
        """Add a ticket, or replace the one of the same `uuid`."""
        uuid = ticket.get("uuid") if isinstance(ticket, dict) else None
        if not isinstance(uuid, str) or not uuid:
            raise ClientError(f"Invalid ticket: uuid = {uuid!r}: expected a non-empty string")
        self._call("PUT", _ticket_path(uuid), ticket)

    def get_ticket(self, ticket_id: str) -> dict[str, Any]:
        """Return a ticket's state, see the HTTP reference, `GET /tickets/{id}`."""
        return self._call_json("GET", _ticket_path(ticket_id))

    def mod_ticket(self, ticket_id: str, changes: dict[str, Any]) -> None:
        """Change a ticket: `{"timeout": N}` makes it valid for N seconds from now."""
        self._call("PATCH", _ticket_path(ticket_id), changes)

    def del_ticket(self, ticket_id: str) -> None:
        """Cancel and remove a ticket; succeeds if there is none.

        Raises:
            ServerError: code 409 if it is still in use after `control.remove_timeout`.
        """
        timeout = self._timeout + self._control.remove_timeout
        self._call("DELETE", _ticket_path(ticket_id), timeout=timeout)

    def status(self, limit: int | None = None) -> dict[str, Any]:
        """Return how the daemon does and what its transfers are up to, see `GET /status`.

        Args:
            limit: transfers that are told of; None leaves it to the daemon.

        Raises:
            ServerError: code 404 if the daemon is ovirt-imageio 2.x.
        """
        return self._call_json("GET", "/status" if limit is None else f"/status?limit={limit}")

    def start_profile(self) -> None:
        """Start profiling the daemon."""
        self._call("POST", "/profile/?run=y")

    def stop_profile(self) -> None:
        """Stop profiling; the daemon writes the result to `profile.filename`."""
        self._call("POST", "/profile/?run=n")

    def _call_json(self, method: str, path: str) -> dict[str, Any]:
        body = self._call(method, path)
        try:
            document = json.loads(body)
        except ValueError as e:
            raise ClientError(f"{method} {path}: not JSON: {body[:200]!r}") from e
        if not isinstance(document, dict):
            raise ClientError(f"{method} {path}: expected a JSON object: {body[:200]!r}")
        return cast("dict[str, Any]", document)

    def _call(self, method: str, path: str, document: object = None, *, timeout: float | None = None) -> bytes:
        body = None if document is None else json.dumps(document).encode()
        status, answer = self._request(method, path, body, timeout or self._timeout)
        if status >= 400:
            raise ServerError(status, answer.decode("utf-8", "replace").strip())
        return answer

    def _request(self, method: str, path: str, body: bytes | None, timeout: float) -> tuple[int, bytes]:
        reused = self._connection is not None
        try:
            return self._exchange(method, path, body, timeout)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as e:
            # The daemon closes idle connections: what it never answered is sent once more.
            self.close()
            if not reused:
                raise ClientError(f"The daemon closed the connection: {e}") from e
            return self._request(method, path, body, timeout)
        except ClientError:
            self.close()
            raise
        except socket.timeout as e:
            self.close()
            raise ClientError(f"No answer from the daemon after {timeout:g} seconds") from e
        except (OSError, http.client.HTTPException) as e:
            self.close()
            raise ClientError(f"Connection to the daemon failed: {e}") from e

    def _exchange(self, method: str, path: str, body: bytes | None, timeout: float) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = _Connection(self._control)
        self._connection.set_timeout(timeout)
        headers = {} if body is None else {"Content-Type": "application/json"}
        self._connection.request(method, path, body=body, headers=headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.will_close:
            self.close()
        return response.status, answer


def _ticket_path(ticket_id: str) -> str:
    if not ticket_id:  # the path of all tickets
        raise ClientError("Invalid ticket id: expected a non-empty string")
    return "/tickets/" + urllib.parse.quote(ticket_id, safe="")


class _Connection(http.client.HTTPConnection):
    """HTTP to wherever the configuration says that the control service listens."""

    def __init__(self, control: _Control) -> None:
        super().__init__("localhost")
        self._control = control

    def set_timeout(self, seconds: float) -> None:
        self.timeout = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)

    def connect(self) -> None:
        control = self._control
        if not control.enable:
            raise ClientError("The control service is disabled: [control] enable = false")
        if control.transport == "unix":
            self.sock = _connect(socket.AF_UNIX, control.socket, self.timeout)
        else:
            self.sock = self._connect_tcp()

    def _connect_tcp(self) -> socket.socket:
        """Connect to localhost, the preferred family first."""
        candidates = [
            (socket.AF_INET, ("127.0.0.1", self._control.port)),
            (socket.AF_INET6, ("::1", self._control.port)),
        ]
        if not self._control.prefer_ipv4:
            candidates.reverse()
        try:
            return _connect(*candidates[0], self.timeout)
        except ClientError as first:
            try:
                return _connect(*candidates[1], self.timeout)
            except ClientError:
                raise first from None


def _connect(family: int, address: Any, timeout: float | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
    except OSError as e:
        sock.close()
        raise ClientError(_unreachable(address, e)) from e
    return sock


def _unreachable(address: object, error: OSError) -> str:
    """Say what failed and what to do about it."""
    hint = ""
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        hint = "; is ovirt-imageio.service running?"
    elif error.errno in (errno.EACCES, errno.EPERM):
        hint = "; become root or a member of the daemon's group, ovirtimg"
    return f"Cannot connect to the daemon at {address}: {error.strerror or error}{hint}"
