# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Parameters that clients give in JSON documents and query strings, checked.

Every function raises `HttpError` 400 with the name of the parameter, its value and what
was expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ovirt_imageio.common.errors import shown

from .errors import HttpError

# Offsets and sizes are off_t of lseek(2); larger numbers could not be computed with as floats.
MAX_INTEGER = 2**63 - 1

_SHOWN = 100  # characters of a value that an error repeats


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object that a request's body holds.

    Raises:
        HttpError: 400 if it is not JSON in UTF-8, nests too deep, or is no object.
    """
    try:
        document = json.loads(data.decode("utf-8"))
    except RecursionError as e:
        raise HttpError(400, "the JSON document is nested too deep") from e
    except ValueError as e:  # JSONDecodeError, UnicodeDecodeError, a number of 5000 digits
        raise HttpError(400, f"the body is not a JSON document: {e}") from e
    if not isinstance(document, dict):
        raise HttpError(400, f"the body is {_kind(document)}, expected a JSON object")
    return document


def integer(
    document: Mapping[str, Any],
    key: str,
    *,
    default: int | None = None,
    minimum: int = 0,
    maximum: int = MAX_INTEGER,
) -> int:
    """Return an integer of a document; a boolean is none.

    Args:
        document: Where to look.
        key: The name.
        default: The value of a missing key; None if it is required.
        minimum: Least value.
        maximum: Largest value.
    """
    if key not in document and default is not None:
        return default
    value = required(document, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise invalid(key, value, "an integer")
    if not minimum <= value <= maximum:
        raise invalid(key, value, f"an integer from {minimum} to {maximum}")
    return value


def boolean(document: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    """Return a boolean of a document; a number is none."""
    value = document.get(key, default)
    if not isinstance(value, bool):
        raise invalid(key, value, "true or false")
    return value


def text(document: Mapping[str, Any], key: str) -> str:
    """Return a required, non-empty string of a document."""
    value = required(document, key)
    if not isinstance(value, str) or not value:
        raise invalid(key, value, "a non-empty string")
    return _unicode(key, value)


def optional_text(document: Mapping[str, Any], key: str) -> str | None:
    """Return a string of a document, which may be empty; None if the key is missing."""
    if key not in document:
        return None
    value = document[key]
    if not isinstance(value, str):
        raise invalid(key, value, "a string")
    return _unicode(key, value)


def _unicode(key: str, value: str) -> str:
    r"""Return a string; what JSON writes as `\ud800` alone can be sent and logged by nobody."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise invalid(key, value, "text without lone surrogates") from e
    return value


def choice(document: Mapping[str, Any], key: str, choices: Sequence[str]) -> str:
    """Return a required string of a document that is one of several words."""
    value = required(document, key)
    if not isinstance(value, str) or value not in choices:
        raise invalid(key, value, _one_of(choices))
    return value


def required(document: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key that must be there."""
    if key not in document:
        raise HttpError(400, f"{key!r} is missing")
    return document[key]


def query_flag(query: Mapping[str, str], key: str, *, default: bool) -> bool:
    """Return a parameter of a query that is ``y`` or ``n``."""
    value = query.get(key)
    if value is None:
        return default
    if value not in ("y", "n"):
        raise invalid(key, value, "'y' or 'n'")
    return value == "y"


def query_integer(
    query: Mapping[str, str],
    key: str,
    *,
    default: int,
    minimum: int = 0,
    maximum: int = MAX_INTEGER,
) -> int:
    """Return a parameter of a query that is a decimal number."""
    value = query.get(key)
    if value is None:
        return default
    if value.isascii() and value.isdigit() and len(value) < 20:
        number = int(value)
        if minimum <= number <= maximum:
            return number
    raise invalid(key, value, f"an integer from {minimum} to {maximum}")


def query_choice(query: Mapping[str, str], key: str, choices: Sequence[str], default: str) -> str:
    """Return a parameter of a query that is one of several words."""
    value = query.get(key, default)
    if value not in choices:
        raise invalid(key, value, _one_of(choices))
    return value


def invalid(key: str, value: Any, expected: str) -> HttpError:
    """Return the error for a value that is not what was expected."""
    return HttpError(400, f"{key!r} is {_shown(value)}, expected {expected}")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return shown(value)
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return _kind(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _kind(value: Any) -> str:
    kinds = {list: "an array", dict: "an object", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _one_of(choices: Sequence[str]) -> str:
    return "one of " + ", ".join(repr(name) for name in choices)
