# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.common.nbd import uri
from ovirt_imageio.common.nbd.uri import Address, parse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("nbd:unix:/run/a.sock", uri.unix("/run/a.sock")),
        ("nbd:unix:/run/a.sock:exportname=", uri.unix("/run/a.sock")),
        ("nbd:unix:/run/a:b.sock:exportname=sda", uri.unix("/run/a:b.sock", "sda")),
        ("nbd:unix:/run/a.sock:exportname=a:b/c d", uri.unix("/run/a.sock", "a:b/c d")),
        ("nbd:unix:\0abstract", uri.unix("\0abstract")),
        ("nbd:host:10810", uri.tcp("host", 10810)),
        ("nbd:10.0.0.1:10809:exportname=sda", uri.tcp("10.0.0.1", 10809, "sda")),
        ("nbd:[::1]:10809", uri.tcp("::1", 10809)),
        ("nbd://host", uri.tcp("host")),
        ("nbd://host/", uri.tcp("host")),
        ("nbd://HOST:1/a%20b/c", uri.tcp("HOST", 1, "a b/c")),
        ("nbd://[::1]", uri.tcp("::1")),
        ("nbd://[::1]:5/x", uri.tcp("::1", 5, "x")),
        ("nbd://[fe80::1%25eth0]:5/x", uri.tcp("fe80::1%eth0", 5, "x")),
        ("nbd://[fe80::1%eth0]", uri.tcp("fe80::1%eth0")),
        ("nbd:[fe80::1%eth0]:5", uri.tcp("fe80::1%eth0", 5)),
        ("nbd+unix:///?socket=/run/a.sock", uri.unix("/run/a.sock")),
        ("nbd+unix:///sda%2F1?socket=/run/a%20b.sock", uri.unix("/run/a b.sock", "sda/1")),
        ("nbd+unix:////abs?socket=/s", uri.unix("/s", "/abs")),
    ],
)
def test_parse_understands(url, address):
    assert parse(url) == address


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://host/", "unknown scheme"),
        ("", "unknown scheme"),
        ("nbds://host/", "unknown scheme"),
        ("nbd:unix:", "no socket path"),
        ("nbd:unix::exportname=x", "no socket path"),
        ("nbd:host", "no host or no port"),
        ("nbd::10809", "no host or no port"),
        ("nbd:[]:10809", "no host or no port"),
        ("nbd:::1:10809", "an IPv6 address needs brackets"),
        ("nbd:[::1:10809", "invalid host '[::1'"),
        ("nbd:host:0", "invalid port '0'"),
        ("nbd:host:65536", "invalid port '65536'"),
        ("nbd:host:²", "invalid port '²'"),
        ("nbd:host:-1", "invalid port '-1'"),
        ("nbd://host:x/", "invalid port 'x'"),
        ("nbd:///name", "no host"),
        ("nbd://me@host/", "a user name needs TLS"),
        ("nbd://[::1/", "Invalid IPv6 URL"),
        ("nbd+unix:///name", "no socket parameter"),
        ("nbd+unix:///?socket=", "no socket parameter"),
        ("nbd+unix:///?socket=/a&socket=/b", "several socket parameters"),
        ("nbd+unix://host/?socket=/a", "a host in the URI of a Unix socket"),
        ("nbd:unix:/s:exportname=" + "x" * 4097, "export name is longer than 4096 bytes"),
        ("nbd:unix:/s:exportname=a\0b", "holds a NUL"),
        ("nbd://a\0b", "holds a NUL"),
        ("nbd:unix:/a\0b", "holds a NUL"),
        ("nbd+unix:///?socket=/a%00b", "holds a NUL"),
        ("nbd:unix:/" + "x" * 107, "longer than 107 bytes"),
        ("nbd:unix:/" + "é" * 54, "longer than 107 bytes"),
        ("nbd:host:" + "1" * 5000, "invalid port '1111"),
    ],
)
def test_parse_rejects(url, why):
    with pytest.raises(ValueError) as e:
        parse(url)
    assert "invalid NBD URL" in str(e.value)
    assert why in str(e.value)
    assert "expected nbd:unix:PATH" in str(e.value)


@pytest.mark.parametrize(
    "form", ["{}", "nbd:{}", "nbd:{}:1:", "nbd:[{}:1", "nbd:h:{}", "nbd:unix:/{}", "nbd://[{}]x", "nbd://h:{}"]
)
def test_refusal_is_one_short_line_however_long_the_url(form):
    with pytest.raises(ValueError) as e:
        parse(form.format("\n\x1b\u2028" * 20000))
    assert len(str(e.value)) < 1000
    assert str(e.value).isprintable()


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40)
paths = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=26)


@given(path=paths, export=names)
def test_uri_of_a_unix_socket_parses_to_the_same_address(path, export):
    address = uri.unix(path, export)
    assert parse(address.uri()) == address
    assert str(address) == address.uri()


@given(
    host=st.sampled_from(["host", "10.0.0.1", "::1", "fe80::1%eth0", "fe80::1%25", "fe80::1%2525"]),
    port=st.integers(1, 65535),
    export=names,
)
def test_uri_of_a_port_parses_to_the_same_address(host, port, export):
    address = uri.tcp(host, port, export)
    assert parse(address.uri()) == address


def test_uri_encodes_the_zone():
    assert uri.tcp("fe80::1%eth0", 5).uri() == "nbd://[fe80::1%25eth0]:5/"


def test_addresses_are_values():
    assert Address("unix", path="/a") == uri.unix("/a")
    assert len({uri.unix("/a"), uri.unix("/a"), uri.tcp("a")}) == 2


def test_longest_export_name_is_understood():
    assert parse("nbd:unix:/s:exportname=" + "x" * 4096).export == "x" * 4096


def test_longest_socket_path_is_understood():
    assert parse("nbd:unix:/" + "x" * 106).path == "/" + "x" * 106


def test_unix_socket_has_no_port():
    assert parse("nbd:unix:/s").port == 0
    assert uri.tcp("host").port == 10809
