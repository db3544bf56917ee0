# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Facts that the OpenAPI description cannot tell schemathesis: which tickets there are, and that ids agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import schemathesis

_hook: Callable[[Callable[..., Any]], Callable[..., Any]] = schemathesis.hook

# Most requests are for a ticket that allows them.
_TICKETS = ("writer", "reader", "writer", "*", "unknown")


@_hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Use one of a few ids most of the time, the same for the same example."""
    if path_parameters and isinstance(path_parameters.get("id"), str):
        number = sum(map(ord, path_parameters["id"]))
        if number % 8 != 7:
            path_parameters["id"] = _TICKETS[number // 8 % len(_TICKETS)]
    return path_parameters


@_hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Let a well-formed document name the ticket of the path, and write its integers without a fraction."""
    if case.meta is None or not case.meta.generation.mode.is_positive or not isinstance(case.body, dict):
        return
    case.body = {key: _plain(value) for key, value in case.body.items()}
    if case.operation.label == "PUT /tickets/{id}":
        case.body["uuid"] = unquote(str((case.path_parameters or {}).get("id")))


def _plain(value: Any) -> Any:
    """Write 1.0, an integer to JSON Schema and none to the contract, as 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
