# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""TLS 1.3 clients that ask for new keys, again and again (RFC 8446 §4.6.3).

Python's ssl module has no call for that, so OpenSSL is called as `_ssl` has loaded it.
"""

from __future__ import annotations

import _ssl
import ctypes
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any

_REQUESTED = 1  # SSL_KEY_UPDATE_REQUESTED: the other side shall take new keys as well
_VERIFY_NONE = 0

_openssl = ctypes.CDLL(_ssl.__file__)


def _function(name: str, result: Any, *args: Any) -> Callable[..., Any]:
    function = getattr(_openssl, name)
    function.restype, function.argtypes = result, args
    call: Callable[..., Any] = function
    return call


_pointer = ctypes.c_void_p
_method = _function("TLS_client_method", _pointer)
_new_context = _function("SSL_CTX_new", _pointer, _pointer)
_free_context = _function("SSL_CTX_free", None, _pointer)
_new = _function("SSL_new", _pointer, _pointer)
_free = _function("SSL_free", None, _pointer)
_set_fd = _function("SSL_set_fd", ctypes.c_int, _pointer, ctypes.c_int)
_connect = _function("SSL_connect", ctypes.c_int, _pointer)
_version = _function("SSL_get_version", ctypes.c_char_p, _pointer)
_write = _function("SSL_write", ctypes.c_int, _pointer, ctypes.c_char_p, ctypes.c_int)
_key_update = _function("SSL_key_update", ctypes.c_int, _pointer, ctypes.c_int)
_do_handshake = _function("SSL_do_handshake", ctypes.c_int, _pointer)
_memory = _function("BIO_s_mem", _pointer)
_new_bio = _function("BIO_new", _pointer, _pointer)
_set_output = _function("SSL_set0_wbio", None, _pointer, _pointer)
_read_bio = _function("BIO_read", ctypes.c_int, _pointer, ctypes.c_char_p, ctypes.c_int)


class KeyUpdater:
    """A TLS 1.3 connection whose records are made here and sent when the caller likes.

    Args:
        sock: Connected; closed with this. The server is not verified.

    Raises:
        RuntimeError: OpenSSL refused something, or TLS 1.3 was not agreed upon.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(True)
        self._context = _new_context(_method())
        self._tls = _new(self._context)
        _checked(_set_fd(self._tls, sock.fileno()))
        _checked(_connect(self._tls))
        if _version(self._tls) != b"TLSv1.3":
            raise RuntimeError(f"TLS 1.3 is needed, not {_version(self._tls)!r}")
        self._output = _new_bio(_memory())
        _set_output(self._tls, self._output)

    def __enter__(self) -> KeyUpdater:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _free(self._tls)
        _free_context(self._context)
        self.socket.close()

    def updates(self, count: int) -> bytes:
        """Return so many requests for new keys, ready to be sent."""
        for _ in range(count):
            _checked(_key_update(self._tls, _REQUESTED))
            _checked(_do_handshake(self._tls))
        return self._records()

    def data(self, data: bytes) -> bytes:
        """Return data as records, ready to be sent."""
        _checked(_write(self._tls, data, len(data)))
        return self._records()

    def _records(self) -> bytes:
        parts: list[bytes] = []
        buffer = ctypes.create_string_buffer(1 << 20)
        while True:
            count = _read_bio(self._output, buffer, len(buffer))
            if count <= 0:
                return b"".join(parts)
            parts.append(buffer.raw[:count])


def _checked(result: int) -> None:
    if result <= 0:
        raise RuntimeError("OpenSSL refused a call")
