# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Upload, download and inspect virtual disks.

    from ovirt_imageio import client

    with client.ProgressBar() as progress:
        client.upload("disk.qcow2", url, "ca.pem", progress=progress)

Whole images: `upload` and `download`, which return a `TransferResult`. Random access: `ImageioClient`. Images on this
machine: `info`, `measure`, `checksum`, `extents`. Classes of extents: `ZeroExtent`, `DirtyExtent`.
The end of a call from another thread: `Cancel`.

Each of them is loaded when it is first used (PEP 562). Many programs import the package and
need one of them, or only ask for its version.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from ovirt_imageio.common.cancel import Cancel
    from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent

    from .api import BUFFER_SIZE, MAX_WORKERS, download, upload
    from .inspection import checksum, extents, info, measure
    from .progress import ProgressBar
    from .remote import ImageioClient
    from .result import TransferResult

__all__ = [
    "BUFFER_SIZE",
    "MAX_WORKERS",
    "Cancel",
    "DirtyExtent",
    "ImageioClient",
    "ProgressBar",
    "TransferResult",
    "ZeroExtent",
    "__version__",
    "checksum",
    "download",
    "extents",
    "info",
    "measure",
    "upload",
]

_MODULES = {
    "Cancel": "ovirt_imageio.common.cancel",
    "ImageioClient": ".remote",
    "ProgressBar": ".progress",
    "TransferResult": ".result",
    **dict.fromkeys(("checksum", "extents", "info", "measure"), ".inspection"),
    **dict.fromkeys(("DirtyExtent", "ZeroExtent"), "ovirt_imageio.common.extents"),
}


def _load(name: str) -> Any:
    """Load what is used for the first time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, ".api"), __name__), name)
    globals()[name] = value
    return value


if not TYPE_CHECKING:
    # A checker that saw it would take every misspelt name for one that exists.
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
