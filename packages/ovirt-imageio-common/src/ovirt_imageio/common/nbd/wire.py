# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Words of the NBD protocol: constants and the packing of messages.

Everything here is a pure value. Names and numbers are those of the protocol
document (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md),
"Values" and "Protocol phases".
"""

from __future__ import annotations

import errno
import struct

DEFAULT_PORT = 10809

# Negotiation: greeting.
INIT_MAGIC = 0x4E42444D41474943  # NBDMAGIC
OPTION_MAGIC = 0x49484156454F5054  # IHAVEOPT
OLDSTYLE_MAGIC = 0x00420281861253

FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1

# Negotiation: options.
OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

# Negotiation: replies to options.
OPTION_REPLY_MAGIC = 0x3E889045565A9
REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4

REP_ERROR_BIT = 1 << 31
REP_ERR_UNSUP = REP_ERROR_BIT + 1
REP_ERR_POLICY = REP_ERROR_BIT + 2
REP_ERR_INVALID = REP_ERROR_BIT + 3
REP_ERR_PLATFORM = REP_ERROR_BIT + 4
REP_ERR_TLS_REQD = REP_ERROR_BIT + 5
REP_ERR_UNKNOWN = REP_ERROR_BIT + 6
REP_ERR_SHUTDOWN = REP_ERROR_BIT + 7
REP_ERR_BLOCK_SIZE_REQD = REP_ERROR_BIT + 8
REP_ERR_TOO_BIG = REP_ERROR_BIT + 9

INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

# Strings of the protocol are at most this long ("Values").
MAX_STRING = 4096

# Transmission flags of an export.
FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_FUA = 1 << 3
FLAG_SEND_TRIM = 1 << 5
FLAG_SEND_WRITE_ZEROES = 1 << 6
FLAG_CAN_MULTI_CONN = 1 << 8
FLAG_SEND_FAST_ZERO = 1 << 11

# Transmission: requests.
REQUEST_MAGIC = 0x25609513
CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

COMMANDS = {
    CMD_READ: "read",
    CMD_WRITE: "write",
    CMD_DISC: "disconnect",
    CMD_FLUSH: "flush",
    CMD_WRITE_ZEROES: "zero",
    CMD_BLOCK_STATUS: "block status",
}

CMD_FLAG_NO_HOLE = 1 << 1

# Transmission: replies.
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

REPLY_FLAG_DONE = 1 << 0

REPLY_NONE = 0
REPLY_OFFSET_DATA = 1
REPLY_OFFSET_HOLE = 2
REPLY_BLOCK_STATUS = 5
REPLY_ERROR_BIT = 1 << 15
REPLY_ERROR = REPLY_ERROR_BIT + 1
REPLY_ERROR_OFFSET = REPLY_ERROR_BIT + 2

# Metadata contexts and their flags.
BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"
DIRTY_BITMAP = "qemu:dirty-bitmap:"

STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1
STATE_DIRTY = 1 << 0

# Payload that a server must take when it advertised no limit ("Block size constraints").
DEFAULT_MAXIMUM_BLOCK = 32 * 1024**2
# Length is an unsigned 32 bit number.
MAX_LENGTH = 2**32 - 1
# Offsets are unsigned 64 bit numbers, but off_t of every server is signed.
MAX_SIZE = 2**63 - 1

GREETING = struct.Struct("!QQ")
HANDSHAKE_FLAGS = struct.Struct("!H")
CLIENT_FLAGS = struct.Struct("!I")
OPTION = struct.Struct("!QII")
OPTION_REPLY = struct.Struct("!QIII")
EXPORT = struct.Struct("!QH")
BLOCK_SIZES = struct.Struct("!III")
INFO = struct.Struct("!H")
U32 = struct.Struct("!I")

REQUEST = struct.Struct("!IHHQQI")
SIMPLE_REPLY = struct.Struct("!IIQ")
STRUCTURED_REPLY = struct.Struct("!IHHQ")  # and U32, the length of what follows
OFFSET = struct.Struct("!Q")
DATA_CHUNK = struct.Struct("!IHHQIQ")  # all of that and an offset
OFFSET_HOLE = struct.Struct("!QI")
ERROR = struct.Struct("!IH")
STATUS_EXTENT = struct.Struct("!II")

# Error numbers on the wire are those of Linux; others read as EINVAL
# ("Error values").
ERRORS = {
    1: errno.EPERM,
    5: errno.EIO,
    12: errno.ENOMEM,
    22: errno.EINVAL,
    28: errno.ENOSPC,
    75: errno.EOVERFLOW,
    95: errno.EOPNOTSUPP,
    108: errno.ESHUTDOWN,
}


def request(command: int, handle: int, offset: int, length: int, *, flags: int = 0) -> bytes:
    """Pack the head of a request of the transmission phase.

    Args:
        command: one of ``CMD_*``.
        handle: the cookie that the reply will carry.
        offset: first byte, in bytes.
        length: in bytes.
        flags: command flags.
    """
    return REQUEST.pack(REQUEST_MAGIC, flags, command, handle, offset, length)


def option(code: int, data: bytes = b"") -> bytes:
    """Pack an option of the negotiation phase with its data."""
    return OPTION.pack(OPTION_MAGIC, code, len(data)) + data


def string(text: str) -> bytes:
    """Pack a string as a 32 bit length and its UTF-8 bytes.

    Raises:
        ValueError: the text needs more than ``MAX_STRING`` bytes.
    """
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > MAX_STRING:
        raise ValueError(f"NBD string is {len(data)} bytes long, expected at most {MAX_STRING}: {text[:60]!r}...")
    return U32.pack(len(data)) + data


def go(export: str) -> bytes:
    """Pack ``NBD_OPT_GO`` for an export, asking for its block sizes."""
    return option(OPT_GO, string(export) + struct.pack("!HH", 1, INFO_BLOCK_SIZE))


def meta_contexts(code: int, export: str, queries: list[str]) -> bytes:
    """Pack ``NBD_OPT_LIST_META_CONTEXT`` or ``NBD_OPT_SET_META_CONTEXT``."""
    return option(code, string(export) + U32.pack(len(queries)) + b"".join(map(string, queries)))


def errno_of(code: int) -> int:
    """Return the errno for an error number found on the wire."""
    return ERRORS.get(code, errno.EINVAL)


def text(data: bytes) -> str:
    """Return a server's message as printable text for an error or a log line."""
    return "".join(c if c.isprintable() else "?" for c in bytes(data).decode("utf-8", "replace"))
