# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import termios
import threading

import pytest

from ovirt_imageio.client.progress import Counter, Parts, ProgressBar, set_phase
from ovirt_imageio.common.units import GiB, MiB


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


def records(output):
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_json_has_exactly_the_keys_of_the_contract(clock):
    out = io.StringIO()
    bar = ProgressBar(phase="creating disk", output=out, format="json", now=clock)
    clock.time = 1.5
    bar.size = 10 * GiB
    bar.phase = "uploading image"
    clock.time = 2.5
    bar.update(GiB)
    bar.close()
    assert out.getvalue().splitlines() == [
        '{"transferred": 0, "elapsed": 0.0, "description": "creating disk"}',
        '{"transferred": 0, "elapsed": 1.5, "description": "creating disk", "size": 10737418240}',
        '{"transferred": 0, "elapsed": 1.5, "description": "uploading image", "size": 10737418240}',
        '{"transferred": 1073741824, "elapsed": 2.5, "description": "uploading image", "size": 10737418240}',
        '{"transferred": 1073741824, "elapsed": 2.5, "description": "uploading image", "size": 10737418240}',
    ]


def test_json_numbers_are_integers_whatever_was_counted(clock):
    out = io.StringIO()
    bar = ProgressBar(size=100.0, output=out, format="json", now=clock)
    bar.update(10.0)
    last = records(out)[-1]
    assert (type(last["transferred"]), type(last["size"])) == (int, int)


def test_text_on_a_stream_redraws_one_line(clock):
    out = io.StringIO()
    bar = ProgressBar(phase="copying", size=GiB, output=out, now=clock, width=79)
    clock.time = 2.0
    bar.update(512 * MiB)
    bar.update(512 * MiB)
    bar.close()
    lines = out.getvalue().split("\r")
    assert [line.rstrip() for line in lines] == [
        "[   0% ] 0 bytes of 1.00 GiB, 0.00 s, 0 bytes/s | copying",
        "[  50% ] 512 MiB of 1.00 GiB, 2.00 s, 256 MiB/s, 2 s left | copying",
        "[ 100% ] 1.00 GiB, 2.00 s, 512 MiB/s | copying",
        "[ 100% ] 1.00 GiB, 2.00 s, 512 MiB/s | copying",
    ]
    assert {len(line) for line in lines[:-1]} == {79}
    assert lines[-1].endswith("\n")


def test_text_without_size_shows_no_percentage(clock):
    out = io.StringIO()
    ProgressBar(output=out, now=clock)
    assert out.getvalue().startswith("[ ---- ] 0 bytes")


def test_text_into_a_file_writes_quiet_lines(tmp_path, clock):
    with open(tmp_path / "out", "w") as out:
        bar = ProgressBar(size=1000, output=out, now=clock)
        for _ in range(100):
            bar.update(10)
        bar.close()
    text = (tmp_path / "out").read_text()
    assert "\r" not in text
    assert len(text.splitlines()) == 11  # 0, 10, … 100; the end tells nothing new


def test_quiet_lines_tell_each_phase_and_an_end_that_is_not_complete(tmp_path, clock):
    with open(tmp_path / "out", "w") as out:
        with pytest.raises(RuntimeError):
            with ProgressBar("reading", error_phase="read failed", size=500, output=out, now=clock) as bar:
                bar.update(42)
                raise RuntimeError
    assert (tmp_path / "out").read_text().splitlines() == [
        "[   0% ] 0 bytes of 500 bytes, 0.00 s, 0 bytes/s | reading",
        "[   8% ] 42 bytes of 500 bytes, 0.00 s, 0 bytes/s | read failed",
    ]


def test_long_transfers_fit_a_terminal_of_80_columns(clock):
    out = io.StringIO()
    bar = ProgressBar(phase="uploading image", size=999 * GiB, output=out, now=clock)
    clock.time = 3723.0
    bar.update(555 * GiB)
    line = out.getvalue().split("\r")[1]
    assert line == "[  55% ] 555 GiB of 999 GiB, 1:02:03, 153 MiB/s, 49:38 left | uploading image".ljust(79)


def test_line_fits_a_narrow_terminal_also_when_it_becomes_one(clock):
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(terminal, "w") as out, open(main, "rb", buffering=0) as screen:
        bar = ProgressBar(phase="uploading image", size=GiB, output=out, now=clock)
        assert len(screen.read(1000)) == 79 + 1
        clock.time = 2.0
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        bar.update(512 * MiB)
        assert screen.read(1000) == b"[  50% ] 512 MiB of 1.00 GiB, 2 s left".ljust(39) + b"\r"
        bar.close()


PARTS = Parts(" 55%", "555 GiB", " of 999 GiB", "1:02:03", "153 MiB/s", "49:38 left", "uploading (attempt 2 of 7)")


@pytest.mark.parametrize(
    "line",
    [
        "[  55% ] 555 GiB of 999 GiB, 1:02:03, 153 MiB/s, 49:38 left | uploading (attempt 2 of 7)",
        "[  55% ] 555 GiB of 999 GiB, 153 MiB/s, 49:38 left | uploading (attempt 2 of 7)",
        "[  55% ] 555 GiB of 999 GiB, 49:38 left | uploading (attempt 2 of 7)",
        "[  55% ] 555 GiB of 999 GiB | uploading (attempt 2 of 7)",
        "[  55% ] 555 GiB of 999 GiB, 153 MiB/s, 49:38 left",
        "[  55% ] 555 GiB of 999 GiB, 49:38 left",
        "[  55% ] 555 GiB of 999 GiB",
        "[  55% ] 555 GiB",
        "[  55% ]",
        "55%",
        "",
    ],
)
def test_line_of_a_width_leaves_out_what_matters_least(line):
    assert PARTS.fit(len(line)) == line


def test_no_width_cuts_a_number_or_a_word():
    whole = set(str(PARTS).replace(",", "").split())
    for width in range(len(str(PARTS)) + 1):
        line = PARTS.fit(width)
        assert len(line) <= width
        assert set(line.replace(",", "").split()) <= whole


class Broken(io.StringIO):
    """Fails from some line on."""

    def __init__(self, error, lines):
        super().__init__()
        self.error, self.lines = error, lines

    def write(self, text):
        self.lines -= 1
        if self.lines < 0:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("I/O operation on closed file.")])
@pytest.mark.parametrize("lines", [0, 2])
def test_output_that_fails_is_told_once_and_dropped(clock, caplog, format, error, lines):
    out = Broken(error, lines)
    with ProgressBar("copying", size=100, output=out, format=format, now=clock) as bar:
        for _ in range(10):
            bar.update(10)
    assert bar.done == 100
    (record,) = caplog.records
    assert record.getMessage() == f"Progress is not shown any more: {getattr(error, 'strerror', None) or error}"


def test_name_that_the_output_cannot_encode_is_shown_somehow(clock, tmp_path, caplog):
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        ProgressBar("copying d\xefsk\udcff", size=0, output=out, now=clock).close()
    assert "copying d\\xefsk\\udcff" in (tmp_path / "out").read_text()
    assert caplog.records == []


def test_what_a_slow_reader_has_no_room_for_is_left_out_but_for_the_last_line(clock):
    read, write = os.pipe()
    with open(read) as reader, open(write, "w") as out:
        bar = ProgressBar("copying", size=1 << 20, output=out, format="json", now=clock)
        for _ in range(1 << 10):
            clock.time += 1.0
            bar.update(1 << 10)
        got = []
        thread = threading.Thread(target=lambda: got.extend(reader))
        thread.start()
        bar.phase = "done"
        bar.close()
        out.close()
        thread.join()
    transferred = [json.loads(line)["transferred"] for line in got]
    assert transferred == sorted(transferred)
    assert len(got) < 1 << 10
    last = json.loads(got[-1])
    assert (last["transferred"], last["description"]) == (1 << 20, "done")


def test_line_is_whole_on_a_terminal_that_does_not_know_its_size(clock):
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    with open(terminal, "w") as out, open(main, "rb", buffering=0) as screen:
        bar = ProgressBar(phase="uploading image", size=GiB, output=out, now=clock)
        line = b"[   0% ] 0 bytes of 1.00 GiB, 0.00 s, 0 bytes/s | uploading image".ljust(79)
        assert screen.read(1000) == line + b"\r"
        bar.close()


def test_bar_is_drawn_again_when_only_time_passes(clock):
    out = io.StringIO()
    bar = ProgressBar(size=GiB, output=out, format="json", now=clock)
    bar.update(1)
    assert len(records(out)) == 1
    clock.time = 1.0
    bar.update(1)
    assert records(out)[-1]["transferred"] == 2


def test_failed_block_ends_with_the_error_phase(clock):
    out = io.StringIO()
    with pytest.raises(RuntimeError):
        with ProgressBar(size=10, output=out, format="json", now=clock) as bar:
            bar.phase = "working"
            raise RuntimeError
    assert records(out)[-1]["description"] == "command failed"


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_closed_bar_counts_on_and_draws_nothing(clock, fmt):
    out = io.StringIO()
    bar = ProgressBar(size=100, output=out, format=fmt, now=clock)
    bar.update(50)
    bar.close()
    drawn = out.getvalue()
    clock.time = 100.0
    bar.update(50)
    bar.phase = "verifying"
    bar.size = 200
    bar.close()
    assert out.getvalue() == drawn
    assert (bar.done, bar.phase, bar.size) == (100, "verifying", 200)


def test_bar_of_a_closed_stream_ends_in_peace(clock):
    out = io.StringIO()
    bar = ProgressBar(size=100, output=out, now=clock)
    bar.close()
    out.close()
    bar.phase = "done"


def test_close_twice_ends_one_line(clock):
    out = io.StringIO()
    bar = ProgressBar(size=10, output=out, now=clock)
    bar.close()
    bar.close()
    assert out.getvalue().count("\n") == 1


def test_empty_image_is_complete(clock):
    out = io.StringIO()
    ProgressBar(size=0, output=out, now=clock)
    assert "100%" in out.getvalue()


def test_unknown_format_is_named():
    with pytest.raises(ValueError, match="'xml'"):
        ProgressBar(format="xml", output=io.StringIO())


def test_counter_calls_a_function():
    got = []
    counter = Counter(got.append, 10)
    counter.update(3)
    counter.update(0)
    counter.update(7)
    assert got == [3, 7]
    assert counter.done == 10


def test_counter_tells_size_to_an_object_with_size_and_update_only():
    class Progress:
        def __init__(self):
            self.size = None
            self.done = 0

        def update(self, n):
            self.done += n

    progress = Progress()
    Counter(progress, 10).update(4)
    assert (progress.size, progress.done) == (10, 4)


def test_counter_tells_total_to_tqdm():
    class Tqdm:
        total = None
        n = 0
        refreshed = 0

        def refresh(self):
            self.refreshed += 1

        def update(self, n):
            self.n += n

    bar = Tqdm()
    Counter(bar, 10).update(4)
    assert (bar.total, bar.n, bar.refreshed) == (10, 4, 1)
    assert not hasattr(bar, "size")


def test_counter_prefers_update_of_a_callable_object():
    class Both:
        size = None

        def __call__(self, n):
            raise AssertionError("called")

        def update(self, n):
            self.got = n

    both = Both()
    Counter(both, 1).update(1)
    assert both.got == 1


def test_counter_refuses_what_cannot_count():
    with pytest.raises(TypeError, match="42"):
        Counter(42, 10)


def test_counter_never_calls_from_two_threads_at_once():
    inside = threading.Lock()
    clashes = []

    def update(n):
        if not inside.acquire(blocking=False):
            clashes.append(n)
            return
        inside.release()

    counter = Counter(update, 4000)
    threads = [threading.Thread(target=lambda: [counter.update(1) for _ in range(1000)]) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert counter.done == 4000
    assert not clashes


def test_set_phase_ignores_what_has_none():
    set_phase(None, "x")
    set_phase(lambda n: None, "x")
    bar = ProgressBar(output=io.StringIO())
    set_phase(bar, "x")
    assert bar.phase == "x"


def test_trouble_does_not_undo_a_phase_of_the_caller(clock):
    bar = ProgressBar(phase="uploading", output=io.StringIO(), now=clock)
    counter = Counter(bar, 10)
    counter.trouble("attempt 2 of 7")
    assert bar.phase == "uploading (attempt 2 of 7)"
    bar.phase = "finalizing"
    counter.update(1)
    assert bar.phase == "finalizing"


def test_trouble_needs_no_phase():
    counted = []
    counter = Counter(counted.append, 10)
    counter.trouble("attempt 2 of 7")
    counter.update(1)
    assert counted == [1]
