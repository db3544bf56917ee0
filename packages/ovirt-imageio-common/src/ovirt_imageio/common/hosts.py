# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts as URLs write them: IPv6 addresses have brackets there, and their zone a percent sign of its own. Pure.

    fe80::1%eth0     as getaddrinfo(3) takes it, and as people write it
    [fe80::1%25eth0] in a URL

Source: RFC 3986 §3.2.2, RFC 6874.
"""

from __future__ import annotations

_ENCODED = "%25"


def decode_zone(host: str) -> str:
    """Return a host of a URL, its brackets gone, as getaddrinfo(3) takes it.

    Args:
        host: A name or an address. A zone that is not encoded, as many write it, stays as it is.
    """
    address, percent, zone = host.partition(_ENCODED)
    if ":" not in address or not percent or not zone:  # fe80::1%25 names the zone 25
        return host
    if "%" in zone:
        from urllib.parse import unquote  # 3 ms, and rarely needed

        zone = unquote(zone)
    return f"{address}%{zone}"


def without_zone(host: str) -> str:
    """Return a host as a server knows it: a zone means something on this machine only.

    So certificates have none, and RFC 6874 §4 wants none in a request.
    """
    return host.partition("%")[0] if ":" in host else host


def in_url(host: str) -> str:
    """Return a host as a URL writes it: what `decode_zone` undoes, in brackets."""
    if ":" not in host:
        return host
    address, percent, zone = host.partition("%")
    if percent:
        from urllib.parse import quote  # 3 ms, and rarely needed

        address += _ENCODED + quote(zone, safe="")
    return f"[{address}]"
