# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Which handler a path and a method lead to."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from ..errors import HttpError
from .message import Handler

_ORDER = ("OPTIONS", "GET", "HEAD", "PUT", "PATCH", "POST", "DELETE")
_NAME_LIMIT = 100  # of a path that is repeated in an error


class Route:
    """A resource and its handlers.

    Args:
        pattern: Path such as ``/images/{id}/extents``. A part in braces matches any
            part that is not empty, and is given to the handler decoded, under its name.
        handlers: By method. HEAD is served by GET's.
    """

    def __init__(self, pattern: str, handlers: Mapping[str, Handler]) -> None:
        if not pattern.startswith("/"):
            raise ValueError(f"pattern {pattern!r} does not begin with '/'")
        self.pattern = pattern
        self.handlers = dict(handlers)
        if "GET" in self.handlers:
            self.handlers.setdefault("HEAD", self.handlers["GET"])
        self._parts = pattern[1:].split("/")
        self.params = [(i, part[1:-1]) for i, part in enumerate(self._parts) if part[:1] == "{"]
        self.fixed = [(i, part) for i, part in enumerate(self._parts) if part[:1] != "{"]
        self.length = len(self._parts)
        self.allow = _allow(self.handlers)

    def match(self, parts: list[str]) -> dict[str, str] | None:
        """Return the named parts of a path that is this resource's, else None.

        Args:
            parts: As many as the pattern has.
        """
        for i, text in self.fixed:
            if parts[i] != text:
                return None
        params = {}
        for i, name in self.params:
            if not parts[i]:
                return None
            params[name] = parts[i]
        return params


class Match(NamedTuple):
    """A resource and the named parts of the path."""

    route: Route
    params: dict[str, str]


class Routes:
    """The resources of a service."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._by_length: dict[int, list[Route]] = {}
        methods: set[str] = set()
        for route in routes:
            self._by_length.setdefault(route.length, []).append(route)
            methods.update(route.handlers)
        # Fixed parts before named ones: "/images/x" is found before "/images/{id}".
        for found in self._by_length.values():
            found.sort(key=lambda route: len(route.params))
        self.allow = _allow(methods)

    def find(self, path: str) -> Match:
        """Return the resource that a path names.

        Args:
            path: Percent-encoded as it was sent, beginning with a slash.

        Raises:
            HttpError: 404 if there is none, 400 if the path is not valid UTF-8.
        """
        parts = path[1:].split("/")
        if "%" in path:
            parts = _decoded(parts)
        for route in self._by_length.get(len(parts), ()):
            params = route.match(parts)
            if params is not None:
                return Match(route, params)
        raise HttpError(404, f"there is no resource {path[:_NAME_LIMIT]!r}")


def _allow(methods: Container[str]) -> str:
    """The value of an Allow field; OPTIONS is answered everywhere."""
    return ",".join(m for m in _ORDER if m == "OPTIONS" or m in methods)


def _decoded(parts: list[str]) -> list[str]:
    if not any("%" in part for part in parts):
        return parts
    from urllib.parse import unquote  # 3 ms, and rarely needed

    try:
        return [unquote(part, errors="strict") for part in parts]
    except UnicodeDecodeError:
        raise HttpError(400, "the path is not valid UTF-8") from None
