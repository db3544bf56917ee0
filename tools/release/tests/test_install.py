# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""RPMs on a host: installed by dnf, used, upgraded and removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imageio_testing import hostroot
from imageio_testing.hostroot import SITELIB, HostRoot
from imageio_testing.pki import make_pki

pytestmark = pytest.mark.slow

NAMES = ("ovirt-imageio-common", "ovirt-imageio-daemon", "ovirt-imageio-client")
CONF_D = "/etc/ovirt-imageio/conf.d"

NewHost = Callable[[Path], HostRoot]

# The layout of 2.5: an extension module, and a regular package in the folder for those,
# which comes before the other one on sys.path.
OLD = """
Name: ovirt-imageio
Version: 2.5.3
Release: 1
Summary: Stands for 2.5.3
License: GPL-2.0-or-later
%global sitearch /usr/lib64/{python}/site-packages
%global _build_id_links none
%global debug_package %{{nil}}
%description
%{{summary}}
%package -n ovirt-imageio-common
Summary: common
%description -n ovirt-imageio-common
%{{summary}}
%package -n ovirt-imageio-daemon
Summary: daemon
Requires: ovirt-imageio-common = %{{version}}-%{{release}}
%description -n ovirt-imageio-daemon
%{{summary}}
%package -n ovirt-imageio-client
Summary: client
Requires: ovirt-imageio-common = %{{version}}-%{{release}}
%description -n ovirt-imageio-client
%{{summary}}
%package -n python3.11-ovirt-imageio-common
Summary: common, for another Python
%description -n python3.11-ovirt-imageio-common
%{{summary}}
%package -n python3.11-ovirt-imageio-client
Summary: client, for another Python
Requires: python3.11-ovirt-imageio-common = %{{version}}-%{{release}}
%description -n python3.11-ovirt-imageio-client
%{{summary}}
%install
d=%{{buildroot}}%{{sitearch}}/ovirt_imageio
for f in . _internal client admin daemon; do mkdir -p $d/$f; echo 'old = True' >$d/$f/__init__.py; done
cd %{{buildroot}}
mkdir -p opt/common opt/client usr/bin etc/ovirt-imageio/conf.d usr/lib/systemd/system
touch $d/_internal/ioutil.so %{{buildroot}}/usr/bin/ovirt-imageio %{{buildroot}}/usr/bin/ovirt-img
touch %{{buildroot}}/usr/lib/systemd/system/ovirt-imageio.service
%files -n ovirt-imageio-common
%dir %{{sitearch}}/ovirt_imageio
%{{sitearch}}/ovirt_imageio/__init__.py
%{{sitearch}}/ovirt_imageio/_internal
%files -n ovirt-imageio-daemon
%{{sitearch}}/ovirt_imageio/daemon
%{{sitearch}}/ovirt_imageio/admin
/usr/bin/ovirt-imageio
/usr/lib/systemd/system/ovirt-imageio.service
%dir /etc/ovirt-imageio/conf.d
%files -n ovirt-imageio-client
%{{sitearch}}/ovirt_imageio/client
/usr/bin/ovirt-img
%files -n python3.11-ovirt-imageio-common
/opt/common
%files -n python3.11-ovirt-imageio-client
/opt/client
"""


def installed(host: HostRoot) -> set[str]:
    """Return names, versions and releases of what is installed, but the stub."""
    return set(host.rpm("-qa", "--qf", "%{name}-%{version}-%{release}\n").split()) - {"host-1-1"}


def test_dnf_names_what_no_repository_has(new_host: NewHost, repo: Path, tmp_path: Path):
    alone = tmp_path / "alone"
    shutil.copytree(repo, alone, ignore=shutil.ignore_patterns("host-*", "repodata"))
    hostroot.make_repo(alone)
    said = new_host(alone).dnf("install", "ovirt-imageio-client", check=False)
    for missing in ("qemu-img", "dist(requests)", "dist(requests-unixsocket)", "python(abi)"):
        assert f"nothing provides {missing}" in said or f"{missing} >=" in said or f"{missing} =" in said


def test_installed_daemon_serves_a_disk_as_its_own_user(new_host: NewHost, repo: Path, tmp_path: Path):
    host = new_host(repo)
    host.dnf("install", "ovirt-imageio-daemon", "ovirt-imageio-client")
    # The part of an administrator and of vdsm: keys that only root may read, and a disk of qemu's.
    pki = make_pki(tmp_path)
    host.write("/etc/pki/ovirt-imageio/ca.pem", Path(pki.ca_file).read_text())
    host.write("/etc/pki/ovirt-imageio/cert.pem", Path(pki.cert_file).read_text())
    host.write("/etc/pki/ovirt-imageio/key.pem", Path(pki.key_file).read_text(), mode=0o600)
    host.write(
        f"{CONF_D}/60-tls.conf",
        "[tls]\nkey_file = /etc/pki/ovirt-imageio/key.pem\ncert_file = /etc/pki/ovirt-imageio/cert.pem\n",
    )
    with open(host.root / "etc/group", "a") as f:
        f.write("kvm:x:36:ovirtimg\nqemu:x:107:ovirtimg\n")
    disk = host.write("/var/lib/images/disk.raw", "", mode=0o660)
    size = 4 << 20
    with open(disk, "r+b") as f:
        f.truncate(size)
    shutil.chown(disk, 0, 107)
    host.write("/tmp/on_host.py", Path(__file__).with_name("on_host.py").read_text())

    seen = json.loads(host.run("python3", "/tmp/on_host.py", "transfer", "/var/lib/images/disk.raw", str(size)).stdout)

    fields = next(
        line.split(":") for line in (host.root / "etc/passwd").read_text().splitlines() if line.startswith("ovirtimg:")
    )
    uid, gid = fields[2], fields[3]
    assert fields[5:] == ["/run/ovirt-imageio", "/sbin/nologin"]
    identity = seen["identity"]
    assert identity["Uid"].split() == [uid] * 4
    assert identity["Gid"].split() == [gid] * 4
    assert set(identity["Groups"].split()) == {gid, "36", "107"}
    assert (int(identity["CapPrm"], 16), int(identity["CapEff"], 16)) == (0, 0)
    assert identity["NoNewPrivs"] == "1"
    assert seen["modes"] == {
        "/run/ovirt-imageio": "ovirtimg 755",
        "/run/ovirt-imageio/sock": "ovirtimg 660",
        "/var/log/ovirt-imageio": "ovirtimg 750",
    }
    assert seen["transfer"]["different contents"] == 1
    assert seen["status"] == 0
    assert "STATUS=Serving" in seen["states"][0]
    assert "Configuration read again" in seen["log"]
    assert seen["log mode"].startswith("ovirtimg 6")
    assert "Traceback" not in seen["log"]


def test_removal_leaves_changed_configuration_and_logs(new_host: NewHost, repo: Path):
    host = new_host(repo)
    host.dnf("install", "host")
    before = host.files()
    host.dnf("install", *NAMES)
    assert host.files() - before > {CONF_D, "/usr/bin/ovirt-img", f"{SITELIB}/ovirt_imageio/common"}
    # As root, who may write compiled modules.
    host.run("ovirt-imageio", "--show-config")
    host.run("python3", "-c", "import ovirt_imageio.client, ovirt_imageio.admin, ovirt_imageio._internal.nbd")
    with open(host.root / "etc/ovirt-imageio/conf.d/00-ovirt-imageio.conf", "a") as f:
        f.write("[tls]\nenable = false\n")
    host.write(f"{CONF_D}/60-local.conf", "[remote]\nport = 54322\n")
    for name in ("daemon.log", "daemon.log.1"):
        host.write(f"/var/log/ovirt-imageio/{name}", "a line\n")
    host.dnf("remove", *NAMES)
    assert installed(host) == set()
    left = host.files() - before
    assert left == {
        "/etc/ovirt-imageio",
        CONF_D,
        f"{CONF_D}/00-ovirt-imageio.conf.rpmsave",
        f"{CONF_D}/60-local.conf",
        "/var/log/ovirt-imageio",
        "/var/log/ovirt-imageio/daemon.log",
        "/var/log/ovirt-imageio/daemon.log.1",
    }


def test_upgrade_from_an_earlier_build_keeps_configuration(new_host: NewHost, repo: Path, newer: Path):
    host = new_host(repo)
    host.dnf("install", *NAMES)
    earlier = installed(host)
    before = host.files()
    with open(host.root / "etc/ovirt-imageio/conf.d/00-ovirt-imageio.conf", "a") as f:
        f.write("[tls]\nenable = false\n")
    host.write("/var/log/ovirt-imageio/daemon.log", "a line\n")
    host.repo = newer
    host.dnf("upgrade")
    assert len(installed(host)) == len(earlier) == 3
    assert not installed(host) & earlier
    assert before - host.files() == set()
    assert "enable = false" in (host.root / "etc/ovirt-imageio/conf.d/00-ovirt-imageio.conf").read_text()
    assert (host.root / "var/log/ovirt-imageio/daemon.log").read_text() == "a line\n"
    shown = json.loads(host.run("ovirt-imageio", "--show-config").stdout)
    assert shown["tls"]["enable"] is False


@pytest.mark.parametrize("asked", [["upgrade"], ["upgrade", "ovirt-imageio-common"]], ids=["all", "common"])
def test_upgrade_from_2_5_leaves_nothing_that_hides_the_namespace(
    new_host: NewHost, repo: Path, tmp_path: Path, asked: list[str]
):
    old = tmp_path / "old"
    shutil.copytree(repo, old)
    for file in old.glob("ovirt-imageio-*"):
        file.unlink()
    hostroot.build_stub(OLD.format(python=hostroot.PYTHON), tmp_path / "build", old)
    hostroot.make_repo(old)
    host = new_host(old)
    host.dnf("install", *NAMES, "python3.11-ovirt-imageio-client")
    host.write(f"{CONF_D}/60-vdsm.conf", "[tls]\nenable = false\n[new]\nkey = of a later vdsm\n")
    host.write("/var/log/ovirt-imageio/daemon.log", "a line\n")
    arch = f"/usr/lib64/{hostroot.PYTHON}/site-packages/ovirt_imageio"
    assert arch in host.files()
    assert len(installed(host)) == 5

    host.repo = repo
    host.dnf(*asked)
    assert {name.rsplit("-", 2)[0] for name in installed(host)} == set(NAMES)
    assert not any("-2.5.3-" in name for name in installed(host))
    assert not [path for path in host.files() if path.startswith(arch)]
    script = "import ovirt_imageio, ovirt_imageio.daemon, ovirt_imageio.client, ovirt_imageio._internal.directio"
    found = host.run("python3", "-c", f"{script}; print(*ovirt_imageio.__path__)").stdout
    assert found == f"{SITELIB}/ovirt_imageio\n"
    assert json.loads(host.run("ovirt-imageio", "--show-config").stdout)["tls"]["enable"] is False
    assert (host.root / "var/log/ovirt-imageio/daemon.log").read_text() == "a line\n"
