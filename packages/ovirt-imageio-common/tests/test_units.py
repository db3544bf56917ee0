# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from ovirt_imageio.common.units import GiB, KiB, MiB, TiB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64k", 64 * KiB),
        ("64K", 64 * KiB),
        ("64KiB", 64 * KiB),
        ("4 m", 4 * MiB),
        ("1g", GiB),
        ("2TB", 2 * TiB),
        ("512b", 512),
    ],
)
def test_parse_size_takes_what_people_write(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5g", "1e3", "1x", "0x10", "1_0", "٣"])
def test_parse_size_names_what_it_refuses(text):
    with pytest.raises(ValueError, match="invalid size") as e:
        parse_size(text)
    assert repr(text) in str(e.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "0.977 KiB"),
        (1536, "1.50 KiB"),
        (10 * GiB, "10.0 GiB"),
        (999 * TiB, "999 TiB"),
        (604 * MiB, "604 MiB"),
        (999.7 * MiB, "1000 MiB"),
        (5000 * TiB, "5000 TiB"),
    ],
)
def test_format_size_has_three_digits(size, text):
    assert format_size(size) == text
