# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

from email.utils import formatdate

import pytest

from ovirt_imageio.daemon.http.head import http_date


@pytest.mark.parametrize("day", range(0, 366 * 5, 13))
def test_date_is_written_as_mail_writes_it_in_gmt(day: int) -> None:
    seconds = day * 86_399
    assert http_date(seconds) == formatdate(seconds, usegmt=True)
