# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How an image file is named to qemu, so that its name is never taken for more.

qemu reads `nbd:…`, `json:…` or `fat:rw:…` at the start of a file name as a protocol.
Every image is therefore given with its drivers, as a JSON reference:

    {"driver": "qcow2", "file": {"driver": "file", "filename": "/path"}}
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any, Sequence

_SECTOR = 512

Options = Sequence["tuple[str, str]"]
"""Options of a format driver: name and value of each."""


def node(
    filename: str,
    fmt: str,
    *,
    offset: int | None = None,
    size: int | None = None,
    backing_chain: bool = True,
    backing: dict[str, Any] | None = None,
    options: Options = (),
) -> dict[str, Any]:
    """Describe an image to qemu's block layer. See qemu(1), "-blockdev".

    Args:
        filename: Path of a regular file or a block device.
        fmt: Format driver, such as `raw` or `qcow2`.
        offset: Where the image begins in the file, for a member of a tar file.
        size: Bytes of the image there.
        backing_chain: Let the backing file show through; else what is not allocated
            in the image itself reads as zeroes.
        backing: Node of the backing file, for an image whose header is not trusted;
            None lets qemu open what the image names.
        options: Further options of the format driver.

    Raises:
        ValueError: The name is not UTF-8: qemu's JSON knows nothing else.
    """
    path = os.path.abspath(filename)
    _check_name(path)
    file: dict[str, Any] = {
        "driver": protocol(filename),
        "filename": path,
    }
    if offset is not None or size is not None:
        file = {"driver": "raw", "file": file, "offset": offset or 0}
        if size is not None:
            # qemu counts in sectors; a tar file is padded to them.
            file["size"] = -(-size // _SECTOR) * _SECTOR
    if fmt == "raw" and file["driver"] == "raw":
        return file
    result: dict[str, Any] = {"driver": fmt, **dict(options), "file": file}
    if not backing_chain and fmt in ("qcow2", "qcow", "qed", "vmdk"):
        result["backing"] = None
    elif backing is not None:
        result["backing"] = backing
    return result


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"file name {path!r} is not UTF-8: qemu cannot open it") from e


def plain(filename: str) -> str:
    """Write a relative name so that qemu takes it for a file, whatever characters it has.

    Without a slash before it, all up to a colon names a protocol.
    """
    return os.path.join(".", filename) if ":" in filename.partition("/")[0] else filename


def protocol(filename: str) -> str:
    """The protocol driver for a path: qemu tells files from host devices."""
    try:
        mode = os.stat(filename).st_mode
    except FileNotFoundError:
        return "file"
    return "host_device" if stat.S_ISBLK(mode) else "file"


def without_references(text: str, args: Sequence[str]) -> str:
    """Name files in place of the references to them, in the words of a tool.

    Args:
        text: Its words.
        args: Its arguments.
    """
    for arg in args:
        if arg.startswith(_JSON):
            node = json.loads(arg[len(_JSON) :])
            while isinstance(node.get("file"), dict):
                node = node["file"]
            text = text.replace(arg, str(node.get("filename", arg)))
    return text


_JSON = "json:"


def reference(*args: Any, **kwargs: Any) -> str:
    """The node of an image as a `json:` file name, which all tools take."""
    return _JSON + json.dumps(node(*args, **kwargs))
