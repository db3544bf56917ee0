# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Negotiation with an NBD server, as a pure value.

`negotiate()` and `list_exports()` are generators that never touch a socket. They yield
what they want done, and a driver does it:

- ``bytes``: send this; resume with anything.
- ``int``: receive exactly that many bytes; resume with them.

The result is the value of ``StopIteration``. The talk with a current server::

    server ──► NBDMAGIC IHAVEOPT flags
    client ──► flags
    client ──► STRUCTURED_REPLY         server ──► ACK | error: simple replies only
    client ──► LIST_META_CONTEXT        server ──► META_CONTEXT* ACK | error     (dirty, no bitmap named)
    client ──► SET_META_CONTEXT         server ──► META_CONTEXT* ACK | error: no block status
    client ──► GO export BLOCK_SIZE     server ──► INFO* ACK | error
    from here on: requests and replies, see replies.py

A server that does not know GO gets EXPORT_NAME, the older way that cannot report an error; one
without "fixed newstyle" gets nothing else.

The server is not trusted. The length of every reply is checked before it is
received, and the number of replies to one option is limited.

Source: NBD proto.md, "Fixed newstyle negotiation".
"""

from __future__ import annotations

import errno
from types import MappingProxyType
from typing import Generator, Mapping, NamedTuple, TypeVar, Union

from ovirt_imageio.common.errors import ProtocolError, RequestError, UnsupportedOperation
from ovirt_imageio.common.nbd import wire

# Most bytes of a reply to an option: two strings of the protocol and their framing.
MAX_REPLY = 2 * wire.MAX_STRING + 64
# Replies to one option. An export has a few contexts, a server some exports.
MAX_REPLIES = 10_000

_T = TypeVar("_T")
Steps = Generator[Union[bytes, int], bytes, _T]

_REFUSALS = {
    wire.REP_ERR_UNSUP: ("the server does not support this option", errno.EOPNOTSUPP),
    wire.REP_ERR_POLICY: ("forbidden by the server's policy", errno.EPERM),
    wire.REP_ERR_INVALID: ("the server calls the option invalid", errno.EINVAL),
    wire.REP_ERR_PLATFORM: ("not supported on the server's platform", errno.EOPNOTSUPP),
    wire.REP_ERR_TLS_REQD: ("the server requires TLS, which is not supported", errno.EPERM),
    wire.REP_ERR_UNKNOWN: ("no such export", errno.ENOENT),
    wire.REP_ERR_SHUTDOWN: ("the server is shutting down", errno.ESHUTDOWN),
    wire.REP_ERR_BLOCK_SIZE_REQD: ("the server wants other block sizes", errno.EINVAL),
    wire.REP_ERR_TOO_BIG: ("the server calls the option too big", errno.EOVERFLOW),
}


class Export(NamedTuple):
    """Result of the negotiation about an export.

    Attributes:
        name: name of the export.
        size: in bytes.
        flags: transmission flags, ``wire.FLAG_*``.
        minimum_block: offsets and lengths of requests are multiples of it.
        preferred_block: multiples of it are served best.
        maximum_block: most payload bytes in one request.
        structured: replies are structured.
        contexts: names of the metadata contexts with the number that
            stands for each in block status replies.
        bitmaps: names of the dirty bitmaps that the server offered, or the one that was asked for.
    """

    name: str
    size: int
    flags: int
    minimum_block: int = 1
    preferred_block: int = 4096
    maximum_block: int = wire.DEFAULT_MAXIMUM_BLOCK
    structured: bool = False
    contexts: Mapping[str, int] = MappingProxyType({})
    bitmaps: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether writes will be refused."""
        return self._has(wire.FLAG_READ_ONLY)

    @property
    def can_flush(self) -> bool:
        """Whether flush may be sent."""
        return self._has(wire.FLAG_SEND_FLUSH)

    @property
    def can_zero(self) -> bool:
        """Whether write zeroes may be sent."""
        return self._has(wire.FLAG_SEND_WRITE_ZEROES)

    @property
    def can_multi_conn(self) -> bool:
        """Whether a flush on one connection covers writes on the others."""
        return self._has(wire.FLAG_CAN_MULTI_CONN)

    @property
    def can_extents(self) -> bool:
        """Whether the server tells what is allocated."""
        return wire.BASE_ALLOCATION in self.contexts

    @property
    def dirty_context(self) -> str | None:
        """Name of the negotiated dirty bitmap context, None if there is none."""
        return next((name for name in self.contexts if name.startswith(wire.DIRTY_BITMAP)), None)

    def require_dirty(self) -> str:
        """Return the name of the dirty bitmap context.

        Raises:
            UnsupportedOperation: none was negotiated; it says why.
        """
        if self.dirty_context is not None:
            return self.dirty_context
        raise UnsupportedOperation(f"no dirty extents of NBD export {self.name!r}: {self.why_not_dirty}")

    @property
    def why_not_dirty(self) -> str:
        """Why there is no dirty bitmap context, for messages; empty if there is one."""
        if self.dirty_context is not None:
            return ""
        if len(self.bitmaps) > 1:
            return f"it has several bitmaps, name one of {', '.join(self.bitmaps)}"
        return f"it has no bitmap {self.bitmaps[0]!r}" if self.bitmaps else "it has no bitmap"

    def by_name(self, status: Mapping[int, bytes]) -> dict[str, bytes]:
        """Return a complete block status by names instead of numbers of contexts."""
        return {name: status[number] for name, number in self.contexts.items()}

    def _has(self, flag: int) -> bool:
        return bool(self.flags & flag)


def negotiate(export: str, *, dirty: bool = False, bitmap: str | None = None) -> Steps[Export]:
    """Negotiate an export; see the head of this file for what is yielded.

    Args:
        export: name of the export.
        dirty: ask for a dirty bitmap too.
        bitmap: name of that bitmap; without it the server is asked for its
            bitmaps, and the only one is taken.

    Raises:
        ProtocolError: the server broke the rules.
        RequestError: the server refused, e.g. ENOENT for an unknown export.
        ValueError: a name is too long for the protocol.
    """
    flags = yield from _greeting()
    no_zeroes = bool(flags & wire.FLAG_NO_ZEROES)
    if not flags & wire.FLAG_FIXED_NEWSTYLE:
        return (yield from _export_name(Export(export, 0, 0), no_zeroes))
    structured = yield from _structured_replies()
    bitmaps: tuple[str, ...] = ()
    contexts: Mapping[str, int] = {}
    if structured:
        if bitmap is not None:
            bitmaps = (bitmap,)
        elif dirty:
            bitmaps = yield from _list_bitmaps(export)
        contexts = yield from _set_contexts(export, bitmaps)
    known = Export(export, 0, 0, structured=structured, contexts=contexts, bitmaps=bitmaps)
    agreed = yield from _go(known)
    if agreed is None:
        agreed = yield from _export_name(known, no_zeroes)
    return agreed


def list_exports() -> Steps[tuple[str, ...]]:
    """Ask for the names of the exports; see the head of this file for what is yielded.

    Raises:
        ProtocolError: the server broke the rules.
        RequestError: the server refused; EOPNOTSUPP if it cannot list.
    """
    flags = yield from _greeting()
    if not flags & wire.FLAG_FIXED_NEWSTYLE:
        raise RequestError("cannot list exports: the server only knows the old negotiation", errno=errno.EOPNOTSUPP)
    yield wire.option(wire.OPT_LIST)
    names: list[str] = []
    for _ in range(MAX_REPLIES):
        kind, data = yield from _reply(wire.OPT_LIST)
        if kind == wire.REP_ACK:
            yield wire.option(wire.OPT_ABORT)
            return tuple(names)
        if kind != wire.REP_SERVER:
            raise _refused("list exports", kind, data)
        names.append(_server_name(data))
    raise ProtocolError(f"NBD server sent more than {MAX_REPLIES} exports")


def _greeting() -> Steps[int]:
    magic, second = wire.GREETING.unpack((yield wire.GREETING.size))
    if magic != wire.INIT_MAGIC:
        raise ProtocolError(f"not an NBD server: its greeting is {magic:#x}, expected {wire.INIT_MAGIC:#x}")
    if second == wire.OLDSTYLE_MAGIC:
        raise ProtocolError("NBD server uses the oldstyle negotiation, which is not supported")
    if second != wire.OPTION_MAGIC:
        raise ProtocolError(f"NBD server sent magic {second:#x} in its greeting, expected {wire.OPTION_MAGIC:#x}")
    (flags,) = wire.HANDSHAKE_FLAGS.unpack((yield wire.HANDSHAKE_FLAGS.size))
    known: int = flags & (wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES)
    yield wire.CLIENT_FLAGS.pack(known)
    return known


def _structured_replies() -> Steps[bool]:
    yield wire.option(wire.OPT_STRUCTURED_REPLY)
    kind, data = yield from _reply(wire.OPT_STRUCTURED_REPLY)
    if kind == wire.REP_ACK:
        return True
    if kind & wire.REP_ERROR_BIT and kind != wire.REP_ERR_TLS_REQD:
        return False
    raise _refused("structured replies", kind, data)


def _list_bitmaps(export: str) -> Steps[tuple[str, ...]]:
    yield wire.meta_contexts(wire.OPT_LIST_META_CONTEXT, export, [wire.DIRTY_BITMAP])
    found = yield from _contexts(wire.OPT_LIST_META_CONTEXT)
    prefix = wire.DIRTY_BITMAP
    return tuple(name[len(prefix) :] for name, _ in found if name.startswith(prefix))


def _set_contexts(export: str, bitmaps: tuple[str, ...]) -> Steps[Mapping[str, int]]:
    queries = [wire.BASE_ALLOCATION, wire.ALLOCATION_DEPTH]
    # Of several bitmaps the right one is unknown; a wrong one would lose data in a backup.
    if len(bitmaps) == 1:
        queries.append(wire.DIRTY_BITMAP + bitmaps[0])
    yield wire.meta_contexts(wire.OPT_SET_META_CONTEXT, export, queries)
    contexts: dict[str, int] = {}
    for name, number in (yield from _contexts(wire.OPT_SET_META_CONTEXT)):
        if name not in queries:
            raise ProtocolError(f"NBD server selected metadata context {name!r}, which was not asked for")
        if name in contexts or number in contexts.values():
            raise ProtocolError(f"NBD server selected metadata context {name!r} ({number}) twice")
        contexts[name] = number
    return contexts


def _contexts(option: int) -> Steps[tuple[tuple[str, int], ...]]:
    """Context replies up to the final one; a refusal reads as none."""
    found: list[tuple[str, int]] = []
    for _ in range(MAX_REPLIES):
        kind, data = yield from _reply(option)
        if kind == wire.REP_ACK:
            return tuple(found)
        if kind & wire.REP_ERROR_BIT:
            return ()
        if kind != wire.REP_META_CONTEXT or len(data) < wire.U32.size:
            raise _unexpected(option, kind, data)
        (number,) = wire.U32.unpack_from(data)
        found.append((data[wire.U32.size :].decode("utf-8", "surrogateescape"), number))
    raise ProtocolError(f"NBD server sent more than {MAX_REPLIES} metadata contexts")


def _go(known: Export) -> Steps[Export | None]:
    """Agree on the export with GO. None: the server does not know that option."""
    yield wire.go(known.name)
    size_flags: tuple[int, int] | None = None
    blocks = (1, 4096, wire.DEFAULT_MAXIMUM_BLOCK)
    for _ in range(MAX_REPLIES):
        kind, data = yield from _reply(wire.OPT_GO)
        if kind == wire.REP_ACK:
            if size_flags is None:
                raise ProtocolError(f"NBD server agreed to export {known.name!r} without telling its size")
            return _agreed(known, size_flags, blocks)
        if kind == wire.REP_ERR_UNSUP:
            return None
        if kind != wire.REP_INFO:
            raise _refused(f"export {known.name!r}", kind, data)
        if len(data) < wire.INFO.size:
            raise _unexpected(wire.OPT_GO, kind, data)
        (info,) = wire.INFO.unpack_from(data)
        if info == wire.INFO_EXPORT:
            size_flags = wire.EXPORT.unpack(_exactly(data, wire.INFO.size + wire.EXPORT.size))
        elif info == wire.INFO_BLOCK_SIZE:
            blocks = _block_sizes(_exactly(data, wire.INFO.size + wire.BLOCK_SIZES.size))
    raise ProtocolError(f"NBD server sent more than {MAX_REPLIES} replies about export {known.name!r}")


def _export_name(known: Export, no_zeroes: bool) -> Steps[Export]:
    """Agree on the export the old way; a server that refuses closes the connection."""
    name = wire.string(known.name)[wire.U32.size :]
    yield wire.option(wire.OPT_EXPORT_NAME, name)
    data = yield wire.EXPORT.size
    if not no_zeroes:
        yield 124
    return _agreed(known, wire.EXPORT.unpack(data), (1, 4096, wire.DEFAULT_MAXIMUM_BLOCK))


def _agreed(known: Export, size_flags: tuple[int, int], blocks: tuple[int, int, int]) -> Export:
    size, flags = size_flags
    if size > wire.MAX_SIZE:
        raise ProtocolError(f"NBD server says export {known.name!r} has {size} bytes, expected at most {wire.MAX_SIZE}")
    # Without HAS_FLAGS the others mean nothing.
    if not flags & wire.FLAG_HAS_FLAGS:
        flags = 0
    minimum, preferred, maximum = blocks
    return Export(
        known.name,
        size,
        flags,
        minimum_block=minimum,
        preferred_block=preferred,
        maximum_block=maximum,
        structured=known.structured,
        contexts=known.contexts,
        bitmaps=known.bitmaps,
    )


def _block_sizes(data: bytes) -> tuple[int, int, int]:
    minimum, preferred, maximum = wire.BLOCK_SIZES.unpack(data)
    valid = _is_power_of_2(minimum) and minimum <= 65536 and _is_power_of_2(preferred) and minimum <= preferred
    if not valid or maximum < minimum:
        raise ProtocolError(f"NBD server has impossible block sizes: {minimum}, {preferred}, {maximum}")
    return minimum, preferred, maximum - maximum % minimum


def _is_power_of_2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def _reply(option: int) -> Steps[tuple[int, bytes]]:
    """One reply to an option: its type and data."""
    magic, echo, kind, length = wire.OPTION_REPLY.unpack((yield wire.OPTION_REPLY.size))
    if magic != wire.OPTION_REPLY_MAGIC:
        raise ProtocolError(f"NBD server sent magic {magic:#x}, expected {wire.OPTION_REPLY_MAGIC:#x}")
    if echo != option:
        raise ProtocolError(f"NBD server replied to option {echo}, expected {option}")
    if length > MAX_REPLY:
        raise ProtocolError(f"NBD server announced {length} bytes for option {option}, expected at most {MAX_REPLY}")
    data = (yield length) if length else b""
    return kind, data


def _exactly(data: bytes, size: int) -> bytes:
    """The information item's content after its type; its size must match."""
    if len(data) != size:
        raise _unexpected(wire.OPT_GO, wire.REP_INFO, data)
    return data[wire.INFO.size :]


def _server_name(data: bytes) -> str:
    """Name in a REP_SERVER, which may be followed by details for people."""
    if len(data) >= wire.U32.size:
        (length,) = wire.U32.unpack_from(data)
        name = data[wire.U32.size : wire.U32.size + length]
        if len(name) == length:
            return name.decode("utf-8", "surrogateescape")
    raise _unexpected(wire.OPT_LIST, wire.REP_SERVER, data)


def _refused(what: str, kind: int, data: bytes) -> Exception:
    if not kind & wire.REP_ERROR_BIT:
        return ProtocolError(f"NBD server sent unexpected reply type {kind} about {what}")
    why, code = _REFUSALS.get(kind, (f"the server refused with error {kind:#x}", errno.EINVAL))
    said = f" ({wire.text(data)})" if data else ""
    return RequestError(f"NBD {what}: {why}{said}", errno=code)


def _unexpected(option: int, kind: int, data: bytes) -> ProtocolError:
    return ProtocolError(f"NBD server sent a malformed reply of type {kind} and {len(data)} bytes to option {option}")
