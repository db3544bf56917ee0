# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether an image is whole, before anything of it is uploaded.

The missing end of an image reads as zeroes, so an upload of it succeeds, and so does a
comparison. `qemu-img check` finds that, and tables that contradict each other, in most formats.
Of a raw image nothing can be told.
"""

from __future__ import annotations

import logging
from typing import Sequence

from ovirt_imageio.client import formats
from ovirt_imageio.client.cutoff import end_of_data
from ovirt_imageio.client.layers import InvalidImage, Layer
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.qemu import img

log = logging.getLogger(__name__)

_ADVICE = "pass check=False to upload what can be read of it"


class DamagedImage(InvalidImage):
    """An image is cut off, or its tables contradict each other; the text says what was found."""


def check_layers(layers: Sequence[Layer], *, cancel: Cancel | None = None) -> None:
    """Make sure that each image of a chain is whole, as far as its format allows.

    Args:
        layers: From `layers.look`.
        cancel: Ends the check.

    Raises:
        DamagedImage: One is not.
        QemuImgError: qemu-img is missing, or cannot open one: for example because a qemu
            writes to it.
        OSError: A file cannot be read.
    """
    for layer in layers:
        if layer.driver != "raw":
            # First what asks for the locks of qemu: the end of an image that is written to moves.
            _check_tables(layer, cancel)
            _check_end(layer, cancel)


def _check_end(layer: Layer, cancel: Cancel | None) -> None:
    def read(offset: int, length: int) -> bytes:
        if cancel is not None:
            cancel.check()
        return layer.read(offset, length)

    size = layer.file_size
    try:
        missing = end_of_data(layer.fmt, read, size) - size
    except ValueError as e:
        raise DamagedImage(f"{layer.path} is damaged: its tables have {e}; {_ADVICE}") from e
    if missing > 0:
        raise DamagedImage(f"{layer.path} is cut off: {_number(missing, 'byte')} missing at its end; {_ADVICE}")


def _check_tables(layer: Layer, cancel: Cancel | None) -> None:
    marks = formats.marks(layer.fmt, layer.read)
    report = img.check(
        layer.path,
        fmt=layer.driver,
        offset=layer.offset,
        size=layer.size,
        options=layer.options,
        counts_are_old=marks.is_dirty,
        cancel=cancel,
    )
    if report.is_damaged:
        words = "; ".join(report.words)
        found = f"qemu-img check found {_number(report.corruptions or report.errors, 'error')}"
        raise DamagedImage(f"{layer.path} is damaged: {found}{': ' + words if words else ''}; {_ADVICE}")
    if marks.is_corrupt:
        log.warning("%s was marked as corrupt by qemu, but qemu-img check finds nothing", layer.path)
    if report.leaks:
        leaks = _number(report.leaks, "cluster")
        log.warning("%s has %s that nothing refers to; qemu-img check -r leaks gives them back", layer.path, leaks)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
