# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Where TLS records end, RFC 8446 §5.1 and RFC 5246 §6.2.

OpenSSL is given whole records only, and reads all that it is given. It need not be asked once
more, to say by an exception that it wants to read. A ClientHello that comes byte by byte makes
it work once.
"""

from __future__ import annotations

_HEADER = 5  # type, version, length
_LONGEST = _HEADER + 2**14 + 2048  # TLS 1.2; 1.3 allows 256 bytes above 2**14


def whole_records(data: bytes | memoryview, limit: int) -> int:
    """Return how many bytes of data, from its beginning, are whole records.

    Args:
        data: Bytes that were received, beginning with a record.
        limit: Bytes of records that are enough; the first may be longer.

    Returns:
        0 if the first record is not complete. All of data where a record is longer than records may
        be: OpenSSL shall refuse it at once.
    """
    size = len(data)
    end = 0
    while size - end >= _HEADER:
        length = _HEADER + (data[end + 3] << 8 | data[end + 4])
        if length > _LONGEST:
            return size
        if end + length > size or (end and end + length > limit):
            break
        end += length
    return end
