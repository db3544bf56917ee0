# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.common import hosts


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("fe80::1%25eth0", "fe80::1%eth0"),
        ("fe80::1%25en%20p0", "fe80::1%en p0"),
        ("fe80::1%252", "fe80::1%2"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("fe80::1%25", "fe80::1%25"),
        ("fe80::1", "fe80::1"),
        ("host", "host"),
        ("ho%25st", "ho%25st"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_zone_of_a_url_is_decoded(written, host):
    assert hosts.decode_zone(written) == host


@pytest.mark.parametrize(
    ("host", "plain"), [("fe80::1%eth0", "fe80::1"), ("::1", "::1"), ("host", "host"), ("ho%st", "ho%st")]
)
def test_server_knows_no_zone(host, plain):
    assert hosts.without_zone(host) == plain


@given(zone=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=15))
def test_host_in_a_url_is_the_same_host(zone):
    for host in (f"fe80::1%{zone}", "fe80::1"):
        written = hosts.in_url(host)
        assert (written[0], written[-1]) == ("[", "]")
        assert hosts.decode_zone(written[1:-1]) == host
    assert hosts.in_url("host") == "host"
