# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which stand-in takes the place of which module."""

from __future__ import annotations

import functools
import types
from typing import Any

from .kernel import active
from .network import Adapter, Prepared
from .realm import Patch, Realm
from .standins import clock, kernel_calls, qemu, system, threads, unknown

_KIB = 1
"""Bytes of a KiB: the world is small."""


def _nothing(name: str, **given: Any) -> Any:
    module = types.ModuleType(name)
    module.__dict__.update(given, __getattr__=unknown(name))
    return module


def _units() -> Any:
    from ovirt_imageio.common import units

    module = types.ModuleType("ovirt_imageio.common.units")
    module.__dict__.update(vars(units), KiB=_KIB, MiB=_KIB << 10, GiB=_KIB << 20, TiB=_KIB << 30)
    return module


def _requests() -> Any:
    import requests

    return _nothing(
        "requests",
        Request=Prepared,
        Response=requests.Response,
        PreparedRequest=requests.PreparedRequest,
        RequestException=requests.RequestException,
    )


@functools.cache
def _shared() -> dict[str, Any]:
    adapters = types.ModuleType("adapters")
    adapters.__dict__.update(TcpAdapter=Adapter, UnixAdapter=Adapter, Adapter=Adapter)
    return {
        "os": system.os,
        "fcntl": system.fcntl,
        "builtins.open": system.open_file,
        "time": clock.time,
        "random": clock.random,
        "secrets": clock.secrets,
        "threading": threads,
        "requests": _requests(),
        **{name: _nothing(name) for name in ("subprocess", "signal", "shutil", "tempfile", "select", "tarfile", "pwd")},
        "ovirt_imageio.common.linux": kernel_calls,
        "ovirt_imageio.common.backends.filesplice": _nothing("filesplice"),
        "ovirt_imageio.common.units": _units(),
        "ovirt_imageio.common.qemu.img": qemu.IMG,
        "ovirt_imageio.common.qemu.nbd": qemu.NBD,
        "ovirt_imageio.common.backends.http.adapters": adapters,
    }


@functools.lru_cache(maxsize=64)
def library(patches: tuple[Patch, ...] = (), raced: bool = False) -> Realm:
    """Return the modules that keep no state, for all processes."""
    standins = dict(_shared())
    realm = Realm(standins, patches=patches, raced=_turn if raced else None)
    base = realm.module("ovirt_imageio.common.backends.base")
    standins["ovirt_imageio.common.backends.nbd"] = qemu.make_backend(
        base, realm.module("ovirt_imageio.common.defaults")
    )
    return Realm(standins, patches=patches, raced=_turn if raced else None)


def make_cancel(patches: tuple[Patch, ...] = (), raced: bool = False) -> Any:
    """Return a new `client.Cancel`."""
    return library(patches, raced).module("ovirt_imageio.common.cancel").Cancel()


def client(patches: tuple[Patch, ...] = (), raced: bool = False) -> Any:
    """Return the client's functions, as a new process has them."""
    realm = Realm(_shared(), outer=library(patches, raced), patches=patches, raced=_turn if raced else None)
    return realm.module("ovirt_imageio.client.api")


def _turn() -> None:
    active().turn()
