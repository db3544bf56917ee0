# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The example page in a real browser, from another origin, over TLS."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from imageio_testing.browser import Browser, Site, command, public_key_pin
from imageio_testing.daemon import Daemon

MiB = 1 << 20
SIZE = 3 * MiB
PAGE = Path(__file__).parents[2] / "examples" / "browser.html"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(command() is None, reason="not installed: chromium"),
]

# The actions of a person, without a person: choose a file, a size of pieces, and press buttons.
HANDS = """
const seen = {titles: [], bars: [], urls: [], ranges: []};
function until(done) {
  return new Promise(resolve => {
    const look = () => done() ? resolve() : setTimeout(look, 5);
    look();
  });
}
const visible = id => !$(id).hidden && $(id).textContent;
function chooseFile(length) {
  const data = new Uint8Array(length);
  for (let i = 0; i < length; i++) data[i] = (i * 7 + (i >> 8)) & 255;
  const transfer = new DataTransfer();
  transfer.items.add(new File([data], "my disk.raw"));
  $("file").files = transfer.files;
  $("file").dispatchEvent(new Event("change"));
}
function write(address) {
  $("address").value = address;
  $("address").dispatchEvent(new Event("input"));
}
function stopAtRequest(number) {
  const send = XMLHttpRequest.prototype.send;
  XMLHttpRequest.prototype.send = function (body) {
    send.call(this, body);
    if (seen.urls.length === number) $("stop").click();
  };
}
new MutationObserver(() => seen.bars.push($("done").textContent))
  .observe($("done"), {childList: true, characterData: true, subtree: true});
const open = XMLHttpRequest.prototype.open, set = XMLHttpRequest.prototype.setRequestHeader;
XMLHttpRequest.prototype.open = function (method, url) {
  seen.urls.push(new URL(url).search);
  return open.apply(this, arguments);
};
XMLHttpRequest.prototype.setRequestHeader = function (name, value) {
  if (name === "Content-Range") seen.ranges.push(value);
  return set.apply(this, arguments);
};
"""


def content(length):
    return bytes((i * 7 + (i >> 8)) & 255 for i in range(length))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, pki):
    with Daemon(tmp_path_factory.mktemp("daemon"), pki=pki, config={"daemon": {"stop_timeout": 0}}) as daemon:
        yield daemon


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def browser(tmp_path, pki):
    return Browser(tmp_path / "browser", pin=public_key_pin(pki.cert_file))


def use(browser, address, script):
    """Open the page with an address filled in, and let hands use it."""
    script = f"{HANDS}\n(async () => {{ {script} }})();"
    with Site({"/browser.html": PAGE.read_text()}, script) as site:
        return site.visit(browser, f"/browser.html#{address}")


def test_page_loads_nothing_from_elsewhere():
    """No address in it but the one a person writes, and the placeholder that shows how."""
    assert re.findall(r"(?:src|href)=\"?([^\"> ]+)", PAGE.read_text()) == ["data:,"]
    assert re.findall(r"https?://[^\"\s]*", PAGE.read_text()) == ["https://host:54322/images/…"]


def test_upload_in_pieces(daemon, browser, disk):
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["write"])
    length = 2 * MiB + 12345
    seen = use(
        browser,
        f"{daemon.url}/images/{ticket}",
        f"""
        await until(() => visible("facts") || visible("look-error"));
        seen.size = $("size").textContent;
        seen.allowed = $("allowed").textContent;
        chooseFile({length});
        seen.chosen = $("chosen").textContent;
        $("piece").value = "1";
        $("upload").click();
        await until(() => visible("said") || visible("upload-error"));
        seen.said = $("said").textContent;
        seen.error = $("upload-error").textContent;
        seen.value = $("bar").value;
        report(seen);
        """,
    )
    assert seen["error"] == ""
    assert seen["size"] == "3.0 MiB (3,145,728 bytes)"
    assert seen["allowed"] == "reading and writing"
    assert seen["chosen"] == "my disk.raw · 2.0 MiB"
    assert seen["said"] == "my disk.raw is uploaded, and safe on the disk."
    assert seen["urls"] == ["?flush=n", "?flush=n", "?close=y"]
    assert seen["ranges"] == [
        f"bytes 0-{MiB - 1}/{length}",
        f"bytes {MiB}-{2 * MiB - 1}/{length}",
        f"bytes {2 * MiB}-{length - 1}/{length}",
    ]
    assert seen["value"] == 100
    assert seen["bars"][0] == "0 % · 0 bytes of 2.0 MiB"
    assert seen["bars"][-1] == "100 % · 2.0 MiB of 2.0 MiB"
    assert len(set(seen["bars"])) >= 4
    assert disk.read_bytes()[:length] == content(length)
    assert daemon.ticket(ticket)["transferred"] == length


def test_error_is_read_and_shown(daemon, browser, disk):
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["read"])
    before = disk.read_bytes()
    seen = use(
        browser,
        f"{daemon.url}/images/{ticket}",
        """
        await until(() => visible("facts") || visible("look-error"));
        seen.allowed = $("allowed").textContent;
        chooseFile(1000);
        $("upload").click();
        await until(() => visible("upload-error"));
        seen.upload = $("upload-error").textContent;
        seen.role = $("upload-error").getAttribute("role");
        $("address").value = $("address").value + "x";
        $("look").requestSubmit();
        await until(() => visible("look-error"));
        seen.look = $("look-error").textContent;
        $("download").click();
        await until(() => visible("download-error"));
        seen.download = $("download-error").textContent;
        report(seen);
        """,
    )
    assert seen["allowed"] == "reading"
    assert seen["upload"] == "Refused: the ticket does not allow to write (403)"
    assert seen["role"] == "alert"
    assert seen["look"].startswith("Refused: there is no ticket")
    assert seen["download"].startswith("Refused: there is no ticket")
    assert disk.read_bytes() == before


def test_file_that_is_too_large_is_not_sent(daemon, browser, disk):
    ticket = daemon.add_ticket(f"file://{disk}", size=MiB, ops=["write"])
    seen = use(
        browser,
        f"{daemon.url}/images/{ticket}",
        f"""
        await until(() => visible("facts") || visible("look-error"));
        chooseFile({2 * MiB});
        report({{text: visible("upload-error"), disabled: $("upload").disabled}});
        """,
    )
    assert seen == {"text": "This file is larger than the image.", "disabled": True}


def stopped_upload(length):
    """Script that uploads so many bytes, a MiB at a time, and stops after the first."""
    return f"""
        stopAtRequest(2);
        await until(() => visible("facts") || visible("look-error"));
        chooseFile({length});
        $("piece").value = "1";
        $("upload").click();
        await until(() => visible("said"));
    """


def test_upload_goes_on_where_it_was_stopped(daemon, browser, disk):
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["write"])
    length = 3 * MiB
    seen = use(
        browser,
        f"{daemon.url}/images/{ticket}",
        f"""
        {stopped_upload(length)}
        seen.stopped = $("said").textContent;
        seen.button = $("upload").textContent;
        $("upload").click();
        await until(() => $("said").textContent.includes("uploaded") || visible("upload-error"));
        seen.error = $("upload-error").textContent;
        report(seen);
        """,
    )
    assert seen["error"] == ""
    assert seen["stopped"] == "Stopped at 1.0 MiB."
    assert seen["button"] == "Go on at 1.0 MiB"
    assert seen["urls"] == ["?flush=n", "?flush=n", "?flush=n", "?close=y"]
    assert disk.read_bytes() == content(length)


@pytest.mark.parametrize("how", ["write(other)", '$("address").value = other'], ids=["written", "filled in"])
def test_upload_begins_anew_at_another_address(daemon, browser, disk, tmp_path, how):
    """Bytes that one disk has got say nothing of another."""
    other = tmp_path / "other.raw"
    other.write_bytes(os.urandom(SIZE))
    tickets = [daemon.add_ticket(f"file://{path}", size=SIZE, ops=["write"]) for path in (disk, other)]
    seen = use(
        browser,
        f"{daemon.url}/images/{tickets[0]}",
        f"""
        const other = "{daemon.url}/images/{tickets[1]}";
        {stopped_upload(SIZE)}
        seen.button = $("upload").textContent;
        {how};
        $("upload").click();
        await until(() => $("said").textContent.includes("uploaded") || visible("upload-error"));
        seen.error = $("upload-error").textContent;
        report(seen);
        """,
    )
    assert seen["error"] == ""
    assert seen["button"] == "Go on at 1.0 MiB"
    assert seen["ranges"][2] == f"bytes 0-{MiB - 1}/{SIZE}"
    assert other.read_bytes() == content(SIZE)


def test_button_tells_where_it_begins_at_an_address(daemon, browser, disk):
    """And what was known of the image before is gone."""
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["write"])
    seen = use(
        browser,
        f"{daemon.url}/images/{ticket}",
        f"""
        {stopped_upload(SIZE)}
        const first = $("address").value, texts = [];
        for (const address of [first, first + "x", "", "nonsense", " " + first + "#top"]) {{
          write(address);
          texts.push($("upload").textContent);
        }}
        write(first + "x");
        report({{texts, said: visible("said"), facts: visible("facts"), progress: visible("progress")}});
        """,
    )
    assert seen == {
        "texts": ["Go on at 1.0 MiB", "Upload", "Upload", "Upload", "Go on at 1.0 MiB"],
        "said": False,
        "facts": False,
        "progress": False,
    }


def test_answer_for_an_address_that_was_changed_is_not_shown(daemon, browser, disk):
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["read"])
    seen = use(
        browser,
        f"{daemon.url}/images/{ticket}",
        """
        await until(() => visible("facts") || visible("look-error"));
        const first = $("address").value;
        for (const address of [first, first + "x"]) {
          write(address);
          const looked = look();
          write(first + "y");
          await looked;
        }
        report([visible("facts"), visible("look-error")]);
        """,
    )
    assert seen == [False, False]


def test_looking_does_not_let_a_second_upload_begin(daemon, browser, disk):
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["write"])
    seen = use(
        browser,
        f"{daemon.url}/images/{ticket}",
        """
        await until(() => visible("facts") || visible("look-error"));
        const send = XMLHttpRequest.prototype.send, looked = [];
        XMLHttpRequest.prototype.send = async function (body) {
          await looked[0];
          seen.disabled = [$("upload").disabled, document.querySelector("#look button").disabled];
          send.call(this, body);
        };
        chooseFile(1000);
        looked.push(look());
        $("upload").click();
        await until(() => visible("said") || visible("upload-error"));
        seen.after = [$("upload").disabled, document.querySelector("#look button").disabled];
        report(seen);
        """,
    )
    assert seen["disabled"] == [True, True]
    assert seen["after"] == [False, False]
    assert seen["urls"] == ["?close=y"]


def test_download(daemon, browser, disk):
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["read"], filename="the disk.raw")
    script = f"""{HANDS}
        (async () => {{
          await until(() => visible("facts"));
          $("download").click();
          await until(() => $("frame"));
          report("begun");
        }})();"""
    with Site({"/browser.html": PAGE.read_text()}, script) as site:
        with browser.open(f"{site.url}/browser.html#{daemon.url}/images/{ticket}"):
            assert site.reported() == "begun"
            target = browser.downloads / "the disk.raw"
            # An empty file holds the name until then. Bounded by the test's own time limit.
            while not target.exists() or target.stat().st_size < SIZE:
                daemon.ticket(ticket)
            assert target.read_bytes() == disk.read_bytes()


def test_key_that_is_not_pinned_is_refused(daemon, tmp_path, disk):
    """Proof that the other tests verify the key, and what a person is told."""
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["read"])
    seen = use(
        Browser(tmp_path / "strict"),
        f"{daemon.url}/images/{ticket}",
        """
        await until(() => visible("facts") || visible("look-error"));
        report(visible("look-error"));
        """,
    )
    assert "does not trust its certificate" in seen
    assert daemon.ticket(ticket)["active"] is False


def test_page_cannot_reach_the_control_service(tmp_path, browser, disk):
    """Over TCP any page of this host's browser can knock: it reads nothing and changes nothing."""
    config = {"control": {"transport": "tcp", "port": 0}}
    with Daemon(tmp_path, tls=False, config=config) as daemon:
        port = int(re.search(r"control on '127\.0\.0\.1:(\d+)'", daemon.state)[1])
        ticket = {"uuid": "evil", "size": SIZE, "ops": ["write"], "timeout": 300, "url": f"file://{disk}"}
        script = f"""
            const url = "http://localhost:{port}/tickets/evil";
            const body = {json.dumps(json.dumps(ticket))};
            async function knock(target, options) {{
              try {{
                const response = await fetch(target, options);
                return [response.type, response.status, await response.text()];
              }} catch (e) {{ return "failed"; }}
            }}
            (async () => report({{
              put: await knock(url, {{method: "PUT", body}}),
              get: await knock(url),
              simple: await knock(url, {{method: "POST", mode: "no-cors", body}}),
              hidden: await knock(url, {{mode: "no-cors"}}),
              remove: await knock(url, {{method: "DELETE"}}),
              status: await knock("http://localhost:{port}/status"),
            }}))();"""
        with Site({"/": "<!doctype html><title>evil</title>"}, script) as site:
            seen = site.visit(browser, "/")
        assert seen == {
            "put": "failed",
            "get": "failed",
            "simple": ["opaque", 0, ""],
            "hidden": ["opaque", 0, ""],
            "remove": "failed",
            "status": "failed",
        }
        assert "added" not in daemon.wait_for_log("403 web pages may not use this service")
