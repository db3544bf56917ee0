# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The OpenAPI description as schemathesis needs it.

docs/reference/openapi.yaml tells readers all that may be. Schemathesis takes any request that fits a schema for one
that is served. No schema can tell that two values have to agree, or what a machine has. So a few schemas are made
narrower here, and each says why.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

IMAGE_SIZE = 1 << 20
"""Bytes of the image that is tried: the smallest block of a checksum."""

_NAME = "[A-Za-z0-9/._~-]"
_HOST = "[a-z0-9]+([.-][a-z0-9]+)*"
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3})"
_URLS = (
    f"file:///{_NAME}+",
    f"nbd:unix:/{_NAME}+(:exportname={_NAME}*)?",
    f"nbd:{_HOST}:{_PORT}(:exportname={_NAME}*)?",
    f"nbd://{_HOST}(:{_PORT})?(/{_NAME}*)?",
    rf"nbd\+unix:///{_NAME}*\?socket=/{_NAME}+",
    f"https?://{_HOST}:{_PORT}/images/{_NAME}+",
)


class Narrowing(NamedTuple):
    """A part of the description that is replaced.

    Attributes:
        what: Is not tried therefore.
        why: It is not.
        path: Keys that lead to the part.
        part: The replacement.
    """

    what: str
    why: str
    path: tuple[str, ...]
    part: Any


NARROWINGS = (
    Narrowing(
        "LAST in the Content-Range of an upload",
        "400 where it contradicts the length of the body; test_put.py tries it",
        ("components", "parameters", "contentRange"),
        {
            "name": "Content-Range",
            "in": "header",
            "schema": {"type": "string", "pattern": r"^bytes [0-9]{1,19}-\*/([0-9]{1,19}|\*)$"},
        },
    ),
    Narrowing(
        "algorithms of checksums that not every host has",
        "400 where the host does not have them; test_checksum.py tries all that are listed",
        ("components", "parameters", "algorithm", "schema", "enum"),
        ["blake2b", "blake2s", "sha1", "sha256", "sha512"],
    ),
    Narrowing(
        "an offset of checksums",
        "400 where it is not a multiple of the block size; test_checksum.py tries it",
        ("components", "parameters", "offset", "schema"),
        {"type": "integer", "const": 0},
    ),
    Narrowing(
        "a length of checksums other than none and all",
        "400 where it is not a multiple of the block size; test_checksum.py tries it",
        ("components", "parameters", "length", "schema"),
        {"type": "integer", "enum": [0, IMAGE_SIZE]},
    ),
    Narrowing(
        "addresses of storage with other characters",
        "400 where they are not understood; test_tickets.py of the daemon tries them",
        ("components", "schemas", "NewTicket", "properties", "url"),
        {"type": "string", "pattern": f"^({'|'.join(_URLS)})$"},
    ),
    Narrowing(
        "preflight requests",
        "200 without Allow where the request would be refused; test_router.py of the daemon tries them",
        ("paths", "/images/{id}", "options", "responses", "200", "headers", "Allow", "required"),
        True,
    ),
)


def narrowed(description: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the description with what `NARROWINGS` tells."""
    result = copy.deepcopy(description)
    schemas = result["components"]["schemas"]
    # Answers that describe a ticket are not narrowed.
    schemas["NewTicket"] = copy.deepcopy(schemas["Ticket"])
    body = result["paths"]["/tickets/{id}"]["put"]["requestBody"]["content"]["application/json"]
    body["schema"] = {"$ref": "#/components/schemas/NewTicket"}
    for narrowing in NARROWINGS:
        *keys, last = narrowing.path
        node = result
        for key in keys:
            node = node[key]
        node[last] = narrowing.part
    return result
