# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import json

import pytest

from ovirt_imageio.common.qemu import image


def test_node_names_both_drivers(tmp_path):
    path = str(tmp_path / "disk")
    assert image.node(path, "qcow2") == {"driver": "qcow2", "file": {"driver": "file", "filename": path}}


def test_node_makes_a_relative_name_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert image.node("nbd:host:1", "raw")["file"]["filename"] == str(tmp_path / "nbd:host:1")


def test_member_of_a_tar_file_is_a_raw_window():
    node = image.node("/a.tar", "qcow2", offset=512, size=4096)
    window = {"driver": "raw", "file": {"driver": "file", "filename": "/a.tar"}, "offset": 512, "size": 4096}
    assert node == {"driver": "qcow2", "file": window}


def test_raw_member_is_the_window_itself():
    node = image.node("/a.tar", "raw", offset=512)
    assert node == {"driver": "raw", "file": {"driver": "file", "filename": "/a.tar"}, "offset": 512}


def test_backing_chain_can_be_cut_off():
    assert image.node("/a", "qcow2", backing_chain=False)["backing"] is None
    assert "backing" not in image.node("/a", "raw", backing_chain=False)


def test_backing_can_be_told():
    base = image.node("/base", "raw")
    assert image.node("/a", "qcow2", backing=base)["backing"] == base


def test_device_has_its_own_driver():
    assert image.protocol("/no/such/file") == "file"


def test_reference_is_json():
    reference = image.reference('/a"b,c', "raw")
    assert json.loads(reference[len("json:") :])["file"]["filename"] == '/a"b,c'


def test_name_that_json_cannot_tell_is_refused():
    with pytest.raises(ValueError, match="not UTF-8"):
        image.node("/a\udcff", "raw")


@pytest.mark.parametrize(
    ("name", "safe"),
    [("base", "base"), ("/a:b", "/a:b"), ("d/a:b", "d/a:b"), ("nbd:host:1", "./nbd:host:1"), ("json:{}", "./json:{}")],
)
def test_plain_name_is_never_a_protocol(name, safe):
    assert image.plain(name) == safe


def test_member_ends_with_a_sector():
    assert image.node("/a.tar", "raw", size=513)["size"] == 1024


def test_references_are_not_repeated_to_people(tmp_path):
    path = str(tmp_path / "a disk")
    for reference in (
        image.reference(path, "qcow2"),
        image.reference(path, "vpc", offset=512, size=1024),
        image.reference(path, "raw", offset=512, size=1024),
    ):
        said = f"Could not open '{reference}': No such file"
        assert image.without_references(said, ["info", reference]) == f"Could not open '{path}': No such file"
    assert image.without_references("Could not open 'json:{}'", ["json:{}"]) == "Could not open 'json:{}'"
