# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""KubeVirt's pull of map and data is another protocol, and its URLs are none of images.

Source: kubevirt/kubevirt, pkg/storage/export/virt-exportserver/exportserver.go, d923fdb8. The URL ``/…/map`` answers
pages of `extents` with `offset`, `length`, `type` and `description`, and `next_offset`. The URL ``/…/data`` wants
`offset` and `length` in the query. Both want the token of the export.
"""

from __future__ import annotations

import pytest

from ovirt_imageio import client


@pytest.mark.parametrize("path", ["/volumes/rootdisk/map", "/volumes/rootdisk/data"])
def test_its_urls_are_refused_before_anything_is_made(tmp_path, path):
    with pytest.raises(ValueError, match=f"{path}.*expected"):
        client.download(f"https://export.example.com{path}", tmp_path / "copy", None, fmt="raw")
    assert list(tmp_path.iterdir()) == []
