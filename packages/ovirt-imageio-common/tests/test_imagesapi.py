# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from ovirt_imageio.common import imagesapi
from ovirt_imageio.common.imagesapi import ContentRange


@pytest.mark.parametrize(
    ("ticket_id", "parts", "path"),
    [
        ("f3a1", (), "/images/f3a1"),
        ("f3a1", (imagesapi.EXTENTS,), "/images/f3a1/extents"),
        ("f3a1", (imagesapi.ALGORITHMS,), "/images/f3a1/checksum/algorithms"),
        ("../tickets/é?#", (), "/images/..%2Ftickets%2F%C3%A9%3F%23"),
    ],
)
def test_path_of_an_image(ticket_id, parts, path):
    assert imagesapi.image_path(ticket_id, *parts) == path


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://host:54322/images/x", 54322),
        ("http://[::1]/images/a%2Fb", None),
        ("HTTP://Host:1/images/../x", 1),
    ],
)
def test_url_of_an_image(url, port):
    parts = imagesapi.split_url(url)
    assert (parts.port, parts.path) == (port, url[url.index("/images") :])


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/images/x",
        "https:///images/x",
        "https://host/other/x",
        "https://host/images",
        "https://host/images/",
        "https://host:port/images/x",
        "https://host:99999/images/x",
        "https://host:0/images/x",
        "https://u:p@host/images/x",
        "https://host/images/x?close=y",
        "https://host/images/x#y",
        "https://host/images/x\0y",
        "https://[::1/images/x",
        pytest.param("https://host:" + "\x1b" * 60000 + "/images/x", id="port too long"),
        pytest.param("https://[" + "\x1b" * 60000 + "]/images/x", id="host too long"),
        pytest.param("ftp://" + "\x1b" * 60000, id="too long"),
    ],
)
def test_other_url_is_refused_in_one_short_line(url):
    with pytest.raises(ValueError, match="invalid image URL") as e:
        imagesapi.split_url(url)
    assert len(str(e.value)) < 1000
    assert str(e.value).isprintable()


def test_ranges_name_the_last_byte():
    assert imagesapi.byte_range(0, 1) == "bytes=0-0"
    assert imagesapi.byte_range(4096, 512) == "bytes=4096-4607"
    assert imagesapi.content_range(4096, 512) == "bytes 4096-4607/*"
    assert imagesapi.content_range(4096, 512, 8192) == "bytes 4096-4607/8192"
    assert imagesapi.unsatisfied_range(8192) == "bytes */8192"


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (5, -1)])
@pytest.mark.parametrize("write", [imagesapi.byte_range, imagesapi.content_range])
def test_range_that_http_cannot_tell_is_a_mistake(write, offset, length):
    with pytest.raises(ValueError, match=f"{length} bytes at {offset}"):
        write(offset, length)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("bytes 0-0/1", ContentRange(0, 0, 1)),
        (" bytes 5-9/* ", ContentRange(5, 9, None)),
        ("BYTES  5-9/10", ContentRange(5, 9, 10)),
        ("bytes */10", ContentRange(None, None, 10)),
    ],
)
def test_content_range_of_a_response(text, found):
    assert imagesapi.parse_content_range(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes 0-0",
        "bytes */*",
        "bytes 5-4/10",
        "bytes 5-10/10",
        "bytes -5/1",
        "items 0-0/1",
        "bytes ٣-9/*",
    ],
)
def test_content_range_that_makes_no_sense_is_shown(text):
    with pytest.raises(ValueError, match="invalid Content-Range") as e:
        imagesapi.parse_content_range(text)
    assert repr(text) in str(e.value)
