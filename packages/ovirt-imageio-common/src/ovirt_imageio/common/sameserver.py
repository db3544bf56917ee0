# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A proof that a Unix socket belongs to the server that a client already speaks to by TLS.

The server names its Unix socket to clients that come by TCP. A forwarded port can make a client
look for that name on the wrong host, where another program may own it. The ticket's id is a
secret, so the socket proves itself first:

    client                              server, by TLS            whatever owns the socket
      │ OPTIONS /images/TICKET ────────────►│                                 │
      │◄──────── unix_socket_proof: id, key ┤                                 │
      │ OPTIONS /images/*, Imageio-Challenge: id nonce ──────────────────────►│
      │◄────────────────────────── Imageio-Proof: HMAC(key, "id nonce") ──────┤

The key is HMAC(secret, id), and the secret never leaves the server. So only a holder of the
secret can answer for an id that it did not give out itself. The remote service answers no
challenge: another program cannot pass one on. Source: RFC 2104.

Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple

SIZE = 16
"""Bytes of an id, and of a nonce."""

_WORD = rf"[0-9a-f]{{{2 * SIZE}}}"
_is_challenge = re.compile(rf"{_WORD} {_WORD}\Z").match
_is_id = re.compile(rf"{_WORD}\Z").match
_is_key = re.compile(r"[0-9a-f]{64}\Z").match


class Key(NamedTuple):
    """A key that a server gives to one client.

    Attributes:
        id: 32 hexadecimal digits, at random.
        key: 64 hexadecimal digits, made from the id and the server's secret.
    """

    id: str
    key: str


def make_key(secret: bytes, random: bytes) -> Key:
    """Return a key for one client.

    Args:
        secret: Of the server, 16 bytes or more.
        random: `SIZE` random bytes.
    """
    name = random.hex()
    return Key(name, _hmac(secret, name))


def parse_key(document: object) -> Key:
    """Return the key that a server sent.

    Raises:
        ValueError: The document holds none.
    """
    if isinstance(document, dict):
        name, key = document.get("id"), document.get("key")
        if isinstance(name, str) and isinstance(key, str) and _is_id(name) and _is_key(key):
            return Key(name, key)
    raise ValueError("unix_socket_proof has no id of 32 and key of 64 hexadecimal digits")


def make_challenge(key: Key, random: bytes) -> str:
    """Return the value of `Imageio-Challenge`.

    Args:
        key: From the server.
        random: `SIZE` random bytes.
    """
    return f"{key.id} {random.hex()}"


def answer(secret: bytes, challenge: str) -> str:
    """Return the value of `Imageio-Proof`.

    Raises:
        ValueError: The challenge is malformed.
    """
    if not _is_challenge(challenge):
        raise ValueError(f"expected two words of {2 * SIZE} hexadecimal digits")
    return _proof(_hmac(secret, challenge[: 2 * SIZE]), challenge)


def holds(key: Key, challenge: str, proof: str) -> bool:
    """Tell if a proof answers a challenge."""
    return hmac.compare_digest(_proof(key.key, challenge).encode(), proof.encode("utf-8", "replace"))


def _proof(key: str, challenge: str) -> str:
    return _hmac(bytes.fromhex(key), challenge)


def _hmac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
