# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which answer a malformed chunked body leads to."""

from __future__ import annotations

import pytest

from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.http.message import BodyDecoder


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"x\r\n", 400), (b"0\r\n" + b"a: bbbbbbbbbb\r\n" * 10000, 431)],
)
def test_malformed_chunks_are_answered(data: bytes, status: int) -> None:
    with pytest.raises(HttpError) as e:
        BodyDecoder().decode(data)
    assert e.value.status == status
    assert e.value.close
