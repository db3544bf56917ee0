# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of the client library, for the interpreter of either generation.

    PYTHON program.py FOLDER < URLS

It runs each function of this module that has no leading underscore in FOLDER, with the URLs of tickets, JSON. The
answer is what each of them returned, or the name of the class that it raised.
"""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import warnings

from ovirt_imageio import admin, client

_MiB = 1 << 20

_URLS: "dict[str, str]" = {}


def _make(name, size=_MiB, data=b"x" * 4096):
    with open(name, "wb") as f:
        f.truncate(size)
        f.write(data)
    return name


def _qemu_img(*args):
    subprocess.run(["qemu-img", *args], check=True, stdout=subprocess.DEVNULL)


def _create(name, *options):
    _qemu_img("create", "-q", "-f", "qcow2", *options, name, "1m")
    return name


def _content(name):
    with open(name, "rb") as f:
        return f.read()


def _upload(name, **options):
    return client.upload(name, _URLS["disk"], None, **options)


def _download(name, **options):
    return client.download(_URLS["disk"], name, None, **options)


def _kind(e):
    return type(e).__name__


def upload_returns():
    return _kind(_upload(_make("disk.raw")))


def download_returns():
    return _kind(_download("copy.raw", fmt="raw"))


def failure_that_passes():
    """The server answers 503 once."""
    return _kind(client.upload(_make("disk.raw"), _URLS["busy"], None, max_workers=1))


def download_keeps_the_file():
    before = os.stat(_make("first.raw")).st_ino
    _download("first.raw", fmt="raw")
    return os.stat("first.raw").st_ino == before


def download_to_a_file_with_links():
    _make("one.raw", data=b"old")
    os.link("one.raw", "two.raw")
    _download("one.raw", fmt="raw")
    return _content("two.raw")[:3] != b"old"


def download_to_an_open_file():
    with open(_make("open.raw", data=b"old"), "rb") as f:
        _download("open.raw", fmt="raw")
        return f.read(3) != b"old"


def download_to_an_image_in_use():
    """A qemu-nbd has it."""
    _create("used.qcow2")
    command = ["qemu-nbd", "-f", "qcow2", "--socket", os.path.abspath("used.sock"), "--persistent", "used.qcow2"]
    with subprocess.Popen([*command, "--fork", "--pid-file", "used.pid"]) as process:
        assert process.wait() == 0
    try:
        return _download("used.qcow2")
    finally:
        with open("used.pid") as f:
            os.kill(int(f.read()), 15)


def two_downloads_to_one_name():
    """The second one begins when the first tells of progress."""
    seen = []

    class Second:
        size = None

        def update(self, count):
            if not seen:
                seen.append(None)
                try:
                    seen[0] = _kind(_download("both.qcow2"))
                except Exception as e:
                    seen[0] = _kind(e)

    _download("both.qcow2", progress=Second())
    return seen[0]


def backing_file_is_the_target():
    before = _content(_create("backup.qcow2"))
    with contextlib.suppress(Exception):
        _download("./backup.qcow2", incremental=True, backing_file="backup.qcow2", backing_format="qcow2")
    return _content("backup.qcow2") == before


def incremental_without_backing_file():
    """The base has a cluster of `b`; `d` were written to 4096 bytes of it since the checkpoint."""
    client.download(_URLS["dirty"], "incremental.qcow2", None, incremental=True)
    _qemu_img("convert", "-O", "raw", "incremental.qcow2", "incremental.raw")
    data = _content("incremental.raw")[:65536]
    return [data[0:1].decode(), data[4096:4097].decode()]


def source_that_is_written_to():
    """When the upload tells of progress."""
    _make("source.raw")

    class Writer:
        size = None

        def update(self, count):
            with open("source.raw", "r+b") as f:
                f.write(b"y")

    return _upload("source.raw", progress=Writer())


def external_data():
    return _upload(_create("external.qcow2", "-o", "data_file=data.raw"))


def packed():
    return _upload(_make("packed.gz", 4096, b"\x1f\x8b\x08"))


def damaged():
    _qemu_img("convert", "-f", "raw", "-O", "qcow2", _make("disk.raw", data=b"x" * _MiB), "damaged.qcow2")
    os.truncate("damaged.qcow2", 300 << 10)
    return _upload("damaged.qcow2")


def fixed_vhd():
    _make("disk.raw")
    _qemu_img("convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", "disk.raw", "disk.vhd")
    return client.info("disk.vhd")["virtual-size"] - _MiB


def vhd_of_others():
    """Its geometry tells less than its size."""
    return client.info("vbox.vhd")["virtual-size"] == os.stat("vbox.size").st_size


def differencing_vhd():
    return _kind(client.measure("child.vhd", "raw")["required"])


def empty_image():
    return _upload(_make("empty.raw", 0, b""))


def empty_image_to_an_empty_disk():
    return _kind(client.upload(_make("empty.raw", 0, b""), _URLS["empty"], None))


def name_that_is_json():
    name = {"driver": "raw", "file": {"driver": "file", "filename": _make("disk.raw")}}
    return client.info("json:" + json.dumps(name))["format"]


def odd_size():
    return sum(e.length for e in client.extents(_make("odd.raw", 1000, b"x" * 1000)))


def larger_than_the_disk():
    return _upload(_make("large.raw", 2 * _MiB))


def ticket_to_read():
    return client.upload(_make("disk.raw"), _URLS["read"], None)


def other_formats():
    return _kind(_download("disk.vmdk", fmt="vmdk"))


def backing_file_without_format():
    return _kind(_download("over.qcow2", backing_file=_make("disk.raw")))


def filename_of_a_member():
    _qemu_img("convert", "-f", "raw", "-O", "qcow2", _make("disk.raw"), "member.qcow2")
    with tarfile.open("a.ova", "w") as tar:
        tar.add("member.qcow2")
    return "json:" in client.info("a.ova", member="member.qcow2")["filename"]


def full_name_of_a_backing_file():
    _qemu_img("create", "-q", "-f", "qcow2", "-b", _create("base.qcow2"), "-F", "qcow2", "top.qcow2")
    return os.path.isabs(client.info("top.qcow2")["full-backing-filename"])


def missing_member():
    with tarfile.open("some.ova", "w") as tar:
        tar.add(_make("disk.raw"))
    return client.info("some.ova", member="none")


def member_of_no_tar_file():
    return client.info(_make("disk.raw"), member="none")


def missing_bitmap():
    return list(client.extents(_create("plain.qcow2"), bitmap="none"))


def name_in_bytes():
    return client.info(_make("disk.raw").encode())["format"]


def zero_outside():
    with client.ImageioClient(_URLS["disk"]) as c:
        c.zero(_MiB, 1)


def read_from_outside():
    with client.ImageioClient(_URLS["disk"]) as c:
        c.read_from(io.BytesIO(b"ab"), _MiB - 1, 2)


def write_to_outside():
    with client.ImageioClient(_URLS["disk"]) as c:
        c.write_to(io.BytesIO(), _MiB - 1, 2)


def write_nothing():
    with client.ImageioClient(_URLS["disk"]) as c:
        c.write(0, b"")


class _Slow:
    taken = 0

    def write(self, data):
        self.taken += 1
        return 1


def writer_that_takes_a_part():
    writer = _Slow()
    with client.ImageioClient(_URLS["disk"]) as c:
        c.write_to(writer, 0, 10)
    return writer.taken


def phase_that_was_not_set():
    with client.ProgressBar(output=io.StringIO()) as bar:
        return bar.phase


def url_with_a_query():
    with client.ImageioClient(_URLS["disk"] + "?x=1") as c:
        return c.size()


def mistake():
    with client.ImageioClient(_URLS["disk"]) as c:
        return list(c.extents("x"))


class _Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "full")


def progress_that_cannot_be_written():
    with client.ProgressBar(output=_Full()) as bar:
        _upload(_make("disk.raw"), progress=bar)


def text_of_progress():
    """Half of it in the first second."""
    clock = iter(range(100))
    out = io.StringIO()
    bar = client.ProgressBar(output=out, size=1000, now=lambda: float(next(clock)))
    bar.update(500)
    return out.getvalue().split("\r")[1].strip()


def configuration_can_be_changed():
    cfg = admin.load_config("conf")
    cfg.remote.port = 1
    return cfg.remote.port


def wrong_configuration():
    try:
        admin.load_config("wrong")
    except ValueError as e:
        return _kind(e)


def ticket_without_uuid():
    with admin.Client(admin.load_config("conf")) as c:
        c.add_ticket({})


def sections_of_logging():
    return admin.load_config("conf").logger_root.level


def empty_id():
    with admin.Client(admin.load_config("conf")) as c:
        c.get_ticket("")


def id_with_a_space():
    with admin.Client(admin.load_config("conf")) as c:
        c.del_ticket("a b")


def connection_of_admin():
    with admin.Client(admin.load_config("conf")) as c:
        return _kind(c.con)


def client_after_a_failure():
    """A server listens at the second time."""
    import socket

    os.makedirs("run", exist_ok=True)
    with admin.Client(admin.load_config("late")) as c:
        with contextlib.suppress(Exception):
            c.del_ticket("x")
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("run/control")
            s.listen()

            def answer():
                con, _ = s.accept()
                with con:
                    con.recv(4096)
                    con.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            c.del_ticket("x")


def raw_image_without_qemu():
    """There are no commands in PATH."""
    path, os.environ["PATH"] = os.environ["PATH"], ""
    try:
        return len(list(client.extents(_make("disk.raw"))))
    finally:
        os.environ["PATH"] = path


def internal_modules():
    found = []
    for name in ("directio", "nbd", "ops", "util"):
        with contextlib.suppress(ImportError):
            importlib.import_module("ovirt_imageio._internal." + name)
            found.append(name)
    return found


def _results():
    for name, function in list(globals().items()):
        if name.startswith("_") or not hasattr(function, "__code__") or function.__module__ != "__main__":
            continue
        try:
            yield name, function()
        except Exception as e:
            yield name, _kind(e)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.chdir(sys.argv[1])
    _URLS.update(json.load(sys.stdin))
    print(json.dumps(dict(_results())))
