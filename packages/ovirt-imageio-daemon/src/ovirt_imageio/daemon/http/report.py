# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Log lines about requests that went wrong: one line each, without ticket ids.

Of a client that is refused again and again ten refusals in a minute have a line, and one line
counts the rest: see refusals.py.

Storage that fails is daily life, and its error names the reason. Only an unexpected error comes
with a traceback, every error at level DEBUG. That level has a line for each request as well.
"""

from __future__ import annotations

import logging

from ovirt_imageio.common.errors import (
    ImageioError,
    OperationCancelled,
    PeerGone,
    PeerTimeout,
    ServerGone,
)

from ..errors import DeadlineExpired, HttpError
from ..log import one_line, short_id
from .message import Request

_BEFORE_ID = ("images", "tickets")
_CLIENT_LEFT = (PeerGone, PeerTimeout, OperationCancelled, DeadlineExpired)

log = logging.getLogger(__name__)


def served(request: Request, status: int, seconds: float) -> None:
    """Log a request that has ended, at level DEBUG. Status 0 means that it was given up."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s: %d in %.4f s", _subject(request), status, seconds)


def refused(request: Request, answer: HttpError) -> None:
    """Log who was refused what, and why."""
    level = logging.WARNING if answer.status >= 500 else logging.INFO
    log.log(level, "%s: %s", _subject(request), one_line(_without_id(request, str(answer))))


def left_out(service: str, client: str, count: int) -> None:
    """Log how many refusals of a client have no line, because those before were so many."""
    log.info("%s: %s: %d more requests were refused", service, client, count)


def failed(request: Request, error: Exception) -> None:
    """Log why a request is answered 500, which does not tell the client."""
    log.error("%s: failed: %s", _subject(request), _cause(request, error), exc_info=_traceback(error))


def broke_off(request: Request, error: Exception) -> None:
    """Log an error that came after the head: the client sees a connection that ends."""
    quiet = isinstance(error, _CLIENT_LEFT) and not isinstance(error, ServerGone)
    log.log(
        logging.INFO if quiet else logging.ERROR,
        "%s: broke off: %s",
        _subject(request),
        _cause(request, error),
        exc_info=None if quiet else _traceback(error),
    )


def _subject(request: Request) -> str:
    path = _without_id(request, repr(request.path[:200]))
    return f"{request.service}: {request.peer}: {request.method} {path}"


def _cause(request: Request, error: Exception) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return one_line(_without_id(request, text))


def _without_id(request: Request, text: str) -> str:
    """Abbreviate the id of the ticket that the path names: whoever knows it may use it."""
    parts = request.path.split("/", 3)
    if len(parts) > 2 and parts[1] in _BEFORE_ID:  # as sent: it may be encoded, and of no resource at all
        text = text.replace(parts[2], short_id(parts[2]))
    ticket_id = request.params.get("id")
    return text.replace(ticket_id, short_id(ticket_id)) if ticket_id else text


def _traceback(error: Exception) -> Exception | None:
    expected = isinstance(error, (OSError, ImageioError))
    return None if expected and not log.isEnabledFor(logging.DEBUG) else error
