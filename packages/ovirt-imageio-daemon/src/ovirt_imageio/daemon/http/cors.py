# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Which web pages may use a service, and which may not even try.

A page from anywhere may use the images: whoever knows a ticket's id may use it, and a browser
adds no credentials of its own. The control service is the opposite: it trusts whoever
reaches it, so a browser on this host must not be made to.
"""

from __future__ import annotations

import re

from ..errors import HttpError
from .message import Request

Fields = list[tuple[str, str]]

_LOCAL_HOST = r"(?i:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]*)?\Z"


def cors_fields(method: str, headers: dict[str, str]) -> Fields:
    """Return the CORS fields of a response, none unless the request has an Origin.

    Args:
        method: Of the request.
        headers: Of the request.
    """
    if "origin" not in headers:
        return []
    fields = [
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Expose-Headers", "Content-Range, Content-Disposition"),
    ]
    if "access-control-request-headers" in headers:
        fields.append(("Access-Control-Allow-Headers", "*"))
    if "access-control-request-method" in headers:
        fields.append(("Access-Control-Allow-Methods", "OPTIONS,GET,PUT"))
    if method == "OPTIONS":
        fields.append(("Access-Control-Max-Age", "86400"))
    return fields


def cors_fields_of_refused(head: bytes) -> Fields:
    """Return the CORS fields of the answer to what could not be read as a request.

    Args:
        head: As much of it as came.
    """
    return cors_fields("", {"origin": ""} if b"\norigin:" in head.lower() else {})


def is_preflight(method: str, headers: dict[str, str]) -> bool:
    """Tell whether a browser asks if it may send a page's request."""
    return method == "OPTIONS" and "origin" in headers and ("access-control-request-method" in headers)


def local_only(request: Request) -> None:
    """Refuse requests that a web page may have caused: the guard of control over TCP.

    Raises:
        HttpError: With 403 for a request with an Origin. With 400 for a Host other than
            this host's local names (a page whose own name was made to resolve to this host).
            A request without a Host is none of a page: browsers send it always.
    """
    if "origin" in request.headers:
        raise HttpError(403, "web pages may not use this service")
    host = request.headers.get("host")
    if host is not None and not re.match(_LOCAL_HOST, host):
        raise HttpError(400, f"Host is {host[:100]!r}, expected localhost, 127.0.0.1 or [::1]")
